"""Many small maps in one figure: a line of cells per layer, each line one picture with one colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from diffvit.attention.capture import Record
from diffvit.reporting.style import Theme, figure

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
_CELL, _LEFT, _TOP, _RIGHT, _BOTTOM = 1.05, 2.35, 1.0, 1.0, 0.35  # inches: a cell's height, and the margins
_LINE = 1.1 * _CELL
_PICTURE = 1.25
_LAMBDA = "\N{GREEK SMALL LETTER LAMDA}"


@dataclass(frozen=True)
class Cells:
    """What the cells show.

    Args:
        layers: per layer, its cells from left to right.
        names: of the cells, the same in every layer.
        signed: whether zero is in the middle of the colours.
        every: so many cells belong together; a gap follows them.
    """

    layers: Sequence[Float[Tensor, "cells rows columns"]]
    names: Sequence[str]
    signed: bool
    every: int = 1


def mosaic(
    record: Record,
    cells: Cells,
    image: UInt8[Tensor, "3 h w"],
    *,
    query: tuple[int, int] | None,
    titles: tuple[str, str],
    theme: Theme,
) -> Figure:
    """The figure: titles, the picture at the left, and per layer its name, its cells and its colour bar.

    Axes are few, one or two per layer, for there may be 144 cells; places are worked out here, for the layout engine
    would take longer than the drawing.
    """
    rows, columns = record.grid
    wide = _CELL * columns / rows
    lefts = [1.08 * wide * at + 0.25 * wide * (at // cells.every) * (cells.every > 1) for at in range(len(cells.names))]
    breadth = lefts[-1] + wide
    width, height = max(_LEFT + breadth + _RIGHT, 7.0), _TOP + len(cells.layers) * _LINE + _BOTTOM
    made = figure(theme, width, height)
    made.set_layout_engine("none")
    _beside(made, image, query, record.grid, titles, theme)
    for line, values in enumerate(cells.layers):
        bottom = (height - _TOP - (line + 1) * _LINE + 0.05) / height
        axes = made.add_axes((_LEFT / width, bottom, breadth / width, _CELL / height))
        scale = _scale(values, cells.signed)
        for value, left in zip(values, lefts, strict=True):
            axes.imshow(scale.to_rgba(value.numpy()), interpolation="nearest", extent=(left, left + wide, _CELL, 0.0))
            if query is not None:
                axes.add_patch(_mark(query, (left, 0.0), (wide / columns, _CELL / rows), theme))
        if line == 0:
            for name, left in zip(cells.names, lefts, strict=True):
                axes.text(left, -0.06, name, fontsize=10, color=theme.ink, ha="left", va="bottom")
        axes.set(xlim=(0, breadth), ylim=(_CELL, 0), aspect="auto")
        axes.axis("off")
        axes.text(-0.12, _CELL / 2, _name(record, line), fontsize=10.5, color=theme.ink, ha="right", va="center")
        _bar(made, scale, ((_LEFT + breadth + 0.1) / width, bottom, 0.1 / width, _CELL / height), theme)
    return made


def _name(record: Record, line: int) -> str:
    lam = record.layers[line].lam
    return f"layer {record.blocks[line]}" + ("" if lam is None else f"\n{_LAMBDA} = {float(lam):.2f}")


def _scale(values: Tensor, signed: bool) -> ScalarMappable:
    most = max(float(values.abs().max()), 1e-12)
    return ScalarMappable(Normalize(-most if signed else 0.0, most), colormaps[DIVERGING if signed else SEQUENTIAL])


def _bar(made: Figure, scale: ScalarMappable, frame: tuple[float, float, float, float], theme: Theme) -> None:
    """A little lower than the cells, so that the numbers of two lines stay apart."""
    left, bottom, width, height = frame
    bar = made.colorbar(scale, cax=made.add_axes((left, bottom + 0.1 * height, width, 0.8 * height)))
    low, high = scale.get_clim()
    ticks = [float(low or 0), 0.0, float(high or 0)] if low else [0.0, float(high or 0)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=9, colors=theme.ink, length=2)


def _beside(
    made: Figure,
    image: UInt8[Tensor, "3 h w"],
    query: tuple[int, int] | None,
    grid: tuple[int, int],
    titles: tuple[str, str],
    theme: Theme,
) -> None:
    """The picture at the left, and the titles."""
    width, height = made.get_size_inches()
    tall = min(_PICTURE * image.shape[1] / image.shape[2], height - _TOP - 0.1)
    across = tall * image.shape[2] / image.shape[1]
    axes = made.add_axes((0.15 / width, (height - _TOP - tall - 0.02) / height, across / width, tall / height))
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axes.axis("off")
    if query is not None:
        axes.add_patch(_mark(query, (-0.5, -0.5), (image.shape[2] / grid[1], image.shape[1] / grid[0]), theme))
    made.text(0.15 / width, 1 - 0.28 / height, titles[0], fontsize=13, color=theme.ink, va="center")
    made.text(0.15 / width, 1 - 0.54 / height, titles[1], fontsize=10.5, color=theme.ink, va="center")


def _mark(query: tuple[int, int], origin: tuple[float, float], step: tuple[float, float], theme: Theme) -> Rectangle:
    corner = (origin[0] + query[1] * step[0], origin[1] + query[0] * step[1])
    return Rectangle(corner, *step, fill=False, edgecolor=theme.series[1], linewidth=1.6)
