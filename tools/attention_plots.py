"""The pictures of the attention study, each a function from its rows to PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diffvit.reporting import stats
from diffvit.reporting.attention_rows import DIFFERENTIAL, FIRST_MAP, METRICS, SOFTMAX, WIDE, Study, Values
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png

_ARMS = (SOFTMAX, DIFFERENTIAL, WIDE)
_CHANCE = {"centre": (0, (4, 2)), "uniform": (0, (1, 2))}


def on_object(study: Study, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Rollout's three scores against clutter."""
    return _against_clutter(study, "rollout", "rollout", theme, stamp)


def last_layer(study: Study, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """The last layer's three scores against clutter."""
    return _against_clutter(study, study.last, f"{study.last}, mean over heads", theme, stamp)


def _against_clutter(study: Study, name: str, title: str, theme: Theme, stamp: str) -> bytes:
    made = figure(theme, 12.6, 4.6)
    panels: Sequence[Axes] = list(made.subplots(1, 3))
    for axes, (metric, text) in zip(panels, METRICS.items(), strict=True):
        for index, arm in enumerate(_ARMS):
            _line(axes, study, study.values(arm, name, metric), colour(theme, index), arm)
        for chance, dashes in _CHANCE.items():
            values = study.values(SOFTMAX, chance, metric)
            means = [_mean_at(values, clutter) for clutter in study.clutter]
            axes.plot(study.clutter, means, color=theme.ink, lw=1.2, ls=dashes, label=f"{chance}: no attention")
        dress(axes, theme, title=text[0].upper() + text[1:], x="clutter (share of the background)", y=f"of {title}")
        _percent(axes, study)
    _legend_below(made, panels[0], theme, 5)
    return to_png(made, stamp)


def _line(axes: Axes, study: Study, values: Values, shade: str, label: str) -> None:
    """Mean over seeds as a line, each seed as a dot."""
    levels = [clutter for clutter in study.clutter if any(key[1] == clutter for key in values)]
    axes.plot(levels, [_mean_at(values, clutter) for clutter in levels], color=shade, lw=2.2, label=label)
    for (_, clutter), value in values.items():
        assert clutter is not None
        axes.plot(clutter, 100 * value, "o", color=shade, ms=4.5, alpha=0.75, mew=0)


def _mean_at(values: Values, clutter: float) -> float:
    return 100 * stats.mean([value for (_, level), value in values.items() if level == clutter])


def _percent(axes: Axes, study: Study) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xticks(study.clutter)
    axes.set_ylim(bottom=0)


def _legend_below(made: Figure, axes: Axes, theme: Theme, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = made.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10.5)
    for text in legend.get_texts():
        text.set_color(theme.ink)


def subtraction(study: Study, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Mass on the object per layer, over seeds and clutter levels: what is subtracted, and what ViT does."""
    names = [*study.layers, "rollout"]
    series = (
        ("ViT", [(SOFTMAX, name) for name in names]),
        ("Diff-ViT, first map A1 alone", [(DIFFERENTIAL, name + FIRST_MAP) for name in names]),
        ("Diff-ViT, effective map A1 - lambda A2", [(DIFFERENTIAL, name) for name in names]),
    )
    made = figure(theme, 8.6, 4.8)
    axes = made.subplots()
    for index, (label, keys) in enumerate(series):
        shade = colour(theme, (0, 5, 1)[index])
        places = [place + 0.22 * (index - 1) for place in range(len(names))]
        for place, key in zip(places, keys, strict=True):
            values = [100 * value for value in study.values(*key, "mass").values()]
            axes.plot([place] * len(values), values, "o", color=shade, ms=4, alpha=0.5, mew=0)
            if values:  # a study under way may lack an arm
                axes.plot([place - 0.08, place + 0.08], [stats.mean(values)] * 2, color=shade, lw=3.2)
        axes.plot([], [], color=shade, lw=3.2, label=label)
    uniform = stats.mean(list(study.values(SOFTMAX, "uniform", "mass").values()))
    axes.axhline(100 * uniform, color=theme.ink, lw=1.1, ls=(0, (1, 2)), label="uniform map")
    dress(axes, theme, title="Mass on the object, by layer", x="", y="share of the positive mass")
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylim(bottom=0)
    _legend_below(made, axes, theme, 2)
    return to_png(made, stamp)


def removal(study: Study, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Deletion and insertion curves on CIFAR-10 in the order of rollout, mean over images and seeds."""
    made = figure(theme, 11.6, 4.6)
    panels: Sequence[Axes] = list(made.subplots(1, 2))
    for axes, metric, title in zip(panels, ("deletion", "insertion"), ("Deletion", "Insertion"), strict=True):
        for index, arm in enumerate((SOFTMAX, DIFFERENTIAL)):
            for name, dashes in (("rollout", "-"), (study.last, (0, (4, 2))), ("random", (0, (1, 2)))):
                shares, heights = _curve(study, arm, name, metric)
                axes.plot(shares, heights, color=colour(theme, index), lw=2, ls=dashes, label=f"{arm}, {name}")
        word = "taken away" if metric == "deletion" else "put in"
        wish = "lower is better" if metric == "deletion" else "higher is better"
        dress(axes, theme, title=f"{title} ({wish})", x=f"patches {word}", y="probability of the class")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_ylim(0, 1)
    _legend_below(made, panels[0], theme, 3)
    return to_png(made, stamp)


def _curve(study: Study, arm: str, name: str, metric: str) -> tuple[list[float], list[float]]:
    found: dict[float, list[float]] = {}
    for row in study.curves:
        if (row["arm"], row["map"], row["data"]) == (arm, name, "cifar10"):
            found.setdefault(row["share"], []).append(row[metric])
    return [100 * share for share in sorted(found)], [stats.mean(found[share]) for share in sorted(found)]


def accuracy(study: Study, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Test accuracy on shapes against clutter."""
    made = figure(theme, 6.4, 4.4)
    axes = made.subplots()
    for index, arm in enumerate(_ARMS):
        _line(axes, study, study.accuracies(arm), colour(theme, index), arm)
    dress(axes, theme, title="Accuracy on shapes", x="clutter (share of the background)", y="test images right")
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.set_xticks(study.clutter)
    legend = axes.legend(frameon=False, fontsize=10.5)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return to_png(made, stamp)
