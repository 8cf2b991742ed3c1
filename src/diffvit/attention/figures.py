"""Figures of attention: every head's map, the three maps of a differential head, overlays, and what heads do.

One image: :func:`maps_grid`, :func:`differential_panels`, :func:`overlays`, :func:`kept_by_heads`. Many images:
:func:`contact_sheet`. The model as a whole: :func:`lambda_figure`, :func:`heads_figure`, :func:`similarity_figure`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from diffvit.attention.capture import Record
from diffvit.attention.statistics import HeadStatistics
from diffvit.reporting.style import LIGHT, colour, dress, figure

SEQUENTIAL, DIVERGING, OVERLAY = "viridis", "RdBu_r", "inferno"
_PALE = 0.55  # contrast of the image that is left under an overlay
_DARK = 0.22  # brightness of the image where a mask keeps nothing
_ACROSS = 6  # overlays in a line
_MOST = 10  # patches a side whose similarity maps one figure shows
_CELL, _LEFT, _TOP, _RIGHT, _BOTTOM = 1.05, 2.35, 1.0, 1.0, 0.35  # inches: height of a map, and the margins
_LINE = 1.1 * _CELL
_PICTURE = 1.25
_LAMBDA, _MINUS = "\N{GREEK SMALL LETTER LAMDA}", "\N{MINUS SIGN}"


def maps_grid(
    record: Record,
    index: int,
    image: UInt8[Tensor, "3 h w"],
    *,
    kind: str = "effective",
    query: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """Attention to the patches in every head of every captured layer, of [CLS], the mean patch or one patch.

    A row per layer, with a colour scale of its own: layers differ too much for one. A line in it shows where attention
    to all keys alike lies. Signed maps are drawn in two hues with white at zero.

    Args:
        record: what was captured.
        index: which image of it.
        image: that image.
        kind: ``effective``, ``positive`` or ``negative``.
        query: row and column of the query patch; None for what the model pools.
        title: of the figure.
    """
    layers = [record.to_patches(at, kind, query)[index] for at in range(len(record.layers))]
    heads = [f"head {head}" for head in range(layers[0].shape[0])]
    signed = any(float(layer.min()) < 0 for layer in layers)
    said = f"{_queried(record, query)}; each layer has its own scale, its line: uniform attention"
    said += ", white is zero" if signed else ""
    titles = (title or "Attention maps", said)
    return _mosaic(record, layers, heads, image, signed=signed, query=query, titles=titles, kind=kind)


def differential_panels(
    record: Record, index: int, image: UInt8[Tensor, "3 h w"], *, query: tuple[int, int] | None = None, title: str = ""
) -> Figure:
    """Each differential head in three: the first map A1, what is subtracted, lambda A2, and what is left.

    All three of a layer share one scale around zero, so that the third is the first minus the second to the eye too.
    Arguments as :func:`maps_grid`; the record is of differential attention.
    """
    layers = []
    for at in range(len(record.layers)):
        left, first = (record.to_patches(at, kind, query)[index] for kind in ("effective", "positive"))
        parts = (first, first - left, left)
        layers.append(torch.stack(parts, dim=1).flatten(0, 1))  # head by head, three each
    heads = range(layers[0].shape[0] // 3)
    names = [name for head in heads for name in (f"head {head}: A1", f"{_LAMBDA} A2", f"A1 {_MINUS} {_LAMBDA} A2")]
    said = f"{_queried(record, query)}; one scale per layer, white is zero, the line: uniform A1"
    titles = (title or "Differential attention", said)
    return _mosaic(record, layers, names, image, signed=True, query=query, titles=titles, kind="positive", every=3)


def _mosaic(
    record: Record,
    layers: Sequence[Float[Tensor, "cells rows columns"]],
    names: Sequence[str],
    image: UInt8[Tensor, "3 h w"],
    *,
    signed: bool,
    query: tuple[int, int] | None,
    titles: tuple[str, str],
    kind: str,
    every: int = 1,
) -> Figure:
    """The figure: titles, the image at the left, and per layer its name, its named maps and its colour bar.

    A gap follows each ``every`` maps; where ``signed``, zero is in the middle of the colours. ``kind`` is the map whose
    uniform level the colour bars mark.
    There may be 144 maps, so a layer has one axes for all of its maps, and positions are computed here: matplotlib's
    layout engine would take longer than the drawing.
    """
    rows, columns = record.grid
    wide = _CELL * columns / rows
    lefts = [1.08 * wide * at + 0.25 * wide * (at // every) * (every > 1) for at in range(len(names))]
    breadth = lefts[-1] + wide
    width, height = max(_LEFT + breadth + _RIGHT, 7.0), _TOP + len(layers) * _LINE + _BOTTOM
    made = figure(LIGHT, width, height)
    made.set_layout_engine("none")
    _draw_image(made, image, query, record.grid, titles)
    for line, values in enumerate(layers):
        bottom = (height - _TOP - (line + 1) * _LINE + 0.05) / height
        axes = made.add_axes((_LEFT / width, bottom, breadth / width, _CELL / height))
        uniform = record.uniform(line, kind)
        scale = _scale(values, signed, uniform)
        for value, left in zip(values, lefts, strict=True):
            axes.imshow(scale.to_rgba(value.numpy()), interpolation="nearest", extent=(left, left + wide, _CELL, 0.0))
            if query is not None:
                axes.add_patch(_outline(query, (left, 0.0), (wide / columns, _CELL / rows)))
        if line == 0:
            for name, left in zip(names, lefts, strict=True):
                axes.text(left, -0.06, name, fontsize=10, color=LIGHT.ink, ha="left", va="bottom")
        axes.set(xlim=(0, breadth), ylim=(_CELL, 0), aspect="auto")
        axes.axis("off")
        lam = record.lam(line)
        name = f"layer {record.blocks[line]}" + ("" if lam is None else f"\n{_LAMBDA} = {lam:.2f}")
        axes.text(-0.12, _CELL / 2, name, fontsize=10.5, color=LIGHT.ink, ha="right", va="center")
        bar = _colour_bar(made, scale, ((_LEFT + breadth + 0.1) / width, bottom, 0.1 / width, _CELL / height))
        mark_level(bar, uniform)
    return made


def _scale(values: Tensor, signed: bool, uniform: float) -> ScalarMappable:
    most = max(float(values.abs().max()), 2 * uniform)
    return ScalarMappable(Normalize(-most if signed else 0.0, most), colormaps[DIVERGING if signed else SEQUENTIAL])


def _colour_bar(made: Figure, scale: ScalarMappable, frame: tuple[float, float, float, float]) -> Colorbar:
    """A little lower than the cells, so that the numbers of two lines stay apart."""
    left, bottom, width, height = frame
    bar = made.colorbar(scale, cax=made.add_axes((left, bottom + 0.1 * height, width, 0.8 * height)))
    low, high = scale.get_clim()
    ticks = [float(low or 0), 0.0, float(high or 0)] if low else [0.0, float(high or 0)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=9, colors=LIGHT.ink, length=2)
    return bar


def mark_level(bar: Colorbar, level: float) -> None:
    """A line across a colour bar, seen on dark and on light colours: where uniform attention lies."""
    for shade, width in (("white", 3.0), ("black", 1.2)):
        bar.ax.axhline(level, color=shade, lw=width)


def _draw_image(
    made: Figure,
    image: UInt8[Tensor, "3 h w"],
    query: tuple[int, int] | None,
    grid: tuple[int, int],
    titles: tuple[str, str],
) -> None:
    """The image at the left, and the titles."""
    width, height = made.get_size_inches()
    tall = min(_PICTURE * image.shape[1] / image.shape[2], height - _TOP - 0.1)
    across = tall * image.shape[2] / image.shape[1]
    axes = made.add_axes((0.15 / width, (height - _TOP - tall - 0.02) / height, across / width, tall / height))
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axes.axis("off")
    if query is not None:
        axes.add_patch(_outline(query, (-0.5, -0.5), (image.shape[2] / grid[1], image.shape[1] / grid[0])))
    made.text(0.15 / width, 1 - 0.28 / height, titles[0], fontsize=13, color=LIGHT.ink, va="center")
    made.text(0.15 / width, 1 - 0.54 / height, titles[1], fontsize=10.5, color=LIGHT.ink, va="center")


def _outline(query: tuple[int, int], origin: tuple[float, float], step: tuple[float, float]) -> Rectangle:
    corner = (origin[0] + query[1] * step[0], origin[1] + query[0] * step[1])
    return Rectangle(corner, *step, fill=False, edgecolor=LIGHT.series[1], linewidth=1.6)


def blend(
    image: UInt8[Tensor, "3 h w"],
    saliency: Float[Tensor, "rows columns"],
    *,
    strength: float = 1.0,
    colours: str = OVERLAY,
    most: float | None = None,
    signed: bool = False,
    kept: Bool[Tensor, "rows columns"] | None = None,
    uniform: float = 0.0,
) -> tuple[Float[np.ndarray, "h w 3"], ScalarMappable]:
    """A saliency map over the image in grey, and the scale of its colours.

    A map without negative entries has one ramp from 0 to its largest value; a signed map has two hues, with no colour
    at zero. The larger a value, the more it covers of the image: up to four fifths.

    Args:
        image: the image.
        saliency: one number per patch.
        strength: of the colours, 0 for the image in grey alone.
        colours: matplotlib's name of the ramp for maps without negative entries.
        most: the value that the scale ends at; by default the map's largest absolute value.
        signed: take the two hues for a map without negative entries too.
        kept: patches that are coloured; the others are grey.
        uniform: what each patch would have if all had the same; the scale ends at twice this or higher.
    """
    spread = np.ones((image.shape[1] // saliency.shape[0], image.shape[2] // saliency.shape[1]))
    values = np.kron(saliency.numpy(), spread)
    most = max(float(np.abs(values).max()) if most is None else most, 2 * uniform, 1e-12)
    signed = signed or bool((values < 0).any())
    norm = Normalize(-most if signed else 0.0, most)
    scale = ScalarMappable(norm, colormaps[DIVERGING if signed else colours])
    painted = scale.to_rgba(values)[..., :3]
    grey = 1 - _PALE + _PALE * (image.float().mean(dim=0).numpy() / 255)
    cover = strength * (0.15 + 0.65 * (np.abs(values) / most).clip(max=1.0))
    if kept is not None:
        cover = cover * np.kron(kept.numpy(), spread)
    return grey[..., None] * (1 - cover[..., None]) + painted * cover[..., None], scale


def marked(image: UInt8[Tensor, "3 h w"], mask: Bool[Tensor, "rows columns"]) -> UInt8[Tensor, "3 h w"]:
    """The image, darkened where the mask keeps nothing."""
    tall, wide = image.shape[1] // mask.shape[0], image.shape[2] // mask.shape[1]
    kept = mask.repeat_interleave(tall, dim=0).repeat_interleave(wide, dim=1)
    return (image.float() * (_DARK + (1 - _DARK) * kept)).round().to(image.dtype)


def overlays(
    image: UInt8[Tensor, "3 h w"],
    saliency: Sequence[tuple[str, Float[Tensor, "rows columns"]]],
    *,
    masks: Sequence[tuple[str, Bool[Tensor, "rows columns"]]] = (),
    title: str = "",
    signed: Collection[str] = (),
    unit: str = "attention per patch",
    uniform: Mapping[str, float] | None = None,
) -> Figure:
    """The image, each saliency map over it with its colour bar, and what each mask keeps, six in a line.

    Args:
        image: the image.
        saliency: (name, saliency map).
        masks: (name, patches to keep): the others are darkened.
        title: of the figure.
        signed: names of the saliency maps whose scale has two hues even where no value is negative.
        unit: title of the colour bars.
        uniform: by name of a saliency map, what each patch would have if all had the same: a line in its colour bar.
    """
    count = 1 + len(saliency) + len(masks)
    columns = min(_ACROSS, count)
    lines = -(-count // columns)
    high = 2.7 * image.shape[1] / image.shape[2]
    made = figure(LIGHT, 3.1 * columns, high + 1.1 + (lines - 1) * (high + 0.4))
    panels: Sequence[Axes] = list(np.atleast_1d(made.subplots(lines, columns)).ravel())
    for axes in panels:
        axes.axis("off")
    _show(panels[0], image, "image")
    for axes, (name, values) in zip(panels[1:], saliency, strict=False):
        level = (uniform or {}).get(name)
        picture, drawn = blend(image, values, signed=name in signed, uniform=level or 0.0)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=11, color=LIGHT.ink, loc="left")
        bar = made.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.tick_params(labelsize=9, colors=LIGHT.ink)
        bar.set_label(unit, color=LIGHT.ink, fontsize=9.5)
        if level is not None:
            mark_level(bar, level)
            bar.set_label(f"{unit} (line: uniform)", color=LIGHT.ink, fontsize=9.5)
    for axes, (name, mask) in zip(panels[1 + len(saliency) : count], masks, strict=True):
        _show(axes, marked(image, mask), name)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=LIGHT.ink)
    return made


def kept_by_heads(
    image: UInt8[Tensor, "3 h w"], masks: Bool[Tensor, "heads rows columns"], *, title: str = ""
) -> Figure:
    """What each head's mask keeps of the image, as DINO shows its heads (arXiv 2104.14294, figure 3)."""
    columns = min(6, len(masks))
    lines = -(-len(masks) // columns)
    high = 2.1 * image.shape[1] / image.shape[2]
    made = figure(LIGHT, max(2.1 * columns, 4.2), (high + 0.35) * lines + 0.5)
    panels = np.atleast_1d(made.subplots(lines, columns)).ravel()
    for head, axes in enumerate(panels):
        axes.axis("off")
        if head < len(masks):
            _show(axes, marked(image, masks[head]), f"head {head}")
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=LIGHT.ink)
    return made


