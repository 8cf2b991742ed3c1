"""The comparison of two models as files: a self-contained page, its plots, CSV tables; and its sentences."""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox, BboxBase
from PIL import Image

from diffvit import __version__
from diffvit.clip.encode import image_number
from diffvit.clip.evaluate import Evaluation
from diffvit.clip.labelled import Labelled
from diffvit.data.images import to_picture
from diffvit.data.shifts import Shift
from diffvit.files import to_csv, to_json
from diffvit.reporting.stats import wilson
from diffvit.reporting.style import LIGHT, all_letters, dress, figure, to_png
from diffvit.reporting.tables import data_note
from diffvit.reporting.texts import data_uri, render

_THUMBNAIL, _QUALITY = 160, 80  # pixels; of the JPEG of a larger picture
_PLOTTED = 40  # categories; of more, the ends of the order
_GREY = 6  # place in a theme's series
_COLUMNS = 3
_LETTERS = 26  # of a name in the scatter plot
Rows = Sequence[Mapping[str, Any]]
Point = tuple[float, float]


def comparison_files(found: Evaluation, shifts: Sequence[Shift], command: str) -> dict[str, bytes]:
    """A comparison's files by name, the page first: figures as JSON, tables as CSV, and plots, which are in it too.

    ``found`` is of :func:`diffvit.clip.evaluate.evaluate` with ``compare`` and these shifts; ``command`` repeats it.
    """
    result, labelled = found.result, found.labelled
    one, two = (model["model"] for model in result["models"])
    rows, above, shifted = in_order(result["per_class"]), in_order(result["superclasses"]), result["shifts"]
    files = {"compare.json": to_json(result), "categories.csv": to_csv(result["per_class"])}
    files["categories.png"] = to_png(forest(rows, one, two))
    files["scatter.png"] = to_png(scatter(rows, result["outliers"], one, two))
    if result["outliers"]:
        files["names.csv"] = to_csv(
            [
                {
                    "class": row["class"],
                    "images": row["images"],
                    **each,
                    "unknown_words": ", ".join(each["unknown_words"]),
                }
                for row in result["outliers"]
                for each in row["variants"]
            ]
        )
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
    able = sum(row["images"] > 5 for row in rows)  # with five pictures the smallest p-value is 1/16
    return (
        f"{beyond} of {len(rows)} intervals exclude zero (McNemar's exact test, 95%); at most {0.05 * able:.1f} "
        f"are expected to do so by chance. {sure} of {len(rows)} are decided, by Holm's correction for all of them."
    )


def _thumbnail(pixels: UInt8[np.ndarray, "3 h w"]) -> str:
    """As a data URI: smaller as JPEG, larger, for small pictures, as PNG."""
    picture = to_picture(pixels)
    side = max(picture.size)
    scale = _THUMBNAIL / side if side > _THUMBNAIL else max(1, _THUMBNAIL // side)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    buffer = io.BytesIO()
    if scale < 1:
        picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_QUALITY)
        return data_uri(buffer.getvalue(), "image/jpeg")
    picture.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def _shade(row: Mapping[str, Any]) -> str:
    """Grey where nothing is decided, else the better model's colour."""
    return LIGHT.series[_GREY if not row["decided"] else 0 if row["low"] > 0 else 1]


def forest(rows: Rows, one: str, two: str, *, key: str = "class") -> Figure:
    """Each row's difference of the two named models with its interval, points; ``key`` is what names a row."""
    half = _PLOTTED // 2
    shown = list(rows) if len(rows) <= _PLOTTED else [*rows[:half], *rows[-half:]]
    made = figure(LIGHT, 9.0, 1.5 + 0.27 * len(shown))
    axes = made.add_subplot()
    ends = "" if len(shown) == len(rows) else f"; the {half} at each end"
    title = f"By {'category' if key == 'class' else key}, with 95% intervals (grey: not decided){ends}"
    dress(axes, LIGHT, title=title, x=f"{one} minus {two}, points of accuracy", y="", grid=False)
    for place, row in enumerate(shown):
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=_shade(row), linewidth=2)
        axes.plot([100 * row["difference"]], [place], "o", color=_shade(row), markersize=5)
    axes.axvline(0, color=LIGHT.ink, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row[key][:30] for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color=LIGHT.faint)
    axes.spines["left"].set_visible(False)
    return made


def scatter(rows: Rows, named: Rows, one: str, two: str) -> Figure:
    """Each row's accuracy by the first model, upwards, against the second's; the rows ``named`` have their names."""
    made = figure(LIGHT, 7.6, 7.8)
    axes = made.add_subplot()
    title = "Each category's accuracy by both models\n(grey: not decided; larger: several in one place)"
    dress(axes, LIGHT, title=title, x=two, y=one)
    axes.axline((0, 0), slope=1, color=LIGHT.ink, linewidth=0.8, zorder=1)
    points = Counter((100 * row["second"], 100 * row["first"], _shade(row)) for row in rows)
    across, up, shades = zip(*points, strict=True)
    axes.scatter(
        across, up, [24 * min(math.sqrt(count), 8) for count in points.values()], shades, alpha=0.6, lw=0, zorder=2
    )
    low, high = min(*across, *up), max(*across, *up)
    shown = (low - max(2, (high - low) / 15), high + max(2, (high - low) / 15))
    axes.set(xlim=shown, ylim=shown, aspect="equal")
    axes.xaxis.set_major_formatter(PercentFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter())
    with all_letters(made):
        made.draw_without_rendering()  # the layout; names are put into it
    frame, taken = axes.get_window_extent(), list[Bbox]()
    dots = axes.transData.transform(list({(x, y) for x, y, _ in points}))
    names: dict[Point, list[str]] = {}
    for row in named:
        names.setdefault((100 * row["second"], 100 * row["first"]), []).append(row["class"][:_LETTERS])
    line = {"arrowstyle": "-", "color": LIGHT.series[_GREY], "linewidth": 0.6}
    edge = [withStroke(linewidth=2.5, foreground=LIGHT.paper)]  # over the diagonal
    style: Any = {"ha": "center", "va": "center", "fontsize": 9, "color": LIGHT.ink, "path_effects": edge}
    style |= {"parse_math": False}
    for point, mine in names.items():
        text = axes.annotate("\n".join(mine), point, (0, 0), textcoords="offset pixels", arrowprops=line, **style)
        text.set_in_layout(False)
        x, y = axes.transData.transform(point)
        wide, high = Text.get_window_extent(text).padded(2).size
        around = Bbox.from_bounds(x - wide / 2, y - high / 2, wide, high)
        if box := _room(around, frame, taken, dots):
            taken.append(box)
            text.set_position((box.x0 - around.x0, box.y0 - around.y0))
        else:
            text.remove()
    return made


def _room(around: Bbox, frame: BboxBase, taken: Sequence[Bbox], dots: Float64[np.ndarray, "n 2"]) -> Bbox | None:
    """Where in the frame a text around a point can go: over no taken place, near, over few dots; None for nowhere."""
    found: list[tuple[float, Bbox]] = []
    for reach, turn in itertools.product(range(12, 240, 8), range(16)):
        angle = math.tau * turn / 16
        right, up = math.cos(angle) * (reach + around.width / 2), math.sin(angle) * (reach + around.height / 2)
        box = around.translated(right, up)
        if frame.count_contains(box.corners()) == 4 and not any(box.overlaps(other) for other in taken):
            found.append((reach + 60 * box.padded(3).count_contains(dots), box))
    return min(found, key=lambda each: each[0])[1] if found else None


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
            axes.plot(across, [100 * cell[side] for cell in cells], "o-", color=shade, ms=4, label=label)
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
