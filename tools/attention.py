"""The attention study's report: ``reports/attention/report.md`` and its plots, from the rows beside them.

The study is ``attention`` of :data:`diffvit.experiments.study.STUDIES`, scored by
:func:`diffvit.attention.scores.map_scores`; here its numbers are paired, tested and drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diffvit.attention.scores import FIRST_MAP, METRICS
from diffvit.errors import InputError
from diffvit.files import read_csv
from diffvit.reporting import stats
from diffvit.reporting.arms import span
from diffvit.reporting.rows import EPOCHS_FILE, ROWS_FILE, Row, RunRecord, read
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from diffvit.reporting.tables import Table
from diffvit.reporting.texts import data_lines
from tools.pages import Content, Picture, render

FOLDER = Path("reports/attention")  # made by diffvit study report attention
SCORES, CURVES = "scores.csv", "removal.csv"
SOFTMAX, DIFFERENTIAL, WIDE = "ViT", "Diff-ViT", "ViT, half the heads"
Values = dict[tuple[int, float | None], float]  # by seed and clutter
_ARMS = (SOFTMAX, DIFFERENTIAL, WIDE)
_BASELINES = {"centre": (0, (4, 2)), "uniform": (0, (1, 2))}


@dataclass(frozen=True)
class Study:
    """All rows of the study.

    Args:
        records: of the trainings.
        scores: per trained model and map.
        curves: per trained model, map and share of patches.
    """

    records: list[RunRecord]
    scores: list[Row]
    curves: list[Row]

    @cached_property
    def last(self) -> str:
        """Name of the last layer's map."""
        return self.layers[-1]

    @cached_property
    def maps(self) -> list[str]:
        """Every map's name, in the order of the rows."""
        return list(dict.fromkeys(str(row["map"]) for row in self.scores))

    @cached_property
    def layers(self) -> list[str]:
        """Names of the layers' own maps, first to last."""
        return [name for name in self.maps if name.startswith("layer") and FIRST_MAP not in name]

    @cached_property
    def clutter(self) -> list[float]:
        """The levels, ascending."""
        return sorted({row["clutter"] for row in self.scores if row["clutter"] is not None})

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({row["seed"] for row in self.scores})

    @cached_property
    def names(self) -> dict[str, str]:
        """What each source's data is called wherever a result is quoted, as ``cifar10`` to ``CIFAR-10 (JPEG)``."""
        found = {
            str(record.row["source"]): str(record.row["data"]) for record in self.records if "source" in record.row
        }
        return {**found, "shapes": "shapes"}

    def values(self, arm: str, name: str, metric: str, data: str = "shapes") -> Values:
        """A score by seed and clutter."""
        return {
            (row["seed"], row["clutter"]): row[metric]
            for row in self.scores
            if (row["arm"], row["map"], row["data"]) == (arm, name, data) and row[metric] is not None
        }

    def images(self, metric: str, data: str = "shapes") -> int | None:
        """Of how many test images a metric, or ``accuracy``, is the mean; the fewest of its rows, None where unknown.

        Clutter levels have images of their own, which makes an interval of their mean wider than it need be.
        """
        if metric == "accuracy":
            sources = {row["config_hash"]: row["data"] for row in self.scores}
            counts = [each.row["test_images"] for each in self.records if sources.get(each.row["config_hash"]) == data]
        else:
            column = "removal_images" if metric in ("deletion", "insertion") else "images"
            counts = [row[column] for row in self.scores if row["data"] == data]
        return min((int(count) for count in counts if count), default=None)

    def accuracies(self, arm: str, data: str = "shapes") -> Values:
        """Test accuracy by seed and clutter."""
        owners = {(row["config_hash"], row["seed"]): row for row in self.scores if row["arm"] == arm}
        return {
            (owner["seed"], owner["clutter"]): record.row["test_accuracy"]
            for record in self.records
            if (owner := owners.get((record.row["config_hash"], record.row["seed"]))) and owner["data"] == data
        }


