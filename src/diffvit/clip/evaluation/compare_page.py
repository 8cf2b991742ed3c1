"""The comparison as a self-contained page, a CSV table and a plot."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from diffvit import __version__
from diffvit.clip.evaluation.compare import Comparison
from diffvit.clip.evaluation.compare_plots import forest, shift_curves, shift_examples
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.shifts import Shift
from diffvit.reporting.style import to_png
from diffvit.reporting.tables import data_note, percent

DECIDED = {True: "yes", False: "no"}
_NAMED = 4  # classes in a superclass's row
_THUMBNAIL = 160  # pixels


def page_of(found: Comparison, labelled: Labelled, shifts: Sequence[Shift], command: str) -> str:
    """The page as HTML.

    Args:
        found: of :func:`diffvit.clip.evaluation.compare.compare`.
        labelled: its pictures, of which those in the galleries are read again.
        shifts: that were done.
        command: to repeat it.
    """
    result = found.result
    one, two = (model["model"] for model in result["models"])
    environment = Environment(
        loader=PackageLoader("diffvit.clip.evaluation", "."), autoescape=True, undefined=StrictUndefined
    )
    headings = (f"Right by {one}, missed by {two}", f"Right by {two}, missed by {one}")
    galleries = [
        (heading, [_card(place, result, labelled) for place in places])
        for heading, places in zip(headings, result["galleries"], strict=True)
    ]
    rows, above = in_order(result["per_class"]), in_order(result["superclasses"])
    return environment.get_template("compare.html").render(
        title=f"{one} beside {two}",
        subtitle=f"{result['data']}, {result['images']:,} pictures; diffvit {__version__}",
        statements=statements(result),
        models=result["models"],
        figures=_figures(result["models"]),
        plot=_uri(to_png(forest(rows, one, two))),
        categories=[[row["class"], *_cells(row)] for row in rows],
        note=decided_note(rows),
        superclasses=[[row["superclass"], _members(row["classes"]), *_cells(row)] for row in above],
        superclass_note=decided_note(above),
        superclass_plot=_uri(to_png(forest(above, one, two, key="superclass"))) if above else "",
        no_superclasses=result["no_superclasses"],
        templates=[[each["name"], f"{each['count']}", percent(each["accuracy"])] for each in result["templates"]],
        shifts=_shifts(found, shifts) if shifts else None,
        galleries=galleries,
        command=command,
    )


def _shifts(found: Comparison, shifts: Sequence[Shift]) -> dict[str, Any]:
    """What the page says of the pictures' changes."""
    result = found.result["shifts"]
    one, two = (model["model"] for model in found.result["models"])
    original = result["original"]
    before = ["none", *(percent(original[name], 1) for name in ("first", "second")), _points(original["difference"])]
    rows = [
        [
            each["shift"],
            *(percent(each[name], 1) for name in ("first", "second")),
            *(_points(each[name]) for name in ("difference", "change")),
            f"{_points(each['low'])} to {_points(each['high'])}",
        ]
        for each in result["kinds"]
    ]
    return {
        "images": f"{result['images']:,}",
        "statements": shift_statements(result, one, two),
        "curves": _uri(to_png(shift_curves(result, one, two))),
        "examples": _uri(to_png(shift_examples(shifts, found.shifted, 0))),
        "rows": [[*before, "", ""], *rows],
        "words": [(shift.name, shift.severity, shift.words) for shift in shifts],
    }


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


def _figures(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    accuracy = [f"{percent(m['accuracy'])} [{percent(m['low'], 1)} to {percent(m['high'], 1)}]" for m in models]
    others = {"top-5": "top5", "calibration error": "calibration_error", "mean confidence": "mean_confidence"}
    others = {name: key for name, key in others.items() if models[0][key] is not None}
    return [
        ("accuracy", accuracy),
        *((name, [percent(model[key]) for model in models]) for name, key in others.items()),
        ("pictures", [f"{model['images']:,}" for model in models]),
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['images']:,}",
        *(percent(row[name], 1) for name in ("first", "second")),
        _points(row["difference"]),
        f"{_points(row['low'])} to {_points(row['high'])}",
        *(f"{row[name]:,}" for name in ("only_first", "only_second")),
        DECIDED[row["decided"]],
    ]


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _members(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return ", ".join(classes[:_NAMED]) + more


def decided_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows of a table are decided, and how many intervals would leave zero out by chance."""
    beyond, sure = sum(row["low"] > 0 or row["high"] < 0 for row in rows), sum(row["decided"] for row in rows)
    return (
        f"{beyond} of {len(rows)} intervals leave zero out, each by McNemar's exact test at 95%; up to "
        f"{0.05 * len(rows):.1f} would by chance alone. {sure} of {len(rows)} are decided: by Holm's correction for "
        "all of them together, with 95% none of these is chance."
    )


def _card(place: int, result: Mapping[str, Any], labelled: Labelled) -> dict[str, Any]:
    said = result["answers"][str(place)]
    picture = Image.fromarray(np.ascontiguousarray(labelled.read(place).transpose(1, 2, 0)))
    side = max(picture.size)
    scale = _THUMBNAIL / side if side > _THUMBNAIL else max(1, _THUMBNAIL // side)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    buffer = io.BytesIO()
    picture.resize((size[0], size[1]), way).save(buffer, "PNG")
    return {"shown": _uri(buffer.getvalue()), "truth": said["class"], "picture": said["picture"], "top": said["top"]}


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
