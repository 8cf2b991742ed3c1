"""What holds for a model as a whole: lambda, what its heads do, how its positions relate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from diffvit.attention.heads import HeadStatistics
from diffvit.reporting.plots import lambda_init
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure

_MOST = 10  # patches a side whose similarity maps one figure shows


def lambda_figure(lambdas: Mapping[int, float], *, title: str = "Lambda by layer", theme: Theme = LIGHT) -> Figure:
    """Each layer's learned lambda (layer, counted from 0, to lambda), beside the constant it started near."""
    made = figure(theme, 6.4, 3.8)
    axes = made.subplots()
    axes.bar(list(lambdas), list(lambdas.values()), color=colour(theme, 0), width=0.6, label="learned lambda")
    for layer in lambdas:
        axes.plot([layer - 0.4, layer + 0.4], [lambda_init(layer)] * 2, color=colour(theme, 1), lw=2.4)
    axes.plot([], [], color=colour(theme, 1), lw=2.4, label="lambda_init")
    axes.axhline(0, color=theme.ink, lw=0.8)
    dress(axes, theme, title=title, x="layer", y="weight of the second map")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, theme)
    return made


def heads_figure(
    statistics: Sequence[HeadStatistics], tokens: int, *, title: str = "What the heads do", theme: Theme = LIGHT
) -> Figure:
    """Entropy, distance, share on the tokens before the patches, and negative share, by layer: a dot per head.

    Args:
        statistics: of every head, see :func:`diffvit.attention.heads.head_statistics`.
        tokens: keys a query has, for the entropy of reading all alike.
        title: of the figure.
        theme: colours.
    """
    signed = statistics[0].lam is not None
    panels = [
        ("Entropy", "nats", "entropy"),
        ("Distance", "patches", "distance"),
        ("On [CLS] and registers", "share of attention", "prefix_share"),
    ]
    if signed:
        panels.append(("Negative", "share of |attention|", "negative_share"))
    made = figure(theme, 3.6 * len(panels), 4.0)
    for axes, (name, unit, key) in zip(np.atleast_1d(made.subplots(1, len(panels))), panels, strict=True):
        _dots(axes, statistics, key, theme)
        if key == "entropy":
            axes.axhline(math.log(tokens), color=theme.ink, lw=1.1, ls=(0, (4, 2)), label=f"all alike: ln {tokens:,}")
        dress(axes, theme, title=name, x="layer", y=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        if "share" in key:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if key == "entropy":
            _legend(axes, theme)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, color=theme.ink)
    return made


def _dots(axes: Axes, statistics: Sequence[HeadStatistics], key: str, theme: Theme) -> None:
    layers = sorted({each.block for each in statistics})
    values = {layer: [getattr(each, key) for each in statistics if each.block == layer] for layer in layers}
    for layer in layers:
        axes.plot([layer] * len(values[layer]), values[layer], "o", color=colour(theme, 0), ms=5, alpha=0.7, mew=0)
    axes.plot([], [], "o", color=colour(theme, 0), ms=5, label="a head")
    means = [sum(values[layer]) / len(values[layer]) for layer in layers]
    axes.plot(layers, means, color=colour(theme, 1), lw=1.8, label="mean of the layer")


def similarity_figure(
    similarity: Float[Tensor, "rows cols rows cols"], *, title: str = "Similarity of positions", theme: Theme = LIGHT
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
    made = figure(theme, 7.0, 6.6 * canvas.shape[0] / canvas.shape[1] + 0.6)
    axes = made.subplots()
    drawn = axes.imshow(canvas, cmap=colormaps["RdBu_r"], vmin=-1, vmax=1, interpolation="nearest")
    step = "" if len(down) == rows else f", every {down.step}. row and {across.step}. column"
    dress(axes, theme, title=title, x=f"column of the patch{step}", y="row of the patch", grid=False)
    axes.set_xticks(
        [place * (columns + gap) + columns / 2 - 0.5 for place in range(len(across))], [str(each) for each in across]
    )
    axes.set_yticks([line * (rows + gap) + rows / 2 - 0.5 for line in range(len(down))], [str(each) for each in down])
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = made.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("cosine similarity", color=theme.ink)
    bar.ax.tick_params(colors=theme.ink)
    return made


def _legend(axes: Axes, theme: Theme) -> None:
    legend = axes.legend(frameon=False, fontsize=9.5)
    for text in legend.get_texts():
        text.set_color(theme.ink)
