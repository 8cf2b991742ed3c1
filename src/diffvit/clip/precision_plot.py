"""The plot of the precision report: throughput, memory, drift."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from diffvit.clip.precision_settings import FORMATS, MODES
from diffvit.measuring import Result, counted, stamp
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png

MIB = 2**20
_DASH = dict(zip(FORMATS, ("-", (0, (4, 2))), strict=True))
_PLACE = {mode.name: place for place, mode in enumerate(MODES)}  # a mode keeps its colour on every device


def plot(result: Result, *, theme: Theme = LIGHT) -> bytes:
    """Three panels as PNG bytes: images per second against batch size, memory of a pass, drift of the embeddings."""
    rows = [row for row in result["rows"] if not row["reason"]]
    modes = [mode.name for mode in MODES if any(row["mode"] == mode.name for row in rows)]
    made = figure(theme, 16, 5.6)
    speed, memory, drift = made.subplots(1, 3, width_ratios=(1.25, 1, 1))
    of = result["environment"]
    made.suptitle(
        f"CLIP RN50 image encoder, {result['encoder']['weights']} weights: {of['hardware']}, "
        f"{counted(of['threads'], 'thread')}, torch {of['torch']}",
        color=theme.ink,
        fontsize=12,
    )
    _speed(speed, rows, modes, theme)
    _memory(memory, [row for row in result["rows"] if "activation_bytes" in row], modes, theme)
    _drift(drift, result["drift"], modes, theme)
    _legend(made, speed, modes, theme)
    return to_png(made, stamp(result))


def _speed(axes: Any, rows: list[dict[str, Any]], modes: list[str], theme: Theme) -> None:
    sizes = sorted({row["batch_size"] for row in rows})
    for shift, mode in enumerate(modes):
        for layout in FORMATS:
            of_line = sorted(
                (row for row in rows if (row["mode"], row["layout"]) == (mode, layout)),
                key=lambda row: row["batch_size"],
            )
            aside = 0.05 * (shift - (len(modes) - 1) / 2)  # so that intervals do not hide each other
            places = [sizes.index(row["batch_size"]) + aside for row in of_line]
            values = [row["images_per_second"] for row in of_line]
            median = [value["median"] for value in values]
            whisker = [
                [value["median"] - value["low"] for value in values],
                [value["high"] - value["median"] for value in values],
            ]
            shade = colour(theme, _PLACE[mode])
            style: Any = {"ls": _DASH[layout], "lw": 2, "marker": "o", "capsize": 3, "elinewidth": 1}
            axes.errorbar(places, median, yerr=whisker, color=shade, **style)
    dress(axes, theme, title="Throughput (more is better)", x="images per pass", y="images per second")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.3, len(sizes) - 0.7)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _memory(axes: Any, rows: list[dict[str, Any]], modes: list[str], theme: Theme) -> None:
    """Weights and activations at the largest batch that every mode was watched at, in the leaner memory format."""
    shared = [
        size
        for size in {row["batch_size"] for row in rows}
        if {row["mode"] for row in rows if row["batch_size"] == size} == set(modes)
    ]
    if not shared:
        axes.set_visible(False)
        return
    size = max(shared)
    for place, mode in enumerate(modes):
        row = min(
            (row for row in rows if (row["mode"], row["batch_size"]) == (mode, size)),
            key=lambda row: row["activation_bytes"],
        )
        weights, activations = row["weight_bytes"] / MIB, row["activation_bytes"] / MIB
        shade = colour(theme, _PLACE[mode])
        axes.barh(-place, weights, color=shade, height=0.7)
        axes.barh(-place, activations, left=weights, color=shade, height=0.7, alpha=0.45, hatch="//", edgecolor="white")
        text = f" {weights:,.0f} + {activations:,.0f}"
        axes.text(weights + activations, -place, text, va="center", fontsize=10.5, color=theme.ink)
    title = f"Memory at {counted(size, 'image')} per pass"
    dress(axes, theme, title=title, x="MiB: weights (solid) + activations (hatched)", y="")
    _modes_down(axes, modes)
    axes.set_xlim(0, 1.35 * axes.get_xlim()[1])


def _drift(axes: Any, found: list[dict[str, Any]], modes: list[str], theme: Theme) -> None:
    """Mean and worst distance of direction over the images; a mode's two memory formats above each other."""
    shown = [mode for mode in modes if any(row["mode"] == mode for row in found)]
    if not shown:
        axes.set_visible(False)
        return
    for row in found:
        shade = colour(theme, _PLACE[row["mode"]])
        place = -shown.index(row["mode"]) + (0.17 if row["layout"] == FORMATS[0] else -0.17)
        ends = [max(1 - row[key], 1e-16) for key in ("cosine_mean", "cosine_min")]
        axes.plot(ends, [place, place], color=shade, ls=_DASH[row["layout"]], lw=2)
        axes.plot(ends[0], place, color=shade, marker="o", markersize=7)
        axes.plot(ends[1], place, color=shade, marker="|", markersize=13, markeredgewidth=2.5)
    dress(axes, theme, title="Drift from strict FP32 (less is better)", x="1 - cosine: mean (dot), worst (bar)", y="")
    axes.set_xscale("log")
    _modes_down(axes, shown)


def _modes_down(axes: Any, modes: list[str]) -> None:
    axes.set_yticks([-place for place in range(len(modes))], modes)
    axes.set_ylim(-len(modes) + 0.4, 0.6)
    axes.grid(False, axis="y")


def _legend(made: Any, axes: Any, modes: list[str], theme: Theme) -> None:
    """One legend below: colours are modes, dashes memory formats."""
    entries = [(colour(theme, _PLACE[mode]), "-", mode) for mode in modes]
    entries += [(theme.ink, _DASH[layout], layout) for layout in FORMATS]
    handles = [axes.plot([], [], color=shade, ls=dash, lw=2.4, label=label)[0] for shade, dash, label in entries]
    legend = made.legend(
        handles=handles, fontsize=11, frameon=False, handlelength=3.2, loc="outside lower center", ncols=len(entries)
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)
