"""The attribution study's report: ``reports/attribution/report.md`` and its plots, from the rows beside them.

The study is ``attribution`` of :data:`diffvit.experiments.study.STUDIES`, scored by
:func:`diffvit.attention.scores.attribution_scores`; here its numbers are paired over seeds, tested and drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffvit.attention.attribute import METHODS
from diffvit.files import read_csv
from diffvit.reporting import stats
from diffvit.reporting.arms import span
from diffvit.reporting.rows import ROWS_FILE, Row, RunRecord, read
from diffvit.reporting.style import LIGHT, colour, dress, figure, to_png
from diffvit.reporting.tables import NONE, Table
from diffvit.reporting.texts import data_lines
from tools.pages import Content, Picture, render

FOLDER = Path("reports/attribution")  # made by diffvit study report attribution
TABLES = ("methods", "agreement", "sanity")
VIT, DIFFERENTIAL, WIDE = "ViT", "Diff-ViT", "ViT, half the heads"
ON_CIFAR = " on CIFAR-10"
MASKED = {"pointing": "pointing game", "mass": "mass on the object", "iou": "IoU at half the mass", "auc": "ROC area"}
REMOVED = {"deletion": "deletion", "insertion": "insertion", "road": "ROAD", "saco": "SaCo"}
_SCALES = {"road": (0.5, 1.0), "saco": (0.5, 0.5)}  # shift and factor that bring a score into 0 to 1
SIMILAR = 0.3  # rank correlation with the maps of untrained weights from which a method fails
_MAPS = tuple(METHODS)


@dataclass(frozen=True)
class Study:
    """All rows of the study: of the trainings, and of the score's tables (see ``attribution_scores``) by name."""

    records: list[RunRecord]
    tables: dict[str, list[Row]]

    @cached_property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the rows."""
        return list(dict.fromkeys(str(row["arm"]) for row in self.tables["methods"]))

    @cached_property
    def baselines(self) -> list[str]:
        """Names of the maps without a model."""
        return [name for name in dict.fromkeys(str(row["map"]) for row in self.tables["methods"]) if name not in _MAPS]

    @cached_property
    def clutter(self) -> list[float]:
        """The levels of clutter, ascending."""
        return sorted({row["clutter"] for row in self.tables["methods"] if row["clutter"] is not None})

    def values(self, arm: str, name: str, metric: str, *, weights: str = "trained") -> dict[int, float]:
        """A map's score by seed, the mean over the levels of clutter at which it is known."""
        found: dict[int, list[float]] = {}
        for row in self.tables["methods"]:
            if (row["arm"], row["map"], row["weights"]) == (arm, name, weights) and row[metric] is not None:
                found.setdefault(row["seed"], []).append(row[metric])
        return {seed: stats.mean(each) for seed, each in sorted(found.items())}

    def images(self, metric: str) -> int:
        """Of how many test images a score is the mean; of several levels of clutter, those of one.

        Levels have images of their own, so an interval of their mean is wider than it need be.
        """
        column = "removal_images" if metric in REMOVED else "images"
        return min(int(row[column]) for row in self.tables["methods"] if row[metric] is not None)

    def best_baseline(self, arm: str, metric: str = "pointing") -> str:
        """The map without a model that has the highest mean score."""
        return max(self.baselines, key=lambda name: stats.mean(list(self.values(arm, name, metric).values())))

    def agreement(self, arm: str) -> np.ndarray:
        """Rank correlation of every two methods' maps, mean over seeds: (methods, methods)."""
        found = np.eye(len(_MAPS))
        for first, one in enumerate(_MAPS):
            for second, two in enumerate(_MAPS):
                rows = (row for row in self.tables["agreement"] if row["arm"] == arm)
                values = [row["correlation"] for row in rows if (row["map"], row["other"]) == (one, two)]
                if values:
                    found[first, second] = found[second, first] = stats.mean(values)
        return found

    def similarity(self, arm: str, method: str) -> dict[str, dict[int, float]]:
        """Correlation with the trained model's maps by stage of randomisation, and by seed."""
        found: dict[str, dict[int, float]] = {}
        for row in self.tables["sanity"]:
            if (row["arm"], row["method"]) == (arm, method):
                found.setdefault(row["stage"], {})[row["seed"]] = row["correlation"]
        return found


@dataclass(frozen=True)
class Answer:
    """A difference of two maps' scores, with an interval that holds for all that were asked with it."""

    label: str
    interval: stats.Interval | None  # None for fewer than two seeds

    @property
    def outcome(self) -> str:
        """``higher``, ``lower`` or ``undecided``."""
        if self.interval is None or not self.interval.excludes_zero:
            return "undecided"
        return "higher" if self.interval.low > 0 else "lower"


