"""Speed reports: ``reports/speed*/report.md`` and its plots, from the JSON files that ``diffvit bench`` wrote there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from benchmarks.settings import BENCHMARKS, DTYPES, FAMILIES, FOLDER, PASSES, PEERS, SOFTMAX
from diffvit.errors import InputError
from diffvit.measuring import INTERVAL_NOTE, Result, counted, stamp
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from diffvit.reporting.tables import NONE, Table, big
from tools.pages import Content, Picture, render

HEADINGS = {
    **{"train": "Training", "inference": "Inference", "attention": "The attention layer"},
    "profile": "Where a training step's time goes",
}
LABELS = {"auto": "as users get it", "bf16": "both bf16", "fp32": "both fp32"}
MIB = 2**20
UNEQUAL = 0.01  # relative difference in parameters from which on it is said
IDLE = "none runs"
_NAMED_SHARE = 4  # percent of a step: larger shares have their number in the picture


def documents(root: Path) -> dict[Path, Content]:
    """Report and plots of every folder ``reports/speed*`` with results.

    Raises:
        InputError: a damaged result, or a report without any.
    """
    made: dict[Path, Content] = {}
    for folder in sorted(root.glob(f"{FOLDER}*")):
        made |= {folder.relative_to(root) / name: content for name, content in of_folder(folder).items()}
    return made


def of_folder(folder: Path) -> dict[str, Content]:
    """The files of one folder, by name; none where nothing was measured.

    Raises:
        InputError: a damaged result, or a report without any.
    """
    results = read(folder)
    if not results:
        page = folder / "report.md"
        if page.exists():
            raise InputError(str(page), "there are no results beside it", "Delete it, or measure again.")
        return {}
    draw = {"attention": attention_plot, "profile": profile_plot}
    pictures: dict[str, Content] = {
        f"{name}.png": Picture(stamp(result), partial(draw.get(name, throughput_plot), result))
        for name, result in results.items()
    }
    return {"report.md": report(results), **pictures}


def read(folder: Path) -> dict[str, Result]:
    """The results in a folder, by benchmark, in the fixed order; those that were not measured are left out.

    Raises:
        InputError: a file is not what ``diffvit bench`` wrote.
    """
    found = {name: folder / f"{name}.json" for name in BENCHMARKS}
    return {name: _read(path, name) for name, path in found.items() if path.exists()}


def _read(path: Path, name: str) -> Result:
    again = f"Measure it again: diffvit bench {name} --out {path.parent}"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as JSON ({type(error).__name__})", again) from None
    if not isinstance(result, dict) or result.get("benchmark") != name:
        raise InputError(str(path), f"is not a result of diffvit bench {name}", again)
    return result


def report(results: Mapping[str, Result]) -> str:
    """The whole report as Markdown."""
    tables = (measured_on, products, overview, kinds, operations, shown_width, layer_ratios, milliseconds)
    tables = {each.__name__: each for each in (*tables, remarks, ratio_table, model_table)}
    words = {"headings": HEADINGS, "interval_note": INTERVAL_NOTE, "idle": IDLE}
    return render("speed.md", results=results, dtypes=DTYPES, passes_of_layer=PASSES, **tables, **words)


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


def remarks(result: Result) -> list[str]:
    """A sentence for every model whose size differs from ours by over 1%, and for every arm that was not measured."""
    sizes = {arm["model"]: arm["parameters"] for arm in result["arms"]}
    ours = sizes[SOFTMAX]
    return [
        *(
            f"**Not equal in size:** {model} has {size:,} parameters, diffvit {ours:,}."
            for model, size in sizes.items()
            if abs(size / ours - 1) > UNEQUAL
        ),
        *(f"**Left out:** {name} {why}." for name, why in result.get("left_out", {}).items()),
    ]


def ratio_table(result: Result) -> Table:
    """Each pair in a row, what users get and equal dtypes in columns."""
    rows = result["rows"]
    labels = [label for label in LABELS if any(row["dtype"] == label for row in rows)]
    pairs = dict.fromkeys((row["ours"], row["peer"], row["compiled"], row["quantity"]) for row in rows)
    cells = {(row["ours"], row["peer"], row["compiled"], row["dtype"]): _ratio(row) for row in rows}
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


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def model_table(result: Result, *, intervals: bool = True) -> Table:
    """Each model in a row: size, speed (with its interval, or alone), use of the machine, memory."""
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in result["arms"]))
    arms = {(arm["model"], arm["compiled"], arm["dtype"]): arm for arm in result["arms"]}

    def speed(arm: Mapping[str, Any]) -> str:
        between = f" ({arm['low']:,.0f} to {arm['high']:,.0f})" if intervals else ""
        return f"{arm['images_per_second']:,.0f}{between}"

    shown = {
        "images/s": speed,
        "MFU": lambda arm: NONE if arm["mfu"] is None else f"{100 * arm['mfu']:.0f}%",
        "MiB": lambda arm: NONE if arm["peak_memory"] is None else f"{arm['peak_memory'] / MIB:,.0f}",
    }
    if all(arm["peak_memory"] is None for arm in result["arms"]):
        del shown["MiB"]
    rows = []
    for model, compiled in _models(result):
        of_model = [arms[model, compiled, dtype] for dtype in dtypes]
        size = (f"{of_model[0]['parameters']:,}", big(of_model[0]["flops_per_image"]))
        rows.append([_name(model, compiled), *size, *(form(arm) for form in shown.values() for arm in of_model)])
    return Table(["Model", "Parameters", "FLOPs", *(f"{name} {dtype}" for name in shown for dtype in dtypes)], rows)


def _models(result: Result) -> list[tuple[str, bool]]:
    return list(dict.fromkeys((arm["model"], arm["compiled"]) for arm in result["arms"]))


def _name(model: str, compiled: bool) -> str:
    return f"{model}, compiled" if compiled else model


def shown_width(result: Result) -> int:
    """The middle one of the widths of the attention layer that were measured."""
    widths = sorted(result["settings"]["widths"])
    return widths[len(widths) // 2]


def layer_ratios(result: Result, width: int) -> Table:
    """Our choice against the other ways at one width, training passes."""
    rows = [row for row in result["rows"] if row["width"] == width and row["passes"] == "forward+backward"]
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    cells = {(row["ours"], row["peer"], row["dtype"], row["tokens"]): _ratio(row) for row in rows}
    return Table(
        ["Speed ratio", *(f"{count} tokens" for count in tokens)],
        [
            [f"{ours} over {peer}, {dtype}", *(cells.get((ours, peer, dtype, count), NONE) for count in tokens)]
            for ours, peer, dtype in dict.fromkeys(key[:3] for key in cells)
        ],
    )


def milliseconds(result: Result, dtype: str, passes: str) -> Table:
    """Every way's median time, a row per width and number of tokens."""
    arms = [arm for arm in result["arms"] if (arm["dtype"], arm["passes"]) == (dtype, passes)]
    routes = list(dict.fromkeys(arm["route"] for arm in arms))
    found = {(arm["width"], arm["tokens"], arm["route"]): arm["milliseconds"] for arm in arms}
    rows = []
    for width, tokens in dict.fromkeys((arm["width"], arm["tokens"]) for arm in arms):
        times = [found.get((width, tokens, route)) for route in routes]
        rows.append([f"{width} wide, {tokens} tokens", *(NONE if time is None else f"{time:.2f}" for time in times)])
    return Table(["ms", *routes], rows)