def contact_sheet(
    samples: Sequence[tuple[str, UInt8[Tensor, "3 h w"], Float[Tensor, "rows columns"]]], *, title: str = ""
) -> Figure:
    """Many images, each beside its saliency map: (caption, image, saliency map)."""
    columns = min(4, len(samples))
    lines = -(-len(samples) // columns)
    made = figure(LIGHT, 3.4 * columns, 2.05 * lines + 0.6)
    panels = np.atleast_1d(made.subplots(lines, 2 * columns)).reshape(lines, 2 * columns)
    for place in range(lines * columns):
        pair = panels[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        for axes in pair:
            axes.axis("off")
        if place < len(samples):
            caption, image, saliency = samples[place]
            _show(pair[0], image, caption, fontsize=10)
            pair[1].imshow(blend(image, saliency)[0], interpolation="nearest")
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=LIGHT.ink)
    return made


def _show(axes: Axes, image: Tensor, name: str, fontsize: int = 11) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.axis("off")
    axes.set_title(name, fontsize=fontsize, color=LIGHT.ink, loc="left")


def lambda_figure(
    lambdas: Mapping[int, float], starts: Mapping[int, float | None], *, title: str = "Lambda by layer"
) -> Figure:
    """Each layer's learned lambda (layer, counted from 0, to lambda), beside lambda_init where it has one."""
    made = figure(LIGHT, 6.4, 3.8)
    axes = made.subplots()
    axes.bar(list(lambdas), list(lambdas.values()), color=colour(LIGHT, 0), width=0.6, label="learned lambda")
    begun = {layer: start for layer, start in starts.items() if start is not None}
    for layer, start in begun.items():
        axes.plot([layer - 0.4, layer + 0.4], [start] * 2, color=colour(LIGHT, 1), lw=2.4)
    if begun:
        axes.plot([], [], color=colour(LIGHT, 1), lw=2.4, label="lambda_init")
    axes.axhline(0, color=LIGHT.ink, lw=0.8)
    dress(axes, LIGHT, title=title, x="layer", y="weight of the second map")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9.5, labelcolor=LIGHT.ink)
    return made


