"""The comparison of two models as files: a self-contained page, its plots, CSV tables; and its sentences."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from diffvit import __version__
from diffvit.clip.encode import image_number
from diffvit.clip.evaluate import Evaluation
from diffvit.clip.labelled import Labelled
from diffvit.data.images import to_picture
from diffvit.data.shifts import Shift
from diffvit.files import to_csv, to_json
from diffvit.reporting.stats import wilson
from diffvit.reporting.style import LIGHT, dress, figure, plain, to_png
from diffvit.reporting.tables import data_note
from diffvit.reporting.texts import render

_THUMBNAIL = 160  # pixels
_PLOTTED = 40  # categories; of more, the ends of the order
_GREY = 6  # place in a theme's series
_COLUMNS = 3
Rows = Sequence[Mapping[str, Any]]


def comparison_files(found: Evaluation, shifts: Sequence[Shift], command: str) -> dict[str, bytes]:
    """A comparison's files by name, the page first: figures as JSON, tables as CSV, and plots, which are in it too.

    ``found`` is of :func:`diffvit.clip.evaluate.evaluate` with ``compare`` and these shifts; ``command`` repeats it.
    """
    result, labelled = found.result, found.labelled
    one, two = (model["model"] for model in result["models"])
    rows, above, shifted = in_order(result["per_class"]), in_order(result["superclasses"]), result["shifts"]
    files = {"compare.json": to_json(result), "categories.csv": to_csv(result["per_class"])}
    files["categories.png"] = to_png(forest(rows, one, two))
    if above:
        files["superclasses.csv"] = to_csv(
            [{**row, "classes": "; ".join(row["classes"])} for row in result["superclasses"]]
        )
        files["superclasses.png"] = to_png(forest(above, one, two, key="superclass"))
    if shifted:
        none = {"shift": "none", "severity": 0, "words": "", **shifted["original"]}
        files["shifts.csv"] = to_csv([none, *shifted["cells"]])
        files["shifts.png"] = to_png(shift_curves(shifted, one, two))
    page = render(
        "clip/pages/compare.html",
        **{key: value for key, value in result.items() if key not in ("per_class", "superclasses")},
        version=__version__,
        statements=statements(result),
        plots=files,
        categories=rows,
        note=decided_note(rows),
        superclasses=above,
        superclass_note=decided_note(above),
        shift_statements=shift_statements(result),
        shift_examples=to_png(shift_examples(shifts, found.shifted, 0)) if shifted else b"",
        shown={number: _thumbnail(labelled.read(int(number))) for number in result["answers"]},
        command=command,
    )
    return {"compare.html": page.encode(), **files}


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Categories or superclasses with pictures, the first model's best advantage first."""
    return sorted((row for row in rows if row["images"]), key=lambda row: -row["difference"])


def statements(result: Mapping[str, Any]) -> list[str]:
    """What may be said of the whole."""
    note = data_note(result["data"].removesuffix(" test").removesuffix(" train"))
    return [line for line in render("clip/pages/statements.txt", **result, note=note).splitlines() if line]


def shift_statements(result: Mapping[str, Any]) -> list[str]:
    """What may be said of the shifts, if any: which model loses more where, if that is decided."""
    return render("clip/pages/shifts.txt", **result).splitlines()


