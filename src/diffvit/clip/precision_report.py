"""The precision report: a page, its tables and its plot, from the result of :mod:`diffvit.clip.precision` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from diffvit.clip.precision import FORMATS, MODES
from diffvit.clip.published import expected
from diffvit.errors import InputError
from diffvit.files import to_json, write_files
from diffvit.measuring import stamp
from diffvit.reporting.style import LIGHT, dress, figure, to_png
from diffvit.reporting.tables import NONE, Table, markdown
from diffvit.reporting.texts import render

RESULT, REPORT, PLOT = "precision.json", "report.md", "precision.png"
MIB = 2**20
_DASH: dict[str, Any] = dict(zip(FORMATS, ("-", (0, (4, 2))), strict=True))
_SHADES = {mode.name: LIGHT.series[place] for place, mode in enumerate(MODES)}  # the same on every device
_DIGITS = ((100, "{:,.0f}"), (10, "{:.1f}"), (0.1, "{:.2f}"))
Result = Mapping[str, Any]


def write(result: Result, folder: Path) -> Path:
    """Write the result, the report and the plot into a folder; returns the report's path.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    files = {RESULT: to_json(dict(result), indent=1), PLOT: plot(result), REPORT: report(result).encode()}
    return write_files(folder, files)[-1]


def read(path: Path) -> dict[str, Any]:
    """A result that :func:`write` wrote.

    Raises:
        InputError: it is damaged.
    """
    again = f"Measure it again: diffvit clip precision --out {path.parent}"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as JSON ({type(error).__name__})", again) from None
    if not isinstance(result, dict) or result.get("benchmark") != "precision":
        raise InputError(str(path), "is not a result of diffvit clip precision", again)
    return result


def report(result: Result) -> str:
    """The page as Markdown."""
    substituted = {row["name"]: row for row in result["rows"] if row.get("substituted")}
    speed, drift = [markdown(each) for each in speed_tables(result)], markdown(drift_table(result))
    more = {"speed": speed, "drift_rows": drift, "summary": markdown(summary_table(result)), "best": best_rows(result)}
    more |= {"warnings": result.get("warnings", [])}  # older results have none
    published = [expected(f"{result['encoder']['name']}/openai", name) for name in ("imagenet", "cifar10")]
    more["expected"] = [each for each in published if each]
    page = render("clip/pages/precision.md", **(dict(result) | more), substituted=substituted.values())
    return page.rstrip("\n") + "\n"


def speed_tables(result: Result) -> list[Table]:
    """A table for each batch size."""
    tables: dict[int, Table] = {}
    columns = ["Observed", "ms", "images/s", "Speed ratio", "Passes", "Weights MiB", "Activations MiB"]
    for row in result["rows"]:
        table = tables.setdefault(row["batch_size"], Table([f"Batch {row['batch_size']}", *columns], []))
        if not row["reason"]:
            milliseconds = {key: 1000 * value for key, value in row["latency"].items()}
            cells = [_label(row), row["observed"], _interval(milliseconds), f"{row['images_per_second']['median']:.3g}"]
            cells += [_interval(row["speed_ratio"]) if row["speed_ratio"] else NONE, str(len(row["seconds"]))]
            table.rows.append([*cells, *_memory(row)])
    return list(tables.values())


def best_rows(result: Result) -> list[dict[str, Any]]:
    """A row for each mode at one batch size, in the memory format that was faster there.

    The batch size is the largest of those at which most modes were timed. Each row has its ``drift`` (None where that
    was not measured); the first is strict FP32's.
    """
    timed = [row for row in result["rows"] if not row["reason"] and row["speed_ratio"]]
    modes: dict[int, set[str]] = {}
    for row in timed:
        modes.setdefault(row["batch_size"], set()).add(row["mode"])
    size = max(modes, key=lambda size: (len(modes[size]), size), default=None)
    best: dict[str, Result] = {}
    for row in (row for row in timed if row["batch_size"] == size):
        known = best.setdefault(row["mode"], row)
        if row["speed_ratio"]["median"] > known["speed_ratio"]["median"]:
            best[row["mode"]] = row
    drift = {row["name"]: row for row in result["drift"]}
    return [{**row, "drift": drift.get(row["name"])} for row in best.values()]


