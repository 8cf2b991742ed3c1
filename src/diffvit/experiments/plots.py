"""Plots of a study's report: accuracy of every arm, training curves with bands over seeds, cost; and of a search's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from diffvit.experiments.results import Line, Results
from diffvit.experiments.study import BOTH, Study
from diffvit.files import Row
from diffvit.registry import label_of
from diffvit.reporting import stats
from diffvit.reporting.style import LIGHT, colour, dress, figure, to_png

_MARKS = "osD^vPX*ph<>"
_LEGEND_COLUMNS = _PANELS = 4


def accuracies(results: Results, *, stamp: str = "") -> bytes:
    """A line per arm, a mark per seed, a bar at the mean; PNG."""
    arms, attentions = _arms(results), _attentions(results)
    made = figure(LIGHT, 8.6, 1.7 + 0.5 * len(arms))
    axes = made.add_subplot()
    title = f"{results.study.name}, tier {results.tier}: {results.seeds} seed{'s' if results.seeds > 1 else ''}"
    dress(axes, LIGHT, title=title, x="test accuracy", y="", grid=False)
    for line in results.lines:
        shift = attentions.index(line.attention) - (len(attentions) - 1) / 2 if results.study.attentions else 0.0
        height = arms.index(line.arm) + 0.32 * shift
        mark, shade = _style(line.attention, attentions)
        values = [100 * value for value in line.accuracies.values()]
        axes.plot(values, [height] * len(values), mark, color=shade, ms=6, alpha=0.65, mew=0)
        axes.plot([stats.mean(values)], [height], "|", color=shade, ms=16, mew=2.5)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.45, -0.55)
    axes.grid(axis="x", color=LIGHT.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
    styles = {attention: _style(attention, attentions) for attention in attentions}
    handles = [_handle(label_of(each), color=shade, ls="", marker=mark, ms=8) for each, (mark, shade) in styles.items()]
    handles.append(_handle("mean", color=LIGHT.ink, ls="", marker="|", ms=13, mew=2.5))
    _legend(made, handles, 3)
    return to_png(made, stamp)


def curves(results: Results, *, stamp: str = "") -> bytes:
    """Training loss and accuracy, a row of panels per attention; the bands span the seeds; PNG."""
    arms = _arms(results)
    rows = _attentions(results) if results.study.attentions else [""]
    made = figure(LIGHT, 11.0, 0.8 + 3.5 * len(rows))
    panels = made.subplots(len(rows), 2, squeeze=False)
    for (left, right), attention in zip(panels, rows, strict=True):
        lines = results.of(attention) if attention else list(results.lines)
        name = f"{label_of(attention)}: " if attention else ""
        _band(left, lines, arms, "train_loss", 1.0)
        _band(right, lines, arms, "train_accuracy", 100.0)
        dress(left, LIGHT, title=f"{name}training loss", x="epoch", y="cross-entropy (nats)")
        dress(right, LIGHT, title=f"{name}training accuracy", x="epoch", y="images right, as augmented")
        right.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    handles = [_handle(arm, color=colour(LIGHT, place), lw=2.2, ls=_dash(place)) for place, arm in enumerate(arms)]
    _legend(made, handles, _LEGEND_COLUMNS)
    return to_png(made, stamp)


def costs(results: Results, *, stamp: str = "") -> bytes:
    """Mean accuracy against the FLOPs and the seconds of a training: a colour per arm, a mark per attention; PNG."""
    arms, attentions = _arms(results), _attentions(results)
    marks = {attention: _MARKS[place % len(_MARKS)] for place, attention in enumerate(attentions)}
    by_arm = {line.arm: "o" if results.study.attentions else marks[line.attention] for line in results.lines}
    handles = [_handle(arm, **_point(by_arm[arm], place)) for place, arm in enumerate(arms)]
    if results.study.attentions:
        names = {each: label_of(each) for each in attentions}
        handles += [_handle(names[each], color=LIGHT.ink, ls="", marker=marks[each], ms=9) for each in attentions]
    made = figure(LIGHT, 11.0, 4.2 + 0.25 * -(-len(handles) // _LEGEND_COLUMNS))
    left, right = made.subplots(1, 2, sharey=True)
    panels: tuple[tuple[Axes, str, str, Callable[[Line], float]], ...] = (
        (left, "Against computation", "TFLOPs of a training", lambda line: line.flops / 1e12),
        (right, "Against time", "seconds of a training", lambda line: line.train_seconds),
    )
    for axes, title, x, cost in panels:
        dress(axes, LIGHT, title=title, x=x, y="test accuracy")
        across = [cost(line) for line in results.lines]
        for line, where in zip(results.lines, across, strict=True):
            style = _point(marks[line.attention], arms.index(line.arm))
            axes.plot(where, 100 * line.mean, **style, alpha=0.85)
        axes.margins(x=0.1, y=0.12)
        if max(across) > 3 * min(across):
            _log_scale(axes)
        else:
            # Costs that are nearly the same look so: the axis is at least a tenth of its middle wide to either side.
            middle, width = sum(axes.get_xlim()) / 2, float(np.ptp(axes.get_xlim()))
            half = max(width / 2, 0.1 * middle)
            axes.set_xlim(middle - half, middle + half)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
    right.set_ylabel("")
    _legend(made, handles, _LEGEND_COLUMNS)
    return to_png(made, stamp)


def settings(study: Study, rows: Sequence[Row], *, stamp: str = "") -> bytes:
    """Validation accuracy of a search's complete trials, a panel per setting; PNG."""
    assert study.search is not None
    searched = study.search.settings
    lines = -(-len(searched) // _PANELS)
    made = figure(LIGHT, 3.0 * _PANELS, 0.6 + 2.7 * lines + 0.25 * ((len(study.searched) - 1) // _LEGEND_COLUMNS))
    panels = made.subplots(lines, _PANELS, sharey=True, squeeze=False).flat
    for number, ((setting, values), axes) in enumerate(zip(searched.items(), panels, strict=False)):
        for place, attention in enumerate(study.searched):
            mine = [row for row in rows if row["attention"] == attention and row["state"] == "complete"]
            across, heights = [row[setting] for row in mine], [100 * row["val_accuracy"] for row in mine]
            label = attention if study.arms else label_of(attention)
            mark = _MARKS[place % len(_MARKS)]
            axes.plot(across, heights, mark, color=colour(LIGHT, place), ms=5, alpha=0.75, mew=0, label=label)
        dress(axes, LIGHT, title="", x=setting, y="" if number % _PANELS else "validation images right")
        if values.log:
            _log_scale(axes)
        if values.choices:
            axes.set_xticks(list(values.choices))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=_LEGEND_COLUMNS, frameon=False, labelcolor=LIGHT.ink)
    return to_png(made, stamp)


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())  # labels between these would overlap


def _arms(results: Results) -> list[str]:
    return list(dict.fromkeys(line.arm for line in results.lines))


def _attentions(results: Results) -> list[str]:
    return list(dict.fromkeys(line.attention for line in results.lines))


def _style(attention: str, attentions: Sequence[str]) -> tuple[str, str]:
    """Mark and colour of an attention: the same in all studies for softmax and differential."""
    place = list(dict.fromkeys([*BOTH, *attentions])).index(attention)
    return _MARKS[place % len(_MARKS)], colour(LIGHT, place)


def _handle(label: str, **style: Any) -> Line2D:
    return Line2D([], [], label=label, **style)


def _point(mark: str, place: int) -> dict[str, Any]:
    """Look of an arm's mark; the palette repeats after seven arms, and marks of the eighth on are hollow."""
    shade, hollow = colour(LIGHT, place), place >= len(LIGHT.series)
    return {"color": shade, "ls": "", "marker": mark, "ms": 9, "mew": 1.5 * hollow, "mfc": "none" if hollow else shade}


def _legend(made: Figure, handles: Sequence[Line2D], columns: int) -> None:
    columns = min(columns, len(handles))
    made.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, labelcolor=LIGHT.ink)


def _dash(place: int) -> str:
    """The palette repeats after seven arms; lines of the next seven are dashed, all others dotted."""
    return ("-", "--", ":")[min(place // len(LIGHT.series), 2)]


def _band(axes: Axes, lines: Sequence[Line], arms: Sequence[str], name: str, factor: float) -> None:
    for line in lines:
        place = arms.index(line.arm)
        shade = colour(LIGHT, place)
        runs = [[factor * row[name] for row in record.epochs] for record in line.records]
        length = min(map(len, runs), default=0)
        if not length:
            continue
        across = list(range(1, length + 1))
        values = list(zip(*(run[:length] for run in runs), strict=True))
        axes.fill_between(across, list(map(min, values)), list(map(max, values)), color=shade, alpha=0.18, lw=0)
        axes.plot(across, list(map(stats.mean, values)), _dash(place), color=shade, lw=2.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
