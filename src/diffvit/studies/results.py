"""What came out of a study: its rows by arm and attention, and the comparisons that they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from diffvit.config import Config
from diffvit.reporting import stats
from diffvit.reporting.rows import RunRecord
from diffvit.studies.cost import training_flops
from diffvit.studies.definitions import Study
from diffvit.studies.trials import Trial, label_of


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
    """A study's rows.

    Args:
        study: which.
        tier: how much.
        lines: in the study's order, those with rows.
        missing: names of trials without a row.
        records: all of them in the trials' order, called as their trials are.
    """

    study: Study
    tier: str
    lines: tuple[Line, ...]
    missing: tuple[str, ...]
    records: tuple[RunRecord, ...]

    @property
    def seeds(self) -> int:
        """That every line has at least."""
        return min(len(line.records) for line in self.lines)

    @property
    def may_rank(self) -> bool:
        """Whether a winner may be named: not in an exploratory study, nor with too few seeds."""
        return not self.study.exploratory and self.seeds >= stats.MIN_SEEDS

    def of(self, attention: str) -> list[Line]:
        """The lines with this attention."""
        return [line for line in self.lines if line.attention == attention]


def results_of(study: Study, tier: str, trials: Sequence[Trial], records: Mapping[str, RunRecord]) -> Results:
    """The rows of a study by line.

    Args:
        study: which.
        tier: how much.
        trials: all of its trials at this tier.
        records: by the trials' names; see :func:`diffvit.studies.pool.records_of`.
    """
    groups: dict[tuple[str, str], dict[int, RunRecord]] = {}
    first: dict[tuple[str, str], Trial] = {}
    kept: list[RunRecord] = []
    for trial in trials:
        if trial.name not in records:
            continue
        found = records[trial.name]
        record = replace(found, row={**found.row, "run": trial.name})
        kept.append(record)
        key = (trial.arm, trial.config.model.attention)
        first.setdefault(key, trial)
        groups.setdefault(key, {})[trial.config.seed] = record
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
    return Results(study, tier, tuple(lines), missing, tuple(kept))


def difference(one: Line, two: Line, comparisons: int = 1) -> stats.Interval | None:
    """The first minus the second, paired by seed; None with fewer than two seeds in common.

    Args:
        one: the first.
        two: the second.
        comparisons: that are made together; each then has so much more confidence that all hold with 95% (Bonferroni).
    """
    seeds = sorted(one.accuracies.keys() & two.accuracies.keys())
    if len(seeds) < 2:
        return None
    confidence = 1 - (1 - stats.CONFIDENCE) / comparisons
    pairs = [(one.accuracies[seed], two.accuracies[seed]) for seed in seeds]
    return stats.paired_difference([a for a, _ in pairs], [b for _, b in pairs], confidence)


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
    seeds = set.intersection(*(a.accuracies.keys() & b.accuracies.keys() for a, b in pairs))
    if len(seeds) < 2:
        return None
    ours, theirs = (
        [stats.mean([pair[side].accuracies[seed] for pair in pairs]) for seed in sorted(seeds)] for side in (0, 1)
    )
    return stats.paired_difference(ours, theirs)
