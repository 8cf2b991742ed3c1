"""What came out of a study: its rows by arm and attention, and the comparisons that they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffvit.config import Config
from diffvit.experiments.cost import training_flops
from diffvit.experiments.definitions import Study
from diffvit.experiments.trials import Trial, label_of
from diffvit.reporting import stats
from diffvit.reporting.arms import Ranking, ranking, shared_seeds
from diffvit.reporting.rows import CONDITIONS, RunRecord


@dataclass(frozen=True)
class Line:
    """One arm with one attention.

    Args:
        label: for tables.
        arm: as the study calls it.
        attention: of its model.
        config: of its first seed.
        records: by seed.
    """

    label: str
    arm: str
    attention: str
    config: Config
    records: Mapping[int, RunRecord]

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy by seed."""
        return {seed: float(record.row["test_accuracy"]) for seed, record in self.records.items()}

    @property
    def mean(self) -> float:
        """Of the test accuracies."""
        return stats.mean(list(self.accuracies.values()))

    @property
    def validation(self) -> float | None:
        """Mean validation accuracy; None where images were not kept for it."""
        found = [record.row["val_accuracy"] for record in self.records.values()]
        return None if any(value is None for value in found) else stats.mean([float(value) for value in found])

    @property
    def flops(self) -> float:
        """Of a whole training, from the model's sizes: alike for arms that differ in nothing that costs."""
        return training_flops(self.config)

    def mean_of(self, column: str) -> float:
        """Of a figure of the rows."""
        return stats.mean([float(record.row[column]) for record in self.records.values()])

    @property
    def last_training_accuracy(self) -> float | None:
        """Of the last epoch, on augmented images as they were trained on; None where no epochs are known."""
        found = [record.epochs[-1]["train_accuracy"] for record in self.records.values() if record.epochs]
        return stats.mean(found) if found else None


@dataclass(frozen=True)
class Results:
    """A study's rows of the same data, precision and hardware.

    Args:
        study: which.
        tier: how much.
        lines: in the study's order, those with rows.
        missing: names of trials without a row.
        records: all of them in the trials' order.
        others: rows of the same tier on other data, precision or hardware, which are never ranked with these.
    """

    study: Study
    tier: str
    lines: tuple[Line, ...]
    missing: tuple[str, ...]
    records: tuple[RunRecord, ...]
    others: tuple[Results, ...] = ()

    @property
    def seeds(self) -> int:
        """That every line has at least."""
        return min(len(line.records) for line in self.lines)

    @property
    def may_rank(self) -> bool:
        """Whether a winner may be named: not in an exploratory study, nor with too few seeds."""
        return not self.study.exploratory and self.seeds >= stats.MIN_SEEDS

    @property
    def chosen_on(self) -> Literal["validation", "test"]:
        """On which images the best line is chosen: on the test set only where none were kept for validation."""
        return "test" if any(line.validation is None for line in self.lines) else "validation"

    @property
    def conditions(self) -> dict[str, str]:
        """Data, precision, device, hardware and training images of the rows, in words."""
        row = self.records[0].row
        told = {name: str(row[name]) for name in CONDITIONS if name != "fingerprint"}
        return told | {"train_images": f"{row['train_images']:,} training images"}

    def best(self, lines: Sequence[Line] | None = None) -> Line:
        """The line with the highest mean accuracy on the images of :attr:`chosen_on`; of all lines by default."""
        choose = (lambda line: line.mean) if self.chosen_on == "test" else (lambda line: line.validation)
        return max(lines or self.lines, key=choose)

    def of(self, attention: str) -> list[Line]:
        """The lines with this attention."""
        return [line for line in self.lines if line.attention == attention]

    def ranking(self, lines: Sequence[Line]) -> Ranking | None:
        """All pairs of these lines together; None where no winner may be named."""
        if not self.may_rank:
            return None
        found = ranking([list(line.records.values()) for line in lines])
        return found if found and len(found.seeds) >= stats.MIN_SEEDS else None


def results_of(study: Study, tier: str, trials: Sequence[Trial], records: Mapping[str, Sequence[RunRecord]]) -> Results:
    """The rows of a study by line, those of the data, precision and hardware with most rows; the others beside them.

    Args:
        study: which.
        tier: how much.
        trials: all of its trials at this tier.
        records: by the trials' names; see :func:`diffvit.experiments.pool.records_of`. There is at least one.
    """
    together: dict[tuple[object, ...], dict[str, RunRecord]] = {}
    for trial in trials:
        for record in records.get(trial.name, ()):
            together.setdefault(record.conditions, {}).setdefault(trial.name, record)
    found = [_results(study, tier, trials, each) for each in together.values()]
    return beside(found)


def beside(found: Sequence[Results]) -> Results:
    """The results with fewest trials missing, of these the first, with the others beside them."""
    first = min(found, key=lambda each: len(each.missing))
    rest = [one for one in found if one is not first]
    return replace(
        first, others=(*first.others, *(each for one in rest for each in (replace(one, others=()), *one.others)))
    )


def _results(study: Study, tier: str, trials: Sequence[Trial], records: Mapping[str, RunRecord]) -> Results:
    groups: dict[tuple[str, str], dict[int, RunRecord]] = {}
    first: dict[tuple[str, str], Trial] = {}
    for trial in (each for each in trials if each.name in records):
        key = (trial.arm, trial.config.model.attention)
        first.setdefault(key, trial)
        groups.setdefault(key, {})[trial.config.seed] = records[trial.name]
    ordered = sorted(groups, key=lambda key: list(study.arms).index(key[0]))  # stable: attentions as they come
    lines = [
        Line(
            label_of(arm, attention, study.attentions),
            arm,
            attention,
            first[arm, attention].config,
            groups[arm, attention],
        )
        for arm, attention in ordered
    ]
    missing = tuple(trial.name for trial in trials if trial.name not in records)
    kept = tuple(records[trial.name] for trial in trials if trial.name in records)
    return Results(study, tier, tuple(lines), missing, kept)


def difference(one: Line, two: Line) -> stats.Interval | None:
    """The first minus the second, paired by seed, for this one comparison; None with fewer than two seeds in common."""
    found = ranking([list(one.records.values()), list(two.records.values())])
    return found.between(0, 1) if found else None


def compared_arms(results: Results, one: str, two: str) -> list[tuple[Line, Line]]:
    """Each arm with both attentions; not those that hardly learn with either, under half of the study's best mean."""
    least = max(line.mean for line in results.lines) / 2
    pairs = [(a, b) for a in results.of(one) for b in results.of(two) if a.arm == b.arm]
    return [(a, b) for a, b in pairs if max(a.mean, b.mean) >= least]


def over_all_arms(results: Results, one: str, two: str) -> stats.Interval | None:
    """One attention minus the other as the mean over the arms that have both, paired by seed.

    A seed is a unit: its arms start from the same weights where they can, and are no independent draws.
    """
    pairs = compared_arms(results, one, two)
    if not pairs:
        return None
    seeds = shared_seeds([list(line.records.values()) for pair in pairs for line in pair])
    if len(seeds) < 2:
        return None
    ours, theirs = ([stats.mean([pair[side].accuracies[seed] for pair in pairs]) for seed in seeds] for side in (0, 1))
    images = [record.row["test_images"] for record in results.records if record.row["test_images"]]
    return stats.paired_difference(ours, theirs, min(map(int, images), default=None))
