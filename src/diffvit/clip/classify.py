"""Naming pictures from files, and the figure that shows them beside their likeliest labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure

from diffvit.clip.load import Clip
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.zero_shot import Classifier, classify
from diffvit.data.images import decode
from diffvit.errors import InputError
from diffvit.reporting.style import LIGHT, Theme, figure

PER_FIGURE = 8
_LETTERS = 30  # of a label or a file's name in the figure


@dataclass(frozen=True)
class Picture:
    """An image file and the square of it that the model sees."""

    path: Path
    square: UInt8[np.ndarray, "3 s s"]


@dataclass(frozen=True)
class Named:
    """A picture and its likeliest labels with their probabilities, best first."""

    picture: Picture
    top: list[tuple[str, float]]

    def values(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"image": str(self.picture.path), "top": [list(pair) for pair in self.top]}


def read_pictures(paths: Sequence[Path], preprocessing: Preprocessing) -> tuple[list[Picture], list[InputError]]:
    """The pictures that can be read, and a fault for each that cannot."""
    pictures: list[Picture] = []
    faults: list[InputError] = []
    for path in paths:
        try:
            pictures.append(Picture(path, preprocessing.square(decode(path, name=str(path)))))
        except InputError as fault:
            faults.append(fault)
    return pictures, faults


def name_pictures(clip: Clip, classifier: Classifier, pictures: Sequence[Picture], top: int = 5) -> list[Named]:
    """The likeliest labels of each picture.

    Args:
        clip: the model.
        classifier: made with it.
        pictures: squared by its preprocessing.
        top: how many labels; all where there are fewer.
    """
    named: list[Named] = []
    for first in range(0, len(pictures), 32):
        part = pictures[first : first + 32]
        squares = torch.from_numpy(np.stack([picture.square for picture in part]))
        chances = classify(clip, classifier, clip.preprocessing.normalised(squares))
        values, places = chances.sort(dim=1, descending=True, stable=True)
        for picture, row, where in zip(part, values[:, :top].tolist(), places[:, :top].tolist(), strict=True):
            labels = [classifier.labels[place] for place in where]
            named.append(Named(picture, list(zip(labels, row, strict=True))))
    return named


def draw_named(named: Sequence[Named], *, title: str, note: str, theme: Theme = LIGHT) -> Figure:
    """Each picture as the model sees it, with a bar per label.

    Args:
        named: at most :data:`PER_FIGURE`.
        title: what model it is.
        note: the small line under it.
        theme: colours.
    """
    columns = 1 if len(named) == 1 else 2
    lines = -(-len(named) // columns)
    made = figure(theme, 6.4 * columns, 0.9 + 2.3 * lines)
    made.suptitle(_plain(title), x=0.01, ha="left", color=theme.ink, fontsize=13)
    made.supxlabel(_plain(note), x=0.01, ha="left", color=theme.ink, fontsize=8.5)
    grid = made.add_gridspec(lines, 2 * columns, width_ratios=[1, 1.5] * columns)
    for place, each in enumerate(named):
        line, column = divmod(place, columns)
        image = made.add_subplot(grid[line, 2 * column])
        image.imshow(each.picture.square.transpose(1, 2, 0))
        image.set_title(_short(each.picture.path.name), color=theme.ink, fontsize=9.5, loc="left")
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
    return _plain(text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…")


def _plain(text: str) -> str:
    """Dollar signs as letters: in pairs they would start a formula."""
    return text.replace("$", r"\$")