def read_study(folder: Path) -> Study:
    """The study from its files.

    Raises:
        InputError: damaged rows.
    """
    scores, curves = (_by_model(read_csv(folder / name)) for name in (SCORES, CURVES))
    return Study(read(folder), scores, curves)


def _by_model(rows: list[Row]) -> list[Row]:
    """Rows whose arm is the model alone: ``ViT`` for the arm "ViT on clutter 0.3"."""
    return [{**row, "arm": row["arm"].partition(" on ")[0]} for row in rows]


def gap(
    first: Values, second: Values, images: int | None, comparisons: int = 1, clutter: float | None = None
) -> stats.Interval | None:
    """First minus second, paired by seed; None for fewer than two seeds.

    The pairs of one seed, one per clutter level, are averaged first (or those at one level taken, if given): they start
    from the same weights, so they are no independent evidence of what training does.

    Args:
        first: scores in [0, 1], such as shares of images.
        second: likewise.
        images: that each score is a mean over; its sampling variance is bounded by that of a share.
        comparisons: that were chosen beforehand and are made together (Bonferroni).
        clutter: this level alone.
    """
    pairs = [key for key in differences(first, second) if clutter is None or key[1] == clutter]
    seeds = sorted({seed for seed, _ in pairs})
    if len(seeds) < 2:
        return None
    one, two = (
        [stats.mean([side[key] for key in pairs if key[0] == seed]) for seed in seeds] for side in (first, second)
    )
    return stats.paired_difference(one, two, images, 1 - (1 - stats.CONFIDENCE) / comparisons)


def differences(first: Values, second: Values) -> Values:
    """First minus second for every pair of seed and clutter that both have."""
    return {key: first[key] - second[key] for key in sorted(first.keys() & second.keys(), key=str)}


@dataclass(frozen=True)
class Question:
    """One comparison: two maps, each (arm, map), in one metric."""

    label: str
    first: tuple[str, str]
    second: tuple[str, str]
    metric: str


@dataclass(frozen=True)
class Answer:
    """Its 95% interval, and the one widened for the number of questions asked with it; None for too few seeds.

    ``pairs`` are the single differences, one per seed and clutter level.
    """

    question: Question
    interval: stats.Interval | None
    widened: stats.Interval | None
    pairs: tuple[float, ...] = ()

    @property
    def outcome(self) -> str:
        """better, worse or undecided, for the first of the two."""
        if self.widened is None or not self.widened.excludes_zero:
            return "undecided"
        return "better" if (self.widened.low > 0) != (self.question.metric == "deletion") else "worse"

    @property
    def above(self) -> int:
        """How many of the single differences are above 0."""
        return sum(pair > 0 for pair in self.pairs)


def documents(root: Path) -> dict[Path, Content]:
    """Report and plots; none where nothing was scored yet.

    Raises:
        InputError: damaged rows, or a report without any.
    """
    return {FOLDER / name: content for name, content in of_folder(root / FOLDER).items()}


def of_folder(folder: Path) -> dict[str, Content]:
    """The files of one folder, by name.

    Raises:
        InputError: damaged rows, or a report without any.
    """
    if not (folder / SCORES).is_file():
        page = folder / "report.md"
        if page.exists():
            raise InputError(str(page), "there are no rows beside it", "Delete it, or run the study again.")
        return {}
    study = read_study(folder)
    files = [folder / name for name in (ROWS_FILE, EPOCHS_FILE, SCORES, CURVES)]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()
    pictures: dict[str, Content] = {
        name: Picture(stamp, partial(draw, study, stamp=stamp)) for name, draw in PLOTS.items()
    }
    return {"report.md": report(study), **pictures}


def between(study: Study, first: str, second: str) -> list[Question]:
    """Where two arms' maps lie: rollout's and the last layer's, by every metric."""
    return [
        Question(f"{name}, {text}", (first, name), (second, name), metric)
        for name in ("rollout", study.last)
        for metric, text in METRICS.items()
    ]