def summary_table(result: Result) -> Table:
    """Time, memory, drift and accuracy of each of :func:`best_rows`."""
    rows = []
    for row in best_rows(result):
        drift, accuracy = row["drift"] or {}, NONE
        if "accuracy" in drift:
            accuracy = f"{100 * drift['accuracy']:.2f}% (+{drift['gained']}, -{drift['lost']})"
        moved = [f"{drift['cosine_min']:.5f}", f"{100 * drift['agreement']:.1f}%"] if drift else [NONE, NONE]
        rows.append([_label(row), row["observed"], _interval(row["speed_ratio"]), *_memory(row), *moved, accuracy])
    size = next((str(row["batch_size"]) for row in best_rows(result)), NONE)
    columns = ["Observed", "Speed ratio", "Weights MiB", "Activations MiB", "Cosine, worst", "Agreement", "Accuracy"]
    return Table([f"At batch {size}", *columns], rows)


def _memory(row: Result) -> list[str]:
    """MiB of weights and of activations; nobody sees those of onnxruntime."""
    return [
        NONE if (size := row[key]) is None else f"{size / MIB:,.1f}" for key in ("weight_bytes", "activation_bytes")
    ]


def _label(row: Result) -> str:
    """A cell's name; a substituted one is called by the precision it had."""
    return f"{row['observed']} (asked: {row['name']})" if row.get("substituted") else row["name"]