def gap(
    first: dict[int, float], second: dict[int, float], metric: str, images: int, comparisons: int
) -> stats.Interval | None:
    """First minus second over the seeds that both have, for so many comparisons together (Bonferroni)."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    shift, factor = _SCALES.get(metric, (0.0, 1.0))
    one, two = ([shift + factor * side[seed] for seed in seeds] for side in (first, second))
    found = stats.paired_difference(one, two, images, 1 - (1 - stats.CONFIDENCE) / comparisons)
    return stats.Interval(found.estimate / factor, found.low / factor, found.high / factor)


def over_baselines(study: Study, arm: str) -> list[Answer]:
    """Each method's pointing game less that of the best map without a model."""
    best = study.values(arm, study.best_baseline(arm), "pointing")
    images, count = study.images("pointing"), len(_MAPS) * len(study.baselines)  # the best is one of several
    return [Answer(name, gap(study.values(arm, name, "pointing"), best, "pointing", images, count)) for name in _MAPS]


def over_arm(study: Study, first: str, second: str, metric: str, together: int = 1) -> list[Answer]:
    """Each method's score on one arm less that on another; ``together`` such lists are read side by side."""
    images, count = study.images(metric), together * len(_MAPS)
    sides = [(study.values(first, name, metric), study.values(second, name, metric)) for name in _MAPS]
    return [Answer(name, gap(*each, metric, images, count)) for name, each in zip(_MAPS, sides, strict=True)]


def leaders(study: Study, arm: str, metric: str = "pointing") -> tuple[str, list[str]]:
    """The method with the highest mean, and those that are not told apart from it over all pairs of methods."""
    found = {name: study.values(arm, name, metric) for name in _MAPS}
    seeds = sorted(set.intersection(*(set(each) for each in found.values())))
    best = max(_MAPS, key=lambda name: stats.mean(list(found[name].values())))
    if len(seeds) < 2:
        return best, [name for name in _MAPS if name != best]
    groups = [[found[name][seed] for seed in seeds] for name in _MAPS]
    pairs = stats.simultaneous_differences(groups, study.images(metric))
    place = _MAPS.index(best)
    close = [
        name
        for other, name in enumerate(_MAPS)
        if other != place and not pairs[min(place, other), max(place, other)].excludes_zero
    ]
    return best, close


def sanity(study: Study, arm: str) -> list[tuple[str, stats.Interval | None, str]]:
    """Of each method, the correlation once all weights are untrained, and whether it passes.

    ``passes`` where the whole interval lies within :data:`SIMILAR` of 0, ``fails`` where it lies beyond that on either
    side, else ``undecided``. It is Student's over the seeds alone, for all methods of the arm together (Bonferroni).
    """
    found = []
    for method in _MAPS:
        stages = study.similarity(arm, method)
        last = list(stages[list(stages)[-1]].values())
        if len(last) < 2:
            found.append((method, None, "undecided"))
            continue
        interval = stats.paired_difference(last, [0.0] * len(last), None, 1 - (1 - stats.CONFIDENCE) / len(_MAPS))
        low, high = interval.low, interval.high
        passes, fails = low > -SIMILAR and high < SIMILAR, low > SIMILAR or high < -SIMILAR
        found.append((method, interval, "passes" if passes else "fails" if fails else "undecided"))
    return found


def read_study(folder: Path) -> Study:
    """The study from its files; InputError for damaged ones."""
    return Study(read(folder), {name: read_csv(folder / f"{name}.csv") for name in TABLES})


def documents(root: Path) -> dict[Path, Content]:
    """Report and plots; none where nothing was scored yet. InputError for damaged rows."""
    folder = root / FOLDER
    if not (folder / "methods.csv").is_file():
        return {}
    study = read_study(folder)
    files = [folder / name for name in (ROWS_FILE, *(f"{name}.csv" for name in TABLES))]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    pictures = {FOLDER / name: Picture(stamp, partial(draw, study, stamp=stamp)) for name, draw in PLOTS.items()}
    return {FOLDER / "report.md": report(study), **pictures}


def report(study: Study) -> str:
    """The whole report as Markdown."""
    rows = [record.row for record in study.records]
    helpers: list[Any] = [over_baselines, over_arm, leaders, sanity, scores_table, differences_table, sanity_table]
    return render(
        "attribution.md",
        study=study,
        methods=_MAPS,
        metrics=MASKED,
        removed=REMOVED,
        similar=SIMILAR,
        on_shapes=[arm for arm in study.arms if not arm.endswith(ON_CIFAR)],
        on_cifar=[arm for arm in study.arms if arm.endswith(ON_CIFAR)],
        accuracies={arm: _accuracy(study, arm) for arm in study.arms},
        data_lines=data_lines(rows),
        first=rows[0],
        seeds=sorted({row["seed"] for row in rows}),
        hours=sum(float(row["train_seconds"]) * (row["threads"] or 1) for row in rows) / 3600,
        **{each.__name__: each for each in helpers},
    )


