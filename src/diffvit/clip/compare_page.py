"""The comparison of two models as files: a self-contained page, its plots, CSV tables; and its sentences."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from diffvit import __version__
from diffvit.clip.encode import image_number
from diffvit.clip.evaluate import Evaluation
from diffvit.clip.labelled import Labelled
from diffvit.clip.shifts import Shift
from diffvit.files import disk_faults, replace, to_csv, to_json
from diffvit.reporting.stats import wilson
from diffvit.reporting.style import LIGHT, Theme, dress, figure, plain, to_png
from diffvit.reporting.tables import data_note, percent

_THUMBNAIL = 160  # pixels
_PLOTTED = 40  # categories; of more, the ends of the order
_GREY = 6  # place in a theme's series
_COLUMNS = 3
Rows = Sequence[Mapping[str, Any]]


def write(out: Path, found: Evaluation, shifts: Sequence[Shift], command: str) -> list[Path]:
    """Write a comparison: page, figures as JSON, CSV tables and plots of categories, superclasses and shifts.

    Args:
        out: the folder.
        found: of :func:`diffvit.clip.evaluate.evaluate` with ``compare``.
        shifts: that were done.
        command: to repeat it.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    result = found.result
    one, two = (model["model"] for model in result["models"])
    files = {
        "compare.html": page(found, shifts, command).encode(),
        "compare.json": to_json(result),
        "categories.csv": to_csv(result["per_class"]),
        "categories.png": to_png(forest(in_order(result["per_class"]), one, two)),
    }
    if above := result["superclasses"]:
        files["superclasses.csv"] = to_csv([{**row, "classes": "; ".join(row["classes"])} for row in above])
        files["superclasses.png"] = to_png(forest(in_order(above), one, two, key="superclass"))
    if shifted := result["shifts"]:
        none = {"shift": "none", "severity": 0, "words": "", **shifted["original"]}
        files["shifts.csv"] = to_csv([none, *shifted["cells"]])
        files["shifts.png"] = to_png(shift_curves(shifted, one, two))
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]


def page(found: Evaluation, shifts: Sequence[Shift], command: str) -> str:
    """The comparison as HTML; the images in its galleries are read again."""
    result, labelled = found.result, found.labelled
    one, two = (model["model"] for model in result["models"])
    environment = Environment(loader=PackageLoader("diffvit.clip", "pages"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "points": lambda fraction: f"{100 * fraction:+.1f}"}
    rows, above, shifted = in_order(result["per_class"]), in_order(result["superclasses"]), result["shifts"]
    return environment.get_template("compare.html").render(
        **{key: value for key, value in result.items() if key not in ("per_class", "superclasses", "shifts")},
        version=__version__,
        statements=statements(result),
        plot=_uri(to_png(forest(rows, one, two))),
        categories=rows,
        note=decided_note(rows),
        superclasses=above,
        superclass_note=decided_note(above),
        superclass_plot=_uri(to_png(forest(above, one, two, key="superclass"))) if above else "",
        shifts=shifted,
        shift_statements=shift_statements(shifted, one, two) if shifted else [],
        shift_plot=_uri(to_png(shift_curves(shifted, one, two))) if shifted else "",
        shift_examples=_uri(to_png(shift_examples(shifts, found.shifted, 0))) if shifted else "",
        shown={number: _thumbnail(labelled.read(int(number))) for number in result["answers"]},
        command=command,
    )


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Categories or superclasses with pictures, the first model's best advantage first."""
    return sorted((row for row in rows if row["images"]), key=lambda row: -row["difference"])


def statements(result: Mapping[str, Any]) -> list[str]:
    """What may be said of the whole."""
    whole = result["overall"]
    one, two = (model["model"] for model in result["models"])
    low, high = (100 * whole[name] for name in ("low", "high"))
    verdict = "which pictures were drawn could turn it round"
    if whole["low"] > 0 or whole["high"] < 0:
        verdict = f"{one if whole['low'] > 0 else two} is the better of these two trained models here"
    said = [
        f"{one} minus {two}: {100 * whole['difference']:+.2f} points of accuracy (95% paired interval "
        f"{low:+.2f} to {high:+.2f}): {verdict}. The luck of training is not in the interval."
    ]
    said += [note] if (note := data_note(result["data"].removesuffix(" test").removesuffix(" train"))) else []
    if result["left_out"]:
        said.append(f"Left out, for the supervised model has no class for it: {', '.join(result['left_out'])}.")
    if result["unreadable"]:
        said.append(f"{result['unreadable']:,} pictures could not be read and count for neither model.")
    return said


def shift_statements(shifts: Mapping[str, Any], one: str, two: str) -> list[str]:
    """What may be said of the changes: which model loses more where, if that is decided."""
    said = []
    for each in shifts["kinds"]:
        lost = [100 * (shifts["original"][side] - each[side]) for side in ("first", "second")]
        verdict = "which of them loses more, these pictures cannot tell"
        if each.get("decided"):
            verdict = f"{two if each['low'] > 0 else one} loses more"
        said.append(f"{each['shift']}: {one} loses {lost[0]:.1f} points, {two} {lost[1]:.1f}: {verdict}.")
    return said


def decided_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows of a table are decided, and how many intervals would leave zero out by chance."""
    beyond, sure = sum(row["low"] > 0 or row["high"] < 0 for row in rows), sum(row["decided"] for row in rows)
    return (
        f"{beyond} of {len(rows)} intervals leave zero out, each by McNemar's exact test at 95%; up to "
        f"{0.05 * len(rows):.1f} would by chance alone. {sure} of {len(rows)} are decided: by Holm's correction for "
        "all of them together, with 95% none of these is chance."
    )


def _thumbnail(pixels: UInt8[np.ndarray, "3 h w"]) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    side = max(picture.size)
    scale = _THUMBNAIL / side if side > _THUMBNAIL else max(1, _THUMBNAIL // side)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    buffer = io.BytesIO()
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture.resize((width, height), way).save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


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
        shown[shift.name, shift.severity] = shift.apply(pixels, image_number(labelled.places[number]))
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
