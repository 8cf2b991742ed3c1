"""The pictures of a comparison: differences by category, accuracy under shifts, and what the shifts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diffvit.clip.evaluation.encoded import picture_number
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.shifts import Shift
from diffvit.reporting.stats import wilson
from diffvit.reporting.style import LIGHT, Theme, dress, figure, plain

_PLOTTED = 40  # categories; of more, the ends of the order
_GREY = 6  # place in a theme's series
_COLUMNS = 3

Rows = Sequence[Mapping[str, Any]]


def forest(rows: Rows, one: str, two: str, *, key: str = "class", theme: Theme = LIGHT) -> Figure:
    """Each row's difference with its interval, points.

    Args:
        rows: in order, each named by its ``key``.
        one: the first model.
        two: the second.
        key: ``class`` or ``superclass``.
        theme: colours.
    """
    half = _PLOTTED // 2
    shown = list(rows) if len(rows) <= _PLOTTED else [*rows[:half], *rows[-half:]]
    made = figure(theme, 9.0, 1.5 + 0.27 * len(shown))
    axes = made.add_subplot()
    title = "By category" if key == "class" else "By superclass"
    title += ", with 95% intervals (grey: not decided)"
    title += "" if len(shown) == len(rows) else f"; the {half} at each end"
    dress(axes, theme, title=title, x=plain(f"{one} minus {two}, points of accuracy"), y="", grid=False)
    for place, row in enumerate(shown):
        shade = theme.series[_GREY if not row["decided"] else 0 if row["low"] > 0 else 1]
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=shade, linewidth=2)
        axes.plot([100 * row["difference"]], [place], "o", color=shade, markersize=5)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [plain(row[key])[:30] for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color=theme.faint)
    axes.spines["left"].set_visible(False)
    return made


def shift_curves(shifts: Mapping[str, Any], one: str, two: str, theme: Theme = LIGHT) -> Figure:
    """Accuracy of both against the severity, a panel per shift; the bands are Wilson's 95% intervals."""
    kinds = [each["shift"] for each in shifts["kinds"]]
    columns = min(_COLUMNS, len(kinds))
    lines = -(-len(kinds) // columns)
    made = figure(theme, max(3.6 * columns, 7.2), 0.7 + 2.6 * lines)
    panels = made.subplots(lines, columns, sharey=True, squeeze=False).flat
    for kind, axes in zip(kinds, panels, strict=False):
        cells = [{"severity": 0, **shifts["original"]}, *(cell for cell in shifts["cells"] if cell["shift"] == kind)]
        across = [cell["severity"] for cell in cells]
        for place, (side, label) in enumerate((("first", one), ("second", two))):
            found = [wilson(round(cell[side] * cell["images"]), cell["images"]) for cell in cells]
            shade = theme.series[place]
            axes.fill_between(
                across,
                [100 * each.low for each in found],
                [100 * each.high for each in found],
                color=shade,
                alpha=0.18,
                lw=0,
            )
            axes.plot(across, [100 * cell[side] for cell in cells], "o-", color=shade, ms=4, label=plain(label))
        dress(axes, theme, title=kind, x="severity (0: as it is)", y="images right")
        axes.set_xticks(across)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.label_outer()
    for axes in list(panels):  # what is left of the last line
        axes.set_visible(False)
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=theme.ink)
    return made


def shift_examples(shifts: Sequence[Shift], labelled: Labelled, number: int, theme: Theme = LIGHT) -> Figure:
    """One picture under every shift: a line per kind, a column per severity, the picture itself in front.

    Args:
        shifts: what to show.
        labelled: where the picture is from.
        number: which one.
        theme: colours.
    """
    kinds = list(dict.fromkeys(shift.name for shift in shifts))
    severities = sorted({shift.severity for shift in shifts})
    pixels = labelled.read(number)
    shown: dict[tuple[str, int], UInt8[np.ndarray, "3 h w"]] = {(kind, 0): pixels for kind in kinds}
    for shift in shifts:
        shown[shift.name, shift.severity] = shift.apply(pixels, picture_number(labelled.places[number]))
    columns = [0, *severities]
    made = figure(theme, 1.35 * len(columns) + 0.8, 1.35 * len(kinds) + 0.5)
    panels = made.subplots(len(kinds), len(columns), squeeze=False)
    for line, kind in enumerate(kinds):
        for column, severity in enumerate(columns):
            axes = panels[line, column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if (kind, severity) in shown:
                axes.imshow(shown[kind, severity].transpose(1, 2, 0), interpolation="nearest")
            if line == 0:
                axes.set_title(f"severity {severity}" if severity else "as it is", color=theme.ink, fontsize=10)
            if column == 0:
                axes.set_ylabel(kind, color=theme.ink, fontsize=10)
    return made
