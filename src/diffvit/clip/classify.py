"""Naming pictures from files, and the figure that shows them beside their likeliest labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure

from diffvit.clip.load import Clip
from diffvit.clip.zero_shot import Classifier, classify
from diffvit.reporting.style import LIGHT, figure, to_png

PER_FIGURE = 8
_LETTERS = 30  # of a label or a file's name in the figure


@dataclass(frozen=True)
class Named:
    """An image file, the square of it that the model sees, and its likeliest labels with probabilities, best first."""

    path: Path
    square: UInt8[np.ndarray, "3 s s"]
    top: list[tuple[str, float]]


def name_pictures(
    clip: Clip, classifier: Classifier, pictures: Sequence[tuple[Path, UInt8[np.ndarray, "3 s s"]]], top: int
) -> list[Named]:
    """The likeliest labels of each picture, given as the model sees it: ``top``, or all where there are fewer."""
    named: list[Named] = []
    for first in range(0, len(pictures), 32):
        part = pictures[first : first + 32]
        squares = torch.from_numpy(np.stack([square for _, square in part]))
        chances = classify(clip, classifier, clip.preprocessing.normalised(squares))
        values, places = chances.sort(dim=1, descending=True, stable=True)
        for (path, square), row, where in zip(part, values[:, :top].tolist(), places[:, :top].tolist(), strict=True):
            labels = [classifier.labels[place] for place in where]
            named.append(Named(path, square, list(zip(labels, row, strict=True))))
    return named


def figures(named: Sequence[Named], *, title: str, note: str) -> dict[str, bytes]:
    """``classify.png``, or several with :data:`PER_FIGURE` pictures each, as PNG bytes."""
    parts = [named[first : first + PER_FIGURE] for first in range(0, len(named), PER_FIGURE)]
    names = ["classify.png"] if len(parts) == 1 else [f"classify-{place:02}.png" for place in range(1, len(parts) + 1)]
    return {name: to_png(_drawn(part, title=title, note=note)) for name, part in zip(names, parts, strict=True)}


def _drawn(named: Sequence[Named], *, title: str, note: str) -> Figure:
    """Each picture as the model sees it, with a bar per label, a title and a note."""
    theme = LIGHT
    columns = 1 if len(named) == 1 else 2
    lines = -(-len(named) // columns)
    made = figure(theme, 6.4 * columns, 0.9 + 2.3 * lines)
    made.suptitle(title, x=0.01, ha="left", color=theme.ink, fontsize=13)
    made.supxlabel(note, x=0.01, ha="left", color=theme.ink, fontsize=8.5)
    grid = made.add_gridspec(lines, 2 * columns, width_ratios=[1, 1.5] * columns)
    for place, each in enumerate(named):
        line, column = divmod(place, columns)
        image = made.add_subplot(grid[line, 2 * column])
        image.imshow(each.square.transpose(1, 2, 0))
        image.set_title(_short(each.path.name), color=theme.ink, fontsize=9.5, loc="left")
        image.set_axis_off()
        bars = made.add_subplot(grid[line, 2 * column + 1])
        bars.set_facecolor(theme.paper)
        places = range(len(each.top))
        chances = [chance for _, chance in each.top]
        colours = [theme.series[0], *[theme.series[5]] * (len(chances) - 1)]
        bars.barh(places, [1.0] * len(chances), color=theme.faint, height=0.36, alpha=0.4)
        bars.barh(places, chances, color=colours, height=0.36)
        for at, (label, chance) in enumerate(each.top):
            # Above its bar: a long label then takes no room from the bars.
            bars.text(0, at - 0.27, f"{_short(label)}  {chance:.1%}", color=theme.ink, fontsize=9, va="bottom")
        bars.set_xlim(0, 1)
        bars.set_ylim(max(len(chances), 5) - 0.5, -0.8)
        bars.set_axis_off()
    return made


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
