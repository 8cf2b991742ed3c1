"""The comparison as a self-contained page, a CSV table and a plot."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from diffvit import __version__
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.reporting.style import LIGHT, Theme, figure, to_png
from diffvit.reporting.tables import data_note, percent

_PLOTTED = 40  # categories; of more, the ends of the order
_THUMBNAIL = 160  # pixels


def page_of(result: Mapping[str, Any], labelled: Labelled, command: str) -> str:
    """The page as HTML.

    Args:
        result: of :func:`diffvit.clip.evaluation.compare.compare`.
        labelled: its pictures, of which those in the galleries are read again.
        command: to repeat it.
    """
    one, two = (model["model"] for model in result["models"])
    environment = Environment(
        loader=PackageLoader("diffvit.clip.evaluation", "."), autoescape=True, undefined=StrictUndefined
    )
    headings = (f"Right by {one}, missed by {two}", f"Right by {two}, missed by {one}")
    galleries = [
        (heading, [_card(place, result, labelled) for place in places])
        for heading, places in zip(headings, result["galleries"], strict=True)
    ]
    rows = in_order(result["per_class"])
    return environment.get_template("compare.html").render(
        title=f"{one} beside {two}",
        subtitle=f"{result['data']}, {result['images']:,} pictures; diffvit {__version__}",
        statements=statements(result),
        models=result["models"],
        figures=_figures(result["models"]),
        plot=_uri(to_png(forest(rows, one, two))),
        categories=[_category(row) for row in rows],
        note=_note(rows),
        templates=[[each["name"], f"{each['count']}", percent(each["accuracy"])] for each in result["templates"]],
        galleries=galleries,
        command=command,
    )


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Categories with pictures, the first model's best advantage first."""
    return sorted((row for row in rows if row["images"]), key=lambda row: (-row["difference"], row["class"]))


def statements(result: Mapping[str, Any]) -> list[str]:
    """What may be said of the whole."""
    whole = result["overall"]
    one, two = (model["model"] for model in result["models"])
    low, high = (100 * whole[name] for name in ("low", "high"))
    verdict = "which pictures were drawn could turn it round"
    if whole["low"] > 0 or whole["high"] < 0:
        verdict = f"{one if whole['low'] > 0 else two} is the better of these two trained models here"
    said = [
        f"{one} minus {two}: {100 * whole['difference']:+.2f} points of accuracy (95% paired bootstrap interval "
        f"{low:+.2f} to {high:+.2f}): {verdict}. The luck of training is not in the interval."
    ]
    said += [note] if (note := data_note(result["data"].removesuffix(" test").removesuffix(" train"))) else []
    if result["left_out"]:
        said.append(f"Left out, for the supervised model has no class for it: {', '.join(result['left_out'])}.")
    if result["unreadable"]:
        said.append(f"{result['unreadable']:,} pictures could not be read and count for neither model.")
    return said


def forest(rows: Sequence[Mapping[str, Any]], one: str, two: str, theme: Theme = LIGHT) -> Figure:
    """Each category's difference with its interval, points."""
    half = _PLOTTED // 2
    shown = list(rows) if len(rows) <= _PLOTTED else [*rows[:half], *rows[-half:]]
    made = figure(theme, 9.0, 1.5 + 0.27 * len(shown))
    axes = made.add_subplot()
    axes.set_facecolor(theme.paper)
    for place, row in enumerate(shown):
        decided = 0 if row["low"] > 0 else 1 if row["high"] < 0 else 6
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=theme.series[decided], linewidth=2)
        axes.plot([100 * row["difference"]], [place], "o", color=theme.series[decided], markersize=5)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row["class"].replace("$", r"\$")[:30] for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color=theme.faint)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"{one} minus {two}, points of accuracy".replace("$", r"\$"), color=theme.ink)
    title = "By category, with 95% intervals (grey: they hold zero)"
    axes.set_title(title if len(shown) == len(rows) else f"{title}; the {half} at each end", loc="left", fontsize=11)
    return made


def _figures(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    accuracy = [f"{percent(m['accuracy'])} [{percent(m['low'], 1)} to {percent(m['high'], 1)}]" for m in models]
    others = {"top-5": "top5", "calibration error": "calibration_error", "mean confidence": "mean_confidence"}
    return [
        ("accuracy", accuracy),
        *((name, [percent(model[key]) for model in models]) for name, key in others.items()),
        ("pictures", [f"{model['images']:,}" for model in models]),
    ]


def _category(row: Mapping[str, Any]) -> list[str]:
    return [
        row["class"],
        f"{row['images']:,}",
        *(percent(row[name], 1) for name in ("first", "second")),
        f"{100 * row['difference']:+.1f}",
        f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
        *(f"{row[name]:,}" for name in ("only_first", "only_second")),
    ]


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    beyond = sum(row["low"] > 0 or row["high"] < 0 for row in rows)
    return (
        f"{beyond} of {len(rows)} intervals leave zero out; {0.05 * len(rows):.1f} would by chance alone. "
        "Percentile bootstrap over the category's pictures, pairs together."
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