def overview(result: Result) -> Table:
    """A recipe in each row: its step and the phases of it."""
    phases = [phase["phase"] for phase in result["arms"][0]["phases"]]
    rows = []
    for arm in result["arms"]:
        mfu = NONE if arm["mfu"] is None else f"{100 * arm['mfu']:.0f}%"
        name = f"{arm['recipe']} ({arm['model']}, {_name(arm['precision'], arm['compiled'])})"
        of_phase = [f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in arm["phases"]]
        rate = f"{arm['images_per_second']:,.0f}"
        rows.append([name, str(arm["batch_size"]), f"{arm['milliseconds']:.2f}", rate, mfu, *of_phase])
    return Table(["Recipe", "Batch", "ms per step", "Images/s", "MFU", *(f"{phase}, ms" for phase in phases)], rows)


def kinds(arm: Mapping[str, Any]) -> Table:
    """What the device worked on, by kind of operation, the costliest first, and how long on nothing."""
    wall = arm["profiled_milliseconds"]
    rows = [[kind["kind"], *_spent(kind, wall)] for kind in arm["kinds"] if kind["calls"]]
    rows.append([IDLE, *_share(arm["idle"], wall), NONE])
    return Table(["Operations", "ms per step", "Share", "Calls per step"], rows)


def operations(arm: Mapping[str, Any]) -> Table:
    """The costliest operations one by one."""
    wall = arm["profiled_milliseconds"]
    rows = [[f"`{row['operation'][:70]}`", row["kind"], *_spent(row, wall)] for row in arm["operations"]]
    return Table(["Costliest", "Kind", "ms per step", "Share", "Calls per step"], rows)