def within(study: Study) -> list[Question]:
    """What the subtraction does to the mass on the object, in each layer and in all."""
    return [
        Question(f"{name}, mass on the object", (DIFFERENTIAL, name), (DIFFERENTIAL, name + FIRST_MAP), "mass")
        for name in (*study.layers, "rollout")
    ]


def taken_apart(study: Study) -> list[Question]:
    """Deletion and insertion in the order of two arms' maps."""
    return [
        Question(f"{name}, {metric} area", (DIFFERENTIAL, name), (SOFTMAX, name), metric)
        for name in ("rollout", study.last)
        for metric in ("deletion", "insertion")
    ]


def answers(study: Study, questions: Sequence[Question], data: str = "shapes") -> list[Answer]:
    """Every question over the seeds, and the pairs of seed and clutter, that both maps have."""
    found = []
    for question in questions:
        first, second = (study.values(*side, question.metric, data) for side in (question.first, question.second))
        pairs = tuple(differences(first, second).values())
        images = study.images(question.metric, data)
        widened = gap(first, second, images, comparisons=len(questions))
        found.append(Answer(question, gap(first, second, images), widened, pairs))
    return found


def outcomes(found: Sequence[Answer]) -> dict[str, list[str]]:
    """The labels of those that are better, worse and undecided."""
    words = ("better", "worse", "undecided")
    return {word: [each.question.label for each in found if each.outcome == word] for word in words}


def growth(study: Study, metric: str) -> stats.Interval | None:
    """How the gap of rollout between the arms changes from the least clutter to the most, over the seeds."""
    low, high = study.clutter[0], study.clutter[-1]
    ours, theirs = (study.values(arm, "rollout", metric) for arm in (DIFFERENTIAL, SOFTMAX))
    seeds = [seed for seed in study.seeds if all((seed, at) in side for side in (ours, theirs) for at in (low, high))]
    # (ours at high + theirs at low) - (theirs at high + ours at low), halved: each side is a mean score again.
    one: Values = {(seed, None): (ours[seed, high] + theirs[seed, low]) / 2 for seed in seeds}
    two: Values = {(seed, None): (theirs[seed, high] + ours[seed, low]) / 2 for seed in seeds}
    half = gap(one, two, study.images(metric))
    return half and stats.Interval(2 * half.estimate, 2 * half.low, 2 * half.high)


def report(study: Study) -> str:
    """The whole report as Markdown."""
    rows = [record.row for record in study.records]
    data = list(dict.fromkeys(str(row["data"]) for row in rows))
    helpers = (by_clutter, subtraction_table, removal_table, accuracy_table, outcomes, growth)
    return render(
        "attention.md",
        study=study,
        metrics=METRICS,
        data=data,
        data_lines=data_lines(row for row in rows if str(row["data"]).startswith("CIFAR")),
        own=answers(study, between(study, DIFFERENTIAL, SOFTMAX)),
        wide=answers(study, between(study, DIFFERENTIAL, WIDE)),
        inner=answers(study, within(study)),
        cifar=answers(study, taken_apart(study), "cifar10"),
        accuracy_gap=gap(study.accuracies(DIFFERENTIAL), study.accuracies(SOFTMAX), study.images("accuracy")),
        removed=_counts(study, "{:,} test images of {}", "removal_images"),
        scored=_counts(study, "{:,} of {}", "images"),
        **{each.__name__: each for each in helpers},
    )


def _counts(study: Study, words: str, column: str) -> str:
    counts = {row["data"]: row[column] for row in study.scores if row[column]}
    return ", ".join(words.format(count, study.names.get(data, data)) for data, count in sorted(counts.items()))