def _interval(found: Mapping[str, float]) -> str:
    """Median and interval, the digits by the median's size."""
    form = next((form for least, form in _DIGITS if found["median"] >= least), "{:.3f}")
    median, low, high = (form.format(found[key]) for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def drift_table(result: Result) -> Table:
    """A row for each mode and memory format."""
    observed = {row["name"]: row for row in result["rows"] if "observed" in row}
    order = list(dict.fromkeys(row["name"] for row in result["rows"]))
    rows = [
        [
            *(_label({**row, **observed[row["name"]]}), str(row["images"])),
            *(f"{row[key]:.7f}" for key in ("cosine_min", "cosine_mean")),
            *(f"{row['logit_difference']:.2g}", f"{100 * row['agreement']:.1f}%"),
        ]
        for row in sorted(result["drift"], key=lambda row: order.index(row["name"]))
    ]
    return Table(["Drift", "Images", "Cosine, worst", "Cosine, mean", "Logit difference", "Agreement"], rows)


def plot(result: Result) -> bytes:
    """Images per second against batch size, memory of a pass, and drift of the embeddings, as PNG bytes."""
    timed = [row for row in result["rows"] if not row["reason"]]
    modes = [mode.name for mode in MODES if any(row["mode"] == mode.name for row in timed)]
    made = figure(LIGHT, 16, 5.6)
    speed, memory, drift = made.subplots(1, 3, width_ratios=(1.25, 1, 1))
    of = result["environment"]
    made.suptitle(
        f"CLIP {result['encoder']['name']} image encoder, {result['encoder']['weights']} weights: {of['hardware']}, "
        f"{of['threads']} thread{'' if of['threads'] == 1 else 's'}, torch {of['torch']}",
        color=LIGHT.ink,
        fontsize=12,
    )
    _draw_speed(speed, timed, modes)
    seen = [row for row in result["rows"] if row.get("activation_bytes")]
    _draw_memory(memory, seen, [mode for mode in modes if any(row["mode"] == mode for row in seen)])
    _draw_drift(drift, [row for row in result["drift"] if row["cosine_min"] < 1])
    lines = [(_SHADES[mode], "-", mode) for mode in modes] + [(LIGHT.ink, _DASH[layout], layout) for layout in FORMATS]
    handles = [speed.plot([], [], color=shade, ls=dash, lw=2.4, label=label)[0] for shade, dash, label in lines]
    place = {"loc": "outside lower center", "ncols": len(lines)}
    made.legend(handles=handles, fontsize=11, frameon=False, handlelength=3.2, labelcolor=LIGHT.ink, **place)
    return to_png(made, stamp(result))


def _draw_speed(axes: Any, rows: list[Result], modes: list[str]) -> None:
    sizes = sorted({row["batch_size"] for row in rows})
    for place, mode in enumerate(modes):
        aside = 0.05 * (place - (len(modes) - 1) / 2)  # so that intervals do not hide each other
        for layout, dash in _DASH.items():
            line = sorted(
                (r for r in rows if (r["mode"], r["layout"]) == (mode, layout)), key=lambda r: r["batch_size"]
            )
            found = [row["images_per_second"] for row in line]
            median = [each["median"] for each in found]
            ends = [[abs(each["median"] - each[end]) for each in found] for end in ("low", "high")]
            style: Any = {"color": _SHADES[mode], "ls": dash, "lw": 2, "marker": "o", "capsize": 3, "elinewidth": 1}
            axes.errorbar([sizes.index(row["batch_size"]) + aside for row in line], median, yerr=ends, **style)
    dress(axes, LIGHT, title="Throughput (more is better)", x="images per pass", y="images per second")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.3, len(sizes) - 0.7)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_memory(axes: Any, rows: list[Result], modes: list[str]) -> None:
    """Weights and activations at the largest batch that every mode ran at, in the memory format that needs less."""
    of_size: dict[int, dict[str, Result]] = {}
    for row in sorted(rows, key=lambda row: -row["activation_bytes"]):
        of_size.setdefault(row["batch_size"], {})[row["mode"]] = row
    shared = [size for size, found in of_size.items() if found.keys() == set(modes)]
    if not shared:
        axes.set_visible(False)
        return
    size = max(shared)
    for place, mode in enumerate(modes):
        weights, activations = (of_size[size][mode][key] / MIB for key in ("weight_bytes", "activation_bytes"))
        style: Any = {"color": _SHADES[mode], "height": 0.7}
        axes.barh(-place, weights, **style)
        axes.barh(-place, activations, left=weights, alpha=0.45, hatch="//", edgecolor="white", **style)
        text = f" {weights:,.0f} + {activations:,.0f}"
        axes.text(weights + activations, -place, text, va="center", fontsize=10.5, color=LIGHT.ink)
    title = f"Memory at {size} image{'' if size == 1 else 's'} per pass"
    dress(axes, LIGHT, title=title, x="MiB: weights (solid) + activations (hatched)", y="")
    _name_lines(axes, modes)
    axes.set_xlim(0, 1.35 * axes.get_xlim()[1])


def _draw_drift(axes: Any, rows: list[Result]) -> None:
    """Mean and worst distance of direction over the images; a mode's two memory formats above each other."""
    shown = [mode for mode in _SHADES if any(row["mode"] == mode for row in rows)]
    if not shown:
        axes.set_visible(False)
        return
    for row in rows:
        shade = _SHADES[row["mode"]]
        height = -shown.index(row["mode"]) + (0.17 if row["layout"] == "contiguous" else -0.17)
        ends = [max(1 - row[key], 1e-16) for key in ("cosine_mean", "cosine_min")]
        axes.plot(ends, [height, height], color=shade, ls=_DASH[row["layout"]], lw=2)
        axes.plot(ends[0], height, color=shade, marker="o", markersize=7)
        axes.plot(ends[1], height, color=shade, marker="|", markersize=13, markeredgewidth=2.5)
    dress(axes, LIGHT, title="Drift from strict FP32 (less is better)", x="1 - cosine: mean (dot), worst (bar)", y="")
    axes.set_xscale("log")
    _name_lines(axes, shown)


def _name_lines(axes: Any, modes: list[str]) -> None:
    axes.set_yticks([-place for place in range(len(modes))], modes)
    axes.set_ylim(-len(modes) + 0.4, 0.6)
    axes.grid(False, axis="y")
