"""The pictures of a study's report: accuracies at a glance, curves with seed bands, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from diffvit.reporting import stats
from diffvit.reporting.arms import MODEL_NAMES
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, plain, to_png
from diffvit.studies.results import Line, Results

_MARKS = {"softmax": "o", "differential": "s"}
_SHADES = {"softmax": 0, "differential": 1}
_POINTS = 190.0  # of a cost panel's height between its lowest and its highest mark


def accuracies(results: Results, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """A line per arm, a mark per seed, a bar at the mean."""
    arms = list(dict.fromkeys(line.arm for line in results.lines))
    made = figure(theme, 8.6, 1.7 + 0.5 * len(arms))
    axes = made.add_subplot()
    title = f"{results.study.name}, tier {results.tier}: {results.seeds} seed{'s' if results.seeds > 1 else ''}"
    dress(axes, theme, title=title, x="test accuracy", y="", grid=False)
    attentions = list(dict.fromkeys(line.attention for line in results.lines))
    for line in results.lines:
        aside = 0.0 if not results.study.attentions else 0.32 * (attentions.index(line.attention) - 0.5)
        height = arms.index(line.arm) + aside
        shade = colour(theme, _SHADES[line.attention])
        values = [100 * value for value in line.accuracies.values()]
        axes.plot(values, [height] * len(values), _MARKS[line.attention], color=shade, ms=6, alpha=0.65, mew=0)
        axes.plot([stats.mean(values)], [height], "|", color=shade, ms=16, mew=2.5)
    axes.set_yticks(range(len(arms)), [plain(arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.45, -0.55)
    axes.grid(axis="x", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
    handles = [_handle(attention, theme) for attention in attentions]
    handles.append(Line2D([], [], color=theme.ink, ls="", marker="|", ms=13, mew=2.5, label="mean"))
    made.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, labelcolor=theme.ink)
    return to_png(made, stamp)


def curves(results: Results, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Training loss and accuracy, a row of panels per attention; the bands span the seeds."""
    attentions = list(dict.fromkeys(line.attention for line in results.lines))
    rows = attentions if results.study.attentions else [""]
    made = figure(theme, 11.0, 0.8 + 3.5 * len(rows))
    panels = made.subplots(len(rows), 2, squeeze=False)
    arms = list(dict.fromkeys(line.arm for line in results.lines))
    for place, attention in enumerate(rows):
        lines = results.of(attention) if attention else list(results.lines)
        name = f"{MODEL_NAMES[attention]}: " if attention else ""
        left, right = panels[place]
        _band(left, lines, arms, "train_loss", 1.0, theme)
        _band(right, lines, arms, "train_accuracy", 100.0, theme)
        dress(left, theme, title=f"{name}training loss", x="epoch", y="cross-entropy (nats)")
        dress(right, theme, title=f"{name}training accuracy", x="epoch", y="images right, as augmented")
        right.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    handles = [
        Line2D([], [], color=colour(theme, index), lw=2.2, ls=_dash(index), label=plain(arm))
        for index, arm in enumerate(arms)
    ]
    made.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(arms)), frameon=False, labelcolor=theme.ink
    )
    return to_png(made, stamp)


def costs(results: Results, *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Mean accuracy against the products of a whole training, and against its seconds."""
    made = figure(theme, 11.0, 4.4)
    left, right = made.subplots(1, 2, sharey=True)
    for axes, title, x, cost in (
        (left, "Against computation", "TFLOPs of a training", lambda line: line.flops / 1e12),
        (right, "Against time", "seconds of a training", lambda line: line.mean_of("train_seconds")),
    ):
        dress(axes, theme, title=title, x=x, y="test accuracy")
        far_apart = _far_apart([cost(line) for line in results.lines])
        for line in results.lines:
            axes.plot(
                cost(line),
                100 * line.mean,
                _MARKS[line.attention],
                color=colour(theme, _SHADES[line.attention]),
                ms=8,
                mew=0,
            )
        every = [(math.log(cost(line)) if far_apart else cost(line), 100 * line.mean) for line in results.lines]
        for attention, side in (("softmax", 1), ("differential", -1)):
            named = [
                (line, spot) for line, spot in zip(results.lines, every, strict=True) if line.attention == attention
            ]
            heights = _beside([spot for _, spot in named], *map(_extent, zip(*every, strict=True)))
            for (line, (_, y)), height in zip(named, heights, strict=True):
                _name(axes, plain(line.arm), (cost(line), y), height, side, colour(theme, _SHADES[attention]))
        if far_apart:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())  # labels between these would overlap
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
        axes.margins(x=0.3, y=0.12)
    right.set_ylabel("")
    attentions = dict.fromkeys(line.attention for line in results.lines)
    handles = [_handle(attention, theme) for attention in attentions]
    made.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor=theme.ink)
    return to_png(made, stamp)


_LINE, _WORD = 0.05, 0.3  # of a panel: the height of a label, and how near two spots are whose labels might overlap


def _beside(spots: Sequence[tuple[float, float]], across: float, height: float) -> list[float]:
    """How far labels go down from their spots so as not to overlap, in shares of the marks' whole height."""
    placed: list[tuple[float, float]] = []
    found = [0.0] * len(spots)
    for index in sorted(range(len(spots)), key=lambda index: -spots[index][1]):
        x, y = spots[index]
        at = min([y, *(other - _LINE * height for place, other in placed if abs(place - x) < _WORD * across)])
        placed.append((x, at))
        found[index] = (y - at) / height
    return found


def _name(axes: Axes, name: str, spot: tuple[float, float], down: float, side: int, shade: str) -> None:
    """A label right of its spot (side 1) or left (-1), with a line to it."""
    axes.annotate(
        name,
        spot,
        (side * 14, -down * _POINTS),
        textcoords="offset points",
        fontsize=8,
        color=shade,
        ha="left" if side > 0 else "right",
        va="center",
        arrowprops={"arrowstyle": "-", "color": shade, "alpha": 0.5, "lw": 0.7, "shrinkA": 0, "shrinkB": 5},
    )


def _extent(values: Sequence[float]) -> float:
    return (max(values) - min(values)) or 1.0


def _handle(attention: str, theme: Theme) -> Line2D:
    shade = colour(theme, _SHADES[attention])
    return Line2D([], [], color=shade, ls="", marker=_MARKS[attention], ms=8, label=MODEL_NAMES[attention])


def _far_apart(values: Sequence[float]) -> bool:
    return max(values) > 3 * min(values)


def _dash(index: int) -> str:
    """The palette repeats after seven arms; the eighth is dashed."""
    return "-" if index < len(LIGHT.series) else "--"


def _band(axes: Axes, lines: Sequence[Line], arms: Sequence[str], name: str, factor: float, theme: Theme) -> None:
    for line in lines:
        index = arms.index(line.arm)
        shade = colour(theme, index)
        runs = [[factor * row[name] for row in record.epochs] for record in line.records.values()]
        length = min(map(len, runs), default=0)
        if not length:
            continue
        across = list(range(1, length + 1))
        values = [[run[place] for run in runs] for place in range(length)]
        axes.fill_between(
            across, [min(each) for each in values], [max(each) for each in values], color=shade, alpha=0.18, lw=0
        )
        axes.plot(across, [stats.mean(each) for each in values], _dash(index), color=shade, lw=2.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