def by_clutter(study: Study, name: str, metric: str) -> Table:
    """Rollout's or a layer's score in one metric: a line per clutter level, a column per arm and baseline."""
    arms = (SOFTMAX, WIDE, DIFFERENTIAL)
    columns = [f"Clutter ({METRICS[metric]})", *arms, "uniform", "centre", "Diff-ViT minus ViT (95% paired interval)"]
    ours, theirs = (study.values(arm, name, metric) for arm in (DIFFERENTIAL, SOFTMAX))
    lines = []
    for clutter in study.clutter:
        cells = [_mean(study.values(arm, name, metric), clutter) for arm in arms]
        cells += [_mean(study.values(SOFTMAX, baseline, metric), clutter) for baseline in ("uniform", "centre")]
        apart = gap(ours, theirs, study.images(metric), clutter=clutter)
        lines.append([f"{clutter:g}", *cells, _points(apart)])
    return Table(columns, lines)


def _points(interval: stats.Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval.estimate:+.1f} ({span(interval)})"


def _mean(values: Values, clutter: float | None) -> str:
    found = [value for (_, level), value in values.items() if level == clutter]
    if not found:
        return "-"
    spread = stats.std(found)
    return f"{100 * stats.mean(found):.1f}" + (f" ± {100 * spread:.1f}" if spread else "")


def _over_all(values: Values, digits: str, factor: int = 1) -> str:
    return f"{factor * stats.mean(list(values.values())):{digits}}" if values else "-"


def subtraction_table(study: Study) -> Table:
    """Mass on the object by Diff-ViT's effective maps and by its first maps alone."""
    lines = []
    for name in (*study.layers, "rollout"):
        whole, first = (study.values(DIFFERENTIAL, each, "mass") for each in (name, name + FIRST_MAP))
        means = [_over_all(part, ".1f", 100) for part in (whole, first)]
        lines.append([name, *means, _points(gap(whole, first, study.images("mass")))])
    return Table(["Mass on the object, %", "effective", "A1 alone", "difference (95%)"], lines)


def removal_table(study: Study) -> Table:
    """Areas of deletion and insertion on CIFAR-10."""
    lines = []
    for name in ("rollout", study.last, "centre", "random"):
        for metric in ("deletion", "insertion"):
            ours, theirs = (study.values(arm, name, metric, "cifar10") for arm in (DIFFERENTIAL, SOFTMAX))
            means = [_over_all(part, ".3f") for part in (theirs, ours)]
            found = gap(ours, theirs, study.images(metric, "cifar10"))
            told = "-" if found is None else f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            better = "lower is better" if metric == "deletion" else "higher is better"
            lines.append([f"{name}, {metric} ({better})", *means, told])
    return Table(["Area", SOFTMAX, DIFFERENTIAL, "Diff-ViT minus ViT (95%)"], lines)


def accuracy_table(study: Study) -> Table:
    """Test accuracy of every arm, on shapes at each clutter level and on CIFAR-10."""
    rows: Iterable[tuple[str, str, float | None]] = [
        *(("shapes", f"shapes, clutter {clutter:g}", clutter) for clutter in study.clutter),
        ("cifar10", study.names.get("cifar10", "CIFAR-10"), None),
    ]
    lines = []
    for data, label, clutter in rows:
        of_arms = [study.accuracies(arm, data) for arm in (SOFTMAX, WIDE, DIFFERENTIAL)]
        apart = gap(of_arms[2], of_arms[0], study.images("accuracy", data), clutter=clutter)
        lines.append([label, *(_mean(part, clutter) for part in of_arms), _points(apart)])
    return Table(["Test accuracy, %", SOFTMAX, WIDE, DIFFERENTIAL, "Diff-ViT minus ViT (95%)"], lines)


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
        for baseline, dashes in _BASELINES.items():
            values = study.values(SOFTMAX, baseline, metric)
            means = [_mean_at(values, clutter) for clutter in study.clutter]
            axes.plot(study.clutter, means, color=theme.ink, lw=1.2, ls=dashes, label=f"{baseline}: no attention")
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


PLOTS = {
    "on-object.png": on_object,
    "last-layer.png": last_layer,
    "subtraction.png": subtraction,
    "removal.png": removal,
    "accuracy.png": accuracy,
}
