"""Names beside the marks of a plot, placed so that they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from diffvit.reporting.style import all_letters

_POINTS = 190.0  # of a panel's height between its lowest and its highest mark
_ASIDE, _MARK = 14, 5  # points from a mark to its name, and from a mark's centre to its edge
_LINE, _WORD = 0.05, 0.3  # of a panel: the height of a name, and how near two marks are whose names might overlap
_OVER, _OUT = 2, 1  # a name over another or over a mark is worse than one that leaves its panel


@dataclass(frozen=True)
class Name:
    """Words for a mark: where it is in the data, and as the axes have it (log or not), the words' side and colour."""

    words: str
    spot: tuple[float, float]
    place: tuple[float, float]
    side: int
    shade: str


def name_all(axes: Axes, names: Sequence[Name]) -> list[Annotation]:
    """Write names right (side 1) or left (-1) of their marks, each with a line to it; none over another of its side.

    Args:
        axes: the panel, with its marks drawn.
        names: what to write.
    """
    across, height = (_extent(values) for values in zip(*(each.place for each in names), strict=True))
    made = []
    for side in dict.fromkeys(each.side for each in names):
        named = [each for each in names if each.side == side]
        for each, down in zip(named, _beside([each.place for each in named], across, height), strict=True):
            made.append(_write(axes, each, down))
    return made


def settle(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Annotation]]]) -> None:
    """Turn names to the other side of their marks where fewer clash so; to be called when all else is drawn."""
    with all_letters(figure):
        figure.draw_without_rendering()  # where the panels stand and how large words are is known only now
    for axes, names in panels:
        least, before = _clashes(axes, names), -1
        while least != before:
            before = least
            for each in names:
                _turn(each)
                found = _clashes(axes, names)
                if found < least:
                    least = found
                else:
                    _turn(each)


def _clashes(axes: Axes, names: Sequence[Annotation]) -> int:
    """How badly names stand: over each other, over a mark, or out of the panel."""
    boxes = [Text.get_window_extent(each) for each in names]
    radius = _MARK * axes.figure.dpi / 72
    marks = [
        Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
        for x, y in (axes.transData.transform(each.xy) for each in names)
    ]
    over = sum(one.overlaps(two) for one, two in combinations(boxes, 2))
    over += sum(box.overlaps(mark) for box in boxes for mark in marks)
    panel = axes.get_window_extent()
    return _OVER * over + _OUT * sum(box.x0 < panel.x0 or box.x1 > panel.x1 for box in boxes)


def _turn(name: Annotation) -> None:
    x, y = name.xyann
    name.xyann = (-x, y)
    name.set_horizontalalignment("left" if x < 0 else "right")


def _beside(spots: Sequence[tuple[float, float]], across: float, height: float) -> list[float]:
    """How far names go down from their spots so as not to overlap, in shares of the marks' whole height."""
    placed: list[tuple[float, float]] = []
    found = [0.0] * len(spots)
    for index in sorted(range(len(spots)), key=lambda index: -spots[index][1]):
        x, y = spots[index]
        at = min([y, *(other - _LINE * height for place, other in placed if abs(place - x) < _WORD * across)])
        placed.append((x, at))
        found[index] = (y - at) / height
    return found


def _write(axes: Axes, name: Name, down: float) -> Annotation:
    return axes.annotate(
        name.words,
        name.spot,
        (name.side * _ASIDE, -down * _POINTS),
        textcoords="offset points",
        fontsize=8,
        color=name.shade,
        ha="left" if name.side > 0 else "right",
        va="center",
        arrowprops={"arrowstyle": "-", "color": name.shade, "alpha": 0.5, "lw": 0.7, "shrinkA": 0, "shrinkB": _MARK},
    )


def _extent(values: Sequence[float]) -> float:
    return (max(values) - min(values)) or 1.0
