"""One picture's attention as figures: every head's map, the three of a differential head, overlays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffvit.attention.capture import Record
from diffvit.attention.mosaic import Cells, mosaic
from diffvit.attention.overlay import draw_overlay, marked
from diffvit.reporting.style import LIGHT, Theme, figure

_LAMBDA, _MINUS = "\N{GREEK SMALL LETTER LAMDA}", "\N{MINUS SIGN}"


def maps_grid(
    record: Record,
    index: int,
    image: UInt8[Tensor, "3 h w"],
    *,
    kind: str = "effective",
    query: tuple[int, int] | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Every head of every captured layer, as the pooled token or one patch reads the patches.

    A row per layer, with a colour scale of its own: layers differ too much for one. Signed maps are drawn in two hues
    with white at zero.

    Args:
        record: what was captured.
        index: which image of it.
        image: that image.
        kind: ``effective``, ``positive`` or ``negative``.
        query: row and column of the patch that asks; None for what the model pools.
        title: of the figure.
        theme: colours.
    """
    layers = [record.to_patches(at, kind, query)[index] for at in range(len(record.layers))]
    heads = [f"head {head}" for head in range(layers[0].shape[0])]
    signed = any(float(layer.min()) < 0 for layer in layers)
    said = f"{_asker(record, query)} reads; each layer has its own scale"
    said += ", white is zero" if signed else ""
    cells = Cells(layers, heads, signed)
    return mosaic(record, cells, image, query=query, titles=(title or "Attention maps", said), theme=theme)


def differential_panels(
    record: Record,
    index: int,
    image: UInt8[Tensor, "3 h w"],
    *,
    query: tuple[int, int] | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Each differential head in three: the first map A1, what is subtracted, lambda A2, and what is left.

    All three of a layer share one scale around zero, so that the third is the first minus the second to the eye too.
    Arguments as :func:`maps_grid`; the record is of differential attention.
    """
    layers = []
    for at, maps in enumerate(record.layers):
        assert maps.lam is not None
        taken = float(maps.lam) * record.to_patches(at, "negative", query)[index]
        parts = (
            record.to_patches(at, "positive", query)[index],
            taken,
            record.to_patches(at, "effective", query)[index],
        )
        layers.append(torch.stack(parts, dim=1).flatten(0, 1))  # head by head, three each
    heads = range(layers[0].shape[0] // 3)
    names = [name for head in heads for name in (f"head {head}: A1", f"{_LAMBDA} A2", f"A1 {_MINUS} {_LAMBDA} A2")]
    said = f"{_asker(record, query)} reads; one scale per layer, white is zero"
    cells = Cells(layers, names, signed=True, every=3)
    return mosaic(record, cells, image, query=query, titles=(title or "Differential attention", said), theme=theme)


def overlays(
    image: UInt8[Tensor, "3 h w"],
    heats: Sequence[tuple[str, Float[Tensor, "rows columns"]]],
    *,
    masks: Sequence[tuple[str, Bool[Tensor, "rows columns"]]] = (),
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """The image, each heat over it with its colour bar, and what each mask keeps.

    Args:
        image: the picture.
        heats: (name, heat per patch).
        masks: (name, patches to keep): the others are darkened.
        title: of the figure.
        theme: colours.
    """
    count = 1 + len(heats) + len(masks)
    high = 2.7 * image.shape[1] / image.shape[2]
    made = figure(theme, 3.1 * count, high + 1.1)
    panels: Sequence[Axes] = list(np.atleast_1d(made.subplots(1, count)))
    _picture(panels[0], image, "image", theme)
    for axes, (name, heat) in zip(panels[1:], heats, strict=False):
        drawn = draw_overlay(axes, image, heat)
        _name(axes, name, theme)
        bar = made.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.tick_params(labelsize=9, colors=theme.ink)
        bar.set_label("attention per patch", color=theme.ink, fontsize=9.5)
    for axes, (name, mask) in zip(panels[1 + len(heats) :], masks, strict=True):
        _picture(axes, marked(image, mask), name, theme)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=theme.ink)
    return made


def kept_by_heads(
    image: UInt8[Tensor, "3 h w"],
    masks: Bool[Tensor, "heads rows columns"],
    *,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """What each head's mask keeps of the picture, as DINO shows its heads (arXiv 2104.14294, figure 3)."""
    columns = min(6, len(masks))
    lines = -(-len(masks) // columns)
    high = 2.1 * image.shape[1] / image.shape[2]
    made = figure(theme, max(2.1 * columns, 4.2), (high + 0.35) * lines + 0.5)
    panels = np.atleast_1d(made.subplots(lines, columns)).ravel()
    for head, axes in enumerate(panels):
        axes.axis("off")
        if head < len(masks):
            _picture(axes, marked(image, masks[head]), f"head {head}", theme)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=theme.ink)
    return made


def contact_sheet(
    pictures: Sequence[tuple[str, UInt8[Tensor, "3 h w"], Float[Tensor, "rows columns"]]],
    *,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Many pictures, each beside its heat: (caption, image, heat)."""
    columns = min(4, len(pictures))
    lines = -(-len(pictures) // columns)
    made = figure(theme, 3.4 * columns, 2.05 * lines + 0.6)
    panels = np.atleast_1d(made.subplots(lines, 2 * columns)).reshape(lines, 2 * columns)
    for place in range(lines * columns):
        pair = panels[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        for axes in pair:
            axes.axis("off")
        if place < len(pictures):
            caption, image, heat = pictures[place]
            pair[0].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            draw_overlay(pair[1], image, heat)
            pair[0].set_title(caption, fontsize=10, color=theme.ink, loc="left")
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=theme.ink)
    return made


def _picture(axes: Axes, image: Tensor, name: str, theme: Theme) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.axis("off")
    _name(axes, name, theme)


def _name(axes: Axes, name: str, theme: Theme) -> None:
    axes.set_title(name, fontsize=11, color=theme.ink, loc="left")


def _asker(record: Record, query: tuple[int, int] | None) -> str:
    if query is not None:
        return f"What patch {query[0]},{query[1]} (outlined)"
    return "What [CLS]" if record.pool == "cls" else "What the patches, on average,"
