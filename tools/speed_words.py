"""A result in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import Result
from benchmarks.settings import PEERS, SOFTMAX
from diffvit.reporting.tables import NONE, Table, big

LABELS = {"auto": "as users get it", "bf16": "both bf16", "fp32": "both fp32"}
MIB = 2**20
UNEQUAL = 0.01  # relative difference in parameters from which on it is said
MEMORY_NOTE = (
    "MiB: peak memory, each model in a process of its own, not while timing. On a CPU the growth of the resident set's "
    "peak over the bare libraries (weights, gradients, optimiser, activations, kernels' scratch); on CUDA "
    "`max_memory_allocated`."
)


def ratio_table(result: Result) -> Table:
    """Each pair in a row, what users get and equal dtypes in columns."""
    rows = result["rows"]
    labels = [label for label in LABELS if any(row["dtype"] == label for row in rows)]
    pairs = dict.fromkeys((row["ours"], row["peer"], row["compiled"], row["quantity"]) for row in rows)
    cells = {(row["ours"], row["peer"], row["compiled"], row["dtype"]): ratio_cell(row) for row in rows}
    return Table(
        ["Ratio", *(LABELS[label] for label in labels)],
        [
            [
                f"{ours} over {peer}{', compiled' if compiled else ''}: {quantity}",
                *(cells.get((ours, peer, compiled, label), NONE) for label in labels),
            ]
            for ours, peer, compiled, quantity in pairs
        ],
    )


def ratio_cell(row: Mapping[str, Any]) -> str:
    """``2.05 (1.98 to 2.11)``."""
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def model_table(result: Result, *, intervals: bool = True) -> Table:
    """Each model in a row: size, speed (with its interval, or alone), use of the machine, memory."""
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in result["arms"]))
    models = dict.fromkeys((arm["model"], arm["compiled"]) for arm in result["arms"])
    arms = {(arm["model"], arm["compiled"], arm["dtype"]): arm for arm in result["arms"]}
    shown = {
        "images/s": lambda arm: f"{arm['images_per_second']:,.0f}" + (_interval(arm) if intervals else ""),
        "MFU": lambda arm: NONE if arm["mfu"] is None else f"{100 * arm['mfu']:.0f}%",
        "MiB": lambda arm: NONE if arm["peak_memory"] is None else f"{arm['peak_memory'] / MIB:,.0f}",
    }
    if all(arm["peak_memory"] is None for arm in result["arms"]):
        del shown["MiB"]
    rows = []
    for model, compiled in models:
        of_model = [arms[model, compiled, dtype] for dtype in dtypes]
        size = (f"{of_model[0]['parameters']:,}", big(of_model[0]["flops_per_image"]))
        figures = [form(arm) for form in shown.values() for arm in of_model]
        rows.append([f"{model}{', compiled' if compiled else ''}", *size, *figures])
    return Table(["Model", "Parameters", "FLOPs", *(f"{name} {dtype}" for name in shown for dtype in dtypes)], rows)


def _interval(arm: Mapping[str, Any]) -> str:
    return f" ({arm['low']:,.0f} to {arm['high']:,.0f})"


def unequal(result: Result) -> list[str]:
    """A sentence for every model whose parameters differ from ours by more than 1%."""
    sizes = {arm["model"]: arm["parameters"] for arm in result["arms"]}
    ours = sizes[SOFTMAX]
    return [
        f"**Not equal in size:** {model} has {size:,} parameters, diffvit {ours:,}."
        for model, size in sizes.items()
        if abs(size / ours - 1) > UNEQUAL
    ]


def left_out(result: Result) -> list[str]:
    """A sentence for every arm that could not be measured."""
    return [f"**Left out:** {name} {why}." for name, why in result.get("left_out", {}).items()]


def products(result: Result) -> str:
    """How fast this machine multiplied matrices in the very run."""
    best: dict[str, Mapping[str, Any]] = {}
    for product in result["products"]:
        if product["best"] > best.get(product["dtype"], {"best": 0})["best"]:
            best[product["dtype"]] = product
    rates = (
        f"{dtype} {product['best'] / 1e9:,.0f} GFLOP/s ({product['rows']} x {product['inner']} x {product['columns']})"
        for dtype, product in best.items()
    )
    return f"Fastest matrix products in this run: {', '.join(rates)}."


def circumstances(result: Result) -> str:
    """Hardware, versions, date and how often."""
    how = result["settings"]
    often = f"{counted(how['rounds'], 'round')} of {counted(how['steps'], 'step')} after {how['warmup']} to warm up"
    return measured_on(result, often, how["peers"])


def measured_on(result: Result, often: str, peers: Sequence[str] = ()) -> str:
    """Hardware, versions and date, and what is said of how often."""
    of = result["environment"]
    kernels = " with its own kernels in bf16" if of.get("kernels") == "native" else ""
    parts = [
        *(of["hardware"], of["device"], f"{counted(of['threads'], 'thread')} ({of['cores']} cores)"),
        f"torch {of['torch']}",
        *(f"{name} {of[name]}" for name in PEERS if name in peers),
        *(f"diffvit {of['diffvit']}{kernels}", of["date"], often),
    ]
    load = "" if of.get("load") is None else f" Load average before the run: {of['load']:.1f}."
    return ", ".join(parts) + "." + load


def counted(number: int, what: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def model_line(result: Result) -> str:
    """The model that was measured."""
    how = result["settings"]
    line = (
        f"{how['embed_dim']} wide, {how['depth']} blocks, {how['num_heads']} heads, MLP ratio {how['mlp_ratio']:g}, "
        f"patch {how['patch_size']}, {how['image_size']} pixels, [CLS], {how['num_classes']} classes, "
        f"batch {how['batch_size']}"
    )
    return f"{line}; {how['optimizer']}." if how["optimizer"] else f"{line}."


def milliseconds(result: Result, dtype: str, passes: str) -> Table | None:
    """Every way's median time, a row per width and number of tokens."""
    arms = [arm for arm in result["arms"] if (arm["dtype"], arm["passes"]) == (dtype, passes)]
    routes = list(dict.fromkeys(arm["route"] for arm in arms))
    if not arms:
        return None
    found = {(arm["width"], arm["tokens"], arm["route"]): arm["milliseconds"] for arm in arms}
    rows = []
    for width, tokens in dict.fromkeys((arm["width"], arm["tokens"]) for arm in arms):
        times = [found.get((width, tokens, route)) for route in routes]
        rows.append([f"{width} wide, {tokens} tokens", *(NONE if time is None else f"{time:.2f}" for time in times)])
    return Table(["ms", *routes], rows)


def layer_ratios(result: Result, width: int) -> Table:
    """Our choice against the other ways at one width, training passes."""
    rows = [row for row in result["rows"] if row["width"] == width and row["passes"] == "forward+backward"]
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    cells = {(row["ours"], row["peer"], row["dtype"], row["tokens"]): ratio_cell(row) for row in rows}
    kinds: Sequence[tuple[str, str, str]] = list(dict.fromkeys(key[:3] for key in cells))
    return Table(
        ["Speed ratio", *(f"{count} tokens" for count in tokens)],
        [
            [f"{ours} over {peer}, {dtype}", *(cells.get((ours, peer, dtype, count), NONE) for count in tokens)]
            for ours, peer, dtype in kinds
        ],
    )