def heads_figure(statistics: Sequence[HeadStatistics], tokens: int, *, title: str = "What the heads do") -> Figure:
    """Entropy, distance, share on the tokens before the patches, and negative share, by layer: a dot per head.

    ``tokens``, the keys that a query has, give the entropy of uniform attention, which is drawn as a line.
    """
    signed = any(each.negative_share for each in statistics)
    panels = [
        ("Entropy", "nats", "entropy"),
        ("Distance", "patches", "distance"),
        ("On [CLS] and registers", "share of attention", "prefix_share"),
    ]
    if signed:
        panels.append(("Negative", "share of |attention|", "negative_share"))
    made = figure(LIGHT, 3.6 * len(panels), 4.0)
    for axes, (name, unit, key) in zip(np.atleast_1d(made.subplots(1, len(panels))), panels, strict=True):
        _dots(axes, statistics, key)
        if key == "entropy":
            axes.axhline(math.log(tokens), color=LIGHT.ink, lw=1.1, ls=(0, (4, 2)), label=f"all alike: ln {tokens:,}")
        dress(axes, LIGHT, title=name, x="layer", y=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        if "share" in key:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if key == "entropy":
            axes.legend(frameon=False, fontsize=9.5, labelcolor=LIGHT.ink)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=LIGHT.ink)
    return made