def _spent(row: Mapping[str, Any], wall: float) -> list[str]:
    return [*_share(row["milliseconds"], wall), f"{row['calls']:,.0f}"]


def _share(spent: float, wall: float) -> list[str]:
    return [f"{spent:.2f}", f"{100 * spent / wall:.0f}%"]


def throughput_plot(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """Images per second of every model, a bar per dtype, its interval as a whisker; ours at the top. PNG."""
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in result["arms"]))
    models = _models(result)
    thick = 0.8 / len(dtypes)
    made = figure(theme, 8.6, 1.6 + len(models) * (0.18 + 0.26 * len(dtypes)))
    axes: Any = made.subplots()
    longest = max(arm["high"] for arm in result["arms"])
    for arm in result["arms"]:
        shade = dtypes.index(arm["dtype"])
        place = -models.index((arm["model"], arm["compiled"])) + 0.4 - (shade + 0.5) * thick
        value = arm["images_per_second"]
        whisker = [[value - arm["low"]], [arm["high"] - value]]
        axes.barh(place, value, height=thick * 0.9, color=colour(theme, shade))
        axes.errorbar(value, place, xerr=whisker, color=theme.ink, lw=1.2, capsize=2.5)
        axes.text(arm["high"] + 0.012 * longest, place, f"{value:,.0f}", va="center", fontsize=10.5, color=theme.ink)
    how, of = result["settings"], result["environment"]
    what = {"train": "Training steps", "inference": "Inference"}[result["benchmark"]]
    title = f"{what}: ViT {how['embed_dim']} wide, {how['depth']} blocks, batch {how['batch_size']}"
    x = f"images per second ({of['hardware']}, {counted(of['threads'], 'thread')})"
    dress(axes, theme, title=title, x=x, y="")
    axes.set_yticks([-place for place in range(len(models))], [_name(*model) for model in models])
    axes.set_xlim(0, 1.1 * longest)
    axes.grid(False, axis="y")
    square = {"linestyle": "", "marker": "s"}
    _legend(made, theme, axes, {dtype: {"color": colour(theme, at), **square} for at, dtype in enumerate(dtypes)})
    return to_png(made, stamp(result))


