"""The pictures of a study's report: accuracies at a glance, curves with seed bands, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from diffvit.experiments.labels import Name, name_all, settle
from diffvit.experiments.results import Line, Results
from diffvit.reporting import stats
from diffvit.reporting.arms import MODEL_NAMES
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, plain, to_png

_MARKS = {"softmax": "o", "differential": "s"}
_SHADES = {"softmax": 0, "differential": 1}
_SIDES = {"softmax": 1, "differential": -1}


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
    panels: list[tuple[Axes, list[Annotation]]] = []
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
        names = [_named(line, cost(line), theme, far_apart=far_apart) for line in results.lines]
        panels.append((axes, name_all(axes, names)))
        if far_apart:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())  # labels between these would overlap
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
        axes.margins(x=0.3, y=0.12)
        if not far_apart:
            axes.set_xlim(*_not_too_narrow(*axes.get_xlim()))
    right.set_ylabel("")
    attentions = dict.fromkeys(line.attention for line in results.lines)
    handles = [_handle(attention, theme) for attention in attentions]
    made.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor=theme.ink)
    settle(made, panels)
    return to_png(made, stamp)


def _named(line: Line, cost: float, theme: Theme, *, far_apart: bool) -> Name:
    place = (math.log(cost) if far_apart else cost, 100 * line.mean)
    shade = colour(theme, _SHADES[line.attention])
    return Name(plain(line.arm), (cost, 100 * line.mean), place, _SIDES[line.attention], shade)


def _handle(attention: str, theme: Theme) -> Line2D:
    shade = colour(theme, _SHADES[attention])
    return Line2D([], [], color=shade, ls="", marker=_MARKS[attention], ms=8, label=MODEL_NAMES[attention])


def _not_too_narrow(low: float, high: float) -> tuple[float, float]:
    """Limits wide enough that costs which are nearly the same look so: a tenth of the middle to either side."""
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.1 * middle)
    return middle - half, middle + half


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