def _dots(axes: Axes, statistics: Sequence[HeadStatistics], key: str) -> None:
    layers = sorted({each.block for each in statistics})
    values = {layer: [getattr(each, key) for each in statistics if each.block == layer] for layer in layers}
    for layer in layers:
        axes.plot([layer] * len(values[layer]), values[layer], "o", color=colour(LIGHT, 0), ms=5, alpha=0.7, mew=0)
    axes.plot([], [], "o", color=colour(LIGHT, 0), ms=5, label="a head")
    means = [sum(values[layer]) / len(values[layer]) for layer in layers]
    axes.plot(layers, means, color=colour(LIGHT, 1), lw=1.8, label="mean of the layer")


def similarity_figure(
    similarity: Float[Tensor, "rows cols rows cols"], *, title: str = "Similarity of positions"
) -> Figure:
    """A small map per patch: how alike its position is to every patch's, from -1 to 1; of large grids every few."""
    rows, columns = similarity.shape[:2]
    down, across = (range(0, side, math.ceil(side / _MOST)) for side in (rows, columns))
    gap = max(1, columns // 12)
    canvas = np.full((len(down) * (rows + gap) - gap, len(across) * (columns + gap) - gap), np.nan)
    for line, row in enumerate(down):
        for place, column in enumerate(across):
            top, left = line * (rows + gap), place * (columns + gap)
            canvas[top : top + rows, left : left + columns] = similarity[row, column].numpy()
    made = figure(LIGHT, 7.0, 6.6 * canvas.shape[0] / canvas.shape[1] + 0.6)
    axes = made.subplots()
    drawn = axes.imshow(canvas, cmap=colormaps["RdBu_r"], vmin=-1, vmax=1, interpolation="nearest")
    step = "" if len(down) == rows else f", every {down.step}. row and {across.step}. column"
    dress(axes, LIGHT, title=title, x=f"column of the patch{step}", y="row of the patch", grid=False)
    axes.set_xticks(
        [place * (columns + gap) + columns / 2 - 0.5 for place in range(len(across))], [str(each) for each in across]
    )
    axes.set_yticks([line * (rows + gap) + rows / 2 - 0.5 for line in range(len(down))], [str(each) for each in down])
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = made.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("cosine similarity", color=LIGHT.ink)
    bar.ax.tick_params(colors=LIGHT.ink)
    return made


def _queried(record: Record, query: tuple[int, int] | None) -> str:
    """Whose attention the maps show."""
    if query is not None:
        return f"Attention of patch {query[0]},{query[1]} (outlined)"
    return "Attention of [CLS]" if record.pool == "cls" else "Attention of the patches, on average"