def decided_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows of a table are decided, and how many intervals would exclude zero by chance."""
    beyond, sure = sum(row["low"] > 0 or row["high"] < 0 for row in rows), sum(row["decided"] for row in rows)
    return (
        f"{beyond} of {len(rows)} intervals exclude zero (McNemar's exact test, 95%); {0.05 * len(rows):.1f} are "
        f"expected to do so by chance. {sure} of {len(rows)} are decided, by Holm's correction for all of them."
    )


def _thumbnail(pixels: UInt8[np.ndarray, "3 h w"]) -> bytes:
    picture = to_picture(pixels)
    side = max(picture.size)
    scale = _THUMBNAIL / side if side > _THUMBNAIL else max(1, _THUMBNAIL // side)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    buffer = io.BytesIO()
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture.resize((width, height), way).save(buffer, "PNG")
    return buffer.getvalue()


def forest(rows: Rows, one: str, two: str, *, key: str = "class") -> Figure:
    """Each row's difference of the two named models with its interval, points; ``key`` is what names a row."""
    half = _PLOTTED // 2
    shown = list(rows) if len(rows) <= _PLOTTED else [*rows[:half], *rows[-half:]]
    made = figure(LIGHT, 9.0, 1.5 + 0.27 * len(shown))
    axes = made.add_subplot()
    ends = "" if len(shown) == len(rows) else f"; the {half} at each end"
    title = f"By {'category' if key == 'class' else key}, with 95% intervals (grey: not decided){ends}"
    dress(axes, LIGHT, title=title, x=plain(f"{one} minus {two}, points of accuracy"), y="", grid=False)
    for place, row in enumerate(shown):
        shade = LIGHT.series[_GREY if not row["decided"] else 0 if row["low"] > 0 else 1]
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=shade, linewidth=2)
        axes.plot([100 * row["difference"]], [place], "o", color=shade, markersize=5)
    axes.axvline(0, color=LIGHT.ink, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [plain(row[key])[:30] for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color=LIGHT.faint)
    axes.spines["left"].set_visible(False)
    return made


def shift_curves(shifts: Mapping[str, Any], one: str, two: str) -> Figure:
    """Accuracy of both against the severity, a panel per shift; the bands are Wilson's 95% intervals."""
    kinds = [each["shift"] for each in shifts["kinds"]]
    columns = min(_COLUMNS, len(kinds))
    lines = -(-len(kinds) // columns)
    made = figure(LIGHT, max(3.6 * columns, 7.2), 0.7 + 2.6 * lines)
    panels = made.subplots(lines, columns, sharey=True, squeeze=False).flat
    for kind, axes in zip(kinds, panels, strict=False):
        cells = [{"severity": 0, **shifts["original"]}, *(cell for cell in shifts["cells"] if cell["shift"] == kind)]
        across = [cell["severity"] for cell in cells]
        for shade, side, label in zip(LIGHT.series, ("first", "second"), (one, two), strict=False):
            found = [wilson(round(cell[side] * cell["images"]), cell["images"]) for cell in cells]
            low, high = [100 * each.low for each in found], [100 * each.high for each in found]
            axes.fill_between(across, low, high, color=shade, alpha=0.18, lw=0)
            axes.plot(across, [100 * cell[side] for cell in cells], "o-", color=shade, ms=4, label=plain(label))
        dress(axes, LIGHT, title=kind, x="severity (0: as it is)", y="images right")
        axes.set_xticks(across)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.label_outer()
    for axes in list(panels):  # what is left of the last line
        axes.set_visible(False)
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=LIGHT.ink)
    return made


def shift_examples(shifts: Sequence[Shift], labelled: Labelled, number: int) -> Figure:
    """One picture of these under every shift: a line per kind, a column per severity, the picture itself in front."""
    kinds = list(dict.fromkeys(shift.name for shift in shifts))
    columns = [0, *sorted({shift.severity for shift in shifts})]
    pixels, seed = labelled.read(number), image_number(labelled.places[number])
    shown = {(kind, 0): pixels for kind in kinds}
    shown |= {(shift.name, shift.severity): shift.apply(pixels, seed) for shift in shifts}
    made = figure(LIGHT, 1.35 * len(columns) + 0.8, 1.35 * len(kinds) + 0.5)
    panels = made.subplots(len(kinds), len(columns), squeeze=False)
    for (kind, severity), picture in shown.items():
        axes = panels[kinds.index(kind), columns.index(severity)]
        axes.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        if kind == kinds[0]:
            axes.set_title(f"severity {severity}" if severity else "as it is", color=LIGHT.ink, fontsize=10)
        if severity == 0:
            axes.set_ylabel(kind, color=LIGHT.ink, fontsize=10)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return made