def _accuracy(study: Study, arm: str) -> str:
    own = {(row["config_hash"], row["seed"]) for row in study.tables["methods"] if row["arm"] == arm}
    rows = (record.row for record in study.records if record.key[:2] in own)
    return _spread([row["test_accuracy"] for row in rows], 1, 100.0) + "%"


def _spread(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """Mean and standard deviation; a dash for none."""
    if not values:
        return NONE
    deviation = stats.std(values)
    more = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
    return f"{factor * stats.mean(values):.{digits}f}{more}"


def scores_table(study: Study, arm: str, metrics: dict[str, str], *, baselines: bool) -> Table:
    """Mean and standard deviation over seeds of every method's scores, and of the maps without a model."""
    percent = "pointing" in metrics
    names = [*_MAPS, *(study.baselines if baselines else ())]
    names = [name for name in names if any(study.values(arm, name, key) for key in metrics)]
    columns = [f"{text}, %" if percent else text for text in metrics.values()]
    if percent:
        columns.append("pointing game, untrained, %")
    lines = []
    for name in names:
        form = (1, 100.0) if percent else (3, 1.0)
        cells = [_spread(list(study.values(arm, name, key).values()), *form) for key in metrics]
        if percent:
            cells.append(_spread(list(study.values(arm, name, "pointing", weights="random").values()), *form))
        lines.append([name if name in _MAPS else f"{name} (no model)", *cells])
    return Table(["", *columns], lines)


def differences_table(found: dict[str, list[Answer]], *, percent: bool = True) -> Table:
    """A line for each method, a column for each list of answers."""
    lines = []
    for place, name in enumerate(_MAPS):
        cells = []
        for answers in found.values():
            interval = answers[place].interval
            if interval is None:
                cells.append(NONE)
            elif percent:
                cells.append(f"{100 * interval.estimate:+.1f} ({span(interval)})")
            else:
                cells.append(f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})")
        lines.append([name, *cells])
    return Table(["", *found], lines)


def sanity_table(study: Study) -> Table:
    """Correlation of each method's maps with those of untrained weights, a column for each arm."""
    lines = [[name] for name in _MAPS]
    for arm in study.arms:
        for line, (_, interval, verdict) in zip(lines, sanity(study, arm), strict=True):
            told = (
                NONE if interval is None else f"{interval.estimate:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
            )
            line.append(f"{told} {verdict}")
    return Table(["", *study.arms], lines)


def pointing(study: Study, *, stamp: str = "") -> bytes:
    """Pointing game of every method on shapes-hard: trained and untrained weights, and the best map without a model."""
    arms = [arm for arm in (VIT, DIFFERENTIAL, WIDE) if arm in study.arms]
    made = figure(LIGHT, 9.0, 6.2)
    axes = made.subplots()
    _dots(axes, study, arms, "pointing", untrained=True)
    best = study.best_baseline(arms[0])
    level = 100 * stats.mean(list(study.values(arms[0], best, "pointing").values()))
    axes.axvline(level, color=LIGHT.ink, lw=1.3, ls=(0, (4, 2)), label=f"best map without a model: {best}")
    dress(axes, LIGHT, title="The highest patch lies on the object (shapes-hard)", x="% of the test images", y="")
    axes.set_xlim(left=0)
    _legend(made, axes)
    return to_png(made, stamp)


def faithfulness(study: Study, *, stamp: str = "") -> bytes:
    """ROAD and SaCo of every method: a row of panels for shapes-hard, one for CIFAR-10."""
    groups = [[arm for arm in study.arms if arm.endswith(ON_CIFAR) is cifar] for cifar in (False, True)]
    groups = [arms for arms in groups if arms]
    made = figure(LIGHT, 12.0, 5.6 * len(groups))
    panels = made.subplots(len(groups), 2, squeeze=False, sharey=True)
    for row, arms in zip(panels, groups, strict=True):
        for axes, metric in zip(row, ("road", "saco"), strict=True):
            _dots(axes, study, arms, metric)
            where = "CIFAR-10" if arms[0].endswith(ON_CIFAR) else "shapes-hard"
            dress(axes, LIGHT, title=f"{REMOVED[metric]}, {where} (higher is better)", x="", y="")
            axes.axvline(0, color=LIGHT.ink, lw=1.0)
    _legend(made, panels[0][0])
    return to_png(made, stamp)