def attention_plot(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """Time of a training pass through the layer against the number of tokens, a panel per dtype, at one width. PNG."""
    width = shown_width(result)
    arms = [arm for arm in result["arms"] if arm["width"] == width and arm["passes"] == "forward+backward"]
    dtypes = list(dict.fromkeys(arm["dtype"] for arm in arms))
    tokens = sorted({arm["tokens"] for arm in arms})
    lines = _lines(list(dict.fromkeys(arm["route"] for arm in arms)), theme)
    made = figure(theme, 11.6, 5.2)
    panels: Any = made.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        for route, (shade, style) in lines.items():
            of_route = {
                arm["tokens"]: arm["milliseconds"] for arm in arms if (arm["route"], arm["dtype"]) == (route, dtype)
            }
            places = [place for place, count in enumerate(tokens) if count in of_route]
            values = [of_route[tokens[place]] for place in places]
            thick = 2.8 if route in FAMILIES else 1.6
            axes.plot(places, values, color=shade, linestyle=style, linewidth=thick, marker="o", markersize=4.5)
        y = f"ms per step of about {result['settings']['tokens_per_step']:,} tokens" if axes is panels[0] else ""
        dress(axes, theme, title=f"Attention layer, {width} wide, {dtype}", x="tokens per image", y=y)
        axes.set_xticks(range(len(tokens)), [str(count) for count in tokens])
        axes.set_yscale("log")
    axes = panels[0]  # the panels share this axis: times in plain figures, 1, 2, 5, 10, ...
    low, high = axes.get_ylim()
    ticks = [factor * 10.0**power for power in range(-3, 5) for factor in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)
    drawn = {route: {"color": shade, "linestyle": style, "marker": "o"} for route, (shade, style) in lines.items()}
    _legend(made, theme, axes, drawn)
    return to_png(made, stamp(result))


def _lines(routes: list[str], theme: Theme) -> dict[str, tuple[str, Any]]:
    """Colour and dash of each way: softmax solid, differential dashed, ours first."""
    differential = {"diffvit differential", *FAMILIES["diffvit differential"]}
    plain_ones = [route for route in routes if route not in differential]
    dashed = [route for route in routes if route in differential]
    found: dict[str, tuple[str, Any]] = {route: (colour(theme, place), "-") for place, route in enumerate(plain_ones)}
    return found | {route: (colour(theme, place), (0, (4, 2))) for place, route in enumerate(dashed)}


def _legend(made: Any, theme: Theme, axes: Any, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One legend below all panels."""
    handles = [axes.plot([], [], lw=2.2, label=label, **look)[0] for label, look in entries.items()]
    legend = made.legend(
        handles=handles,
        fontsize=10.5,
        frameon=False,
        handlelength=3.2,
        loc="outside lower center",
        ncols=min(4, len(entries)),
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)


def profile_plot(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """A bar per recipe, cut by kind of operation. PNG."""
    arms, of = result["arms"], result["environment"]
    worked = (kind for arm in arms for kind in arm["kinds"] if kind["calls"])
    names = list(dict.fromkeys(kind["kind"] for kind in worked))
    made = figure(theme, 9.6, 1.9 + 0.75 * len(arms))
    axes: Any = made.subplots()
    for place, arm in enumerate(arms):
        wall, left = arm["profiled_milliseconds"], 0.0
        spent = {kind["kind"]: kind["milliseconds"] for kind in arm["kinds"]}  # all kinds, in every arm
        for shade, name in enumerate([*names, IDLE]):
            width = 100 * (arm["idle"] if name == IDLE else spent[name]) / wall
            tint = theme.faint if name == IDLE else colour(theme, shade)
            axes.barh(-place, width, left=left, height=0.62, color=tint, label=name if place == 0 else None)
            if width >= _NAMED_SHARE:
                ink = theme.ink if name == IDLE else theme.paper
                axes.text(left + width / 2, -place, f"{width:.0f}%", ha="center", va="center", color=ink, fontsize=10.5)
            left += width
    labels = [f"{arm['recipe']}\n{arm['model']}, {arm['milliseconds']:.3g} ms a step" for arm in arms]
    axes.set_yticks([-place for place in range(len(arms))], labels)
    x = f"share of the step, % ({of['hardware']}, {of['device']}, {counted(of['threads'], 'thread')})"
    dress(axes, theme, title="Where a training step's time goes", x=x, y="")
    axes.grid(False, axis="y")
    axes.set_xlim(0, 100)
    legend = made.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10.5, handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return to_png(made, stamp(result))