def _dots(axes: Axes, study: Study, arms: Sequence[str], metric: str, *, untrained: bool = False) -> None:
    """A line for each method: a dot for each seed, a bar at the mean; hollow dots for untrained weights."""
    factor = 100 if metric in MASKED else 1
    for index, arm in enumerate(arms):
        shade = colour(LIGHT, index)
        for place, name in enumerate(_MAPS):
            height = place + 0.22 * (index - (len(arms) - 1) / 2)
            values = [factor * value for value in study.values(arm, name, metric).values()]
            axes.plot(values, [height] * len(values), "o", color=shade, ms=4.5, alpha=0.65, mew=0)
            axes.plot([stats.mean(values)], [height], "|", color=shade, ms=12, mew=2.4)
            if untrained:
                values = [factor * value for value in study.values(arm, name, metric, weights="random").values()]
                axes.plot(values, [height] * len(values), "o", color=shade, ms=4.5, mfc="none", mew=0.9)
        axes.plot([], [], "|", color=shade, ms=12, mew=2.4, label=arm.removesuffix(ON_CIFAR))
    if untrained:
        axes.plot(
            [], [], "o", color=LIGHT.ink, ms=4.5, mfc="none", mew=0.9, label="untrained weights, at the run's clutter"
        )
    axes.set_yticks(range(len(_MAPS)), _MAPS)
    axes.set_ylim(len(_MAPS) - 0.4, -0.6)


def randomised(study: Study, *, stamp: str = "") -> bytes:
    """The sanity test: a panel for each method, correlation against the part of the model that is untrained."""
    made = figure(LIGHT, 13.0, 6.6)
    panels = made.subplots(2, 5, sharex=True, sharey=True)
    verdicts = {arm: {name: verdict for name, _, verdict in sanity(study, arm)} for arm in study.arms}
    for axes, method in zip(panels.flat, _MAPS, strict=True):
        for index, arm in enumerate(study.arms):
            stages = study.similarity(arm, method)
            means = [stats.mean(list(each.values())) for each in stages.values()]
            dashes = "--" if arm.endswith(ON_CIFAR) else "-"
            axes.plot(range(len(means)), means, dashes, color=colour(LIGHT, index), lw=1.8, label=arm)
            axes.set_xticks(range(len(stages)), list(stages), rotation=60, ha="right")
        failed = sum(verdicts[arm][method] == "fails" for arm in study.arms)
        passed = sum(verdicts[arm][method] == "passes" for arm in study.arms)
        title = f"{method}\npasses {passed}, fails {failed} of {len(study.arms)}"
        dress(axes, LIGHT, title=title, x="", y="")
        axes.axhline(SIMILAR, color=LIGHT.ink, lw=1.0, ls=(0, (1, 2)))
        axes.axhline(0, color=LIGHT.faint, lw=1.0)
        if failed:
            axes.set_facecolor("#fbe9e7")
    made.supylabel("rank correlation with the trained model's maps", color=LIGHT.ink, fontsize=11.5)
    panels[1][2].set_xlabel("untrained from the head down to", color=LIGHT.ink, fontsize=11.5)
    _legend(made, panels[0][0])
    return to_png(made, stamp)


def agreement(study: Study, *, stamp: str = "") -> bytes:
    """Rank correlation of every two methods' maps, for ViT and Diff-ViT."""
    arms = [arm for arm in (VIT, DIFFERENTIAL) if arm in study.arms]
    made = figure(LIGHT, 6.6 * len(arms), 6.4)
    panels = made.subplots(1, len(arms), squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        found = study.agreement(arm)
        axes.imshow(found, cmap="RdBu_r", vmin=-1, vmax=1)
        for row, column in np.ndindex(found.shape):
            shade = "white" if abs(found[row, column]) > 0.6 else LIGHT.ink
            axes.text(column, row, f"{found[row, column]:.2f}", ha="center", va="center", fontsize=8.5, color=shade)
        dress(axes, LIGHT, title=f"{arm}, shapes-hard", x="", y="", grid=False)
        axes.set_xticks(range(len(_MAPS)), _MAPS, rotation=60, ha="right")
        axes.set_yticks(range(len(_MAPS)), _MAPS)
    return to_png(made, stamp)


def _legend(made: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if len(labels) < 4 else 3
    made.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=LIGHT.ink)


PLOTS = {
    "pointing.png": pointing,
    "sanity.png": randomised,
    "agreement.png": agreement,
    "faithfulness.png": faithfulness,
}
