"""Runs grouped into arms (the same settings, other seeds), named by what tells them apart, and compared honestly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffvit.registry import label_of
from diffvit.reporting import stats
from diffvit.reporting.rows import CONDITIONS, Row, RunRecord


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    records: list[RunRecord]

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy by seed."""
        rows = [record.row for record in self.records]
        return {int(row["seed"]): float(row["test_accuracy"]) for row in rows if row["test_accuracy"] is not None}

    @property
    def classes(self) -> list[str]:
        """Class names, from a run that knows them."""
        return next((record.classes for record in self.records if record.classes), [])

    @property
    def confusion(self) -> list[list[int]]:
        """Confusion counts summed over the runs that kept them; empty where none did."""
        kept = [record.evaluation["confusion"] for record in self.records if record.evaluation]
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*kept, strict=True)]

    @property
    def class_accuracies(self) -> list[float | None]:
        """Accuracy of each class from :attr:`confusion`; None for a class without images."""
        return [row[index] / sum(row) if sum(row) else None for index, row in enumerate(self.confusion)]

    @property
    def class_precisions(self) -> list[float | None]:
        """Precision of each class from :attr:`confusion`; None for a class that was never predicted."""
        columns = zip(*self.confusion, strict=True)
        return [column[index] / sum(column) if sum(column) else None for index, column in enumerate(columns)]


def arms(records: Sequence[RunRecord]) -> list[Arm]:
    """Records as arms, in the order in which they first appear; a run made twice stands apart, it is no second seed."""
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        identity = repr(sorted(_identity(record).items()))
        same = [each for (name, _), group in groups.items() if name == identity for each in group]
        repeats = sum(each.row["seed"] == record.row["seed"] for each in same)
        groups.setdefault((identity, repeats), []).append(record)
    firsts = [group[0] for group in groups.values()]
    return [Arm(label, group) for label, group in zip(_arm_labels(firsts), groups.values(), strict=True)]


def _identity(record: RunRecord) -> Row:
    own = {name: record.row[name] for name in ("epochs", *CONDITIONS)}
    return own | {name: str(value) for name, value in record.settings.items() if value is not None}


def _arm_labels(records: Sequence[RunRecord]) -> list[str]:
    """Short names: the kind of model, then at most two settings that tell the arms apart; else the run's own name."""
    kinds = [_kind(record.row) for record in records]
    if len(set(kinds)) == len(kinds):
        return kinds
    hidden = ("model.attention", "seed", "fingerprint", "hardware")
    names = [name for name in differences(records) if name not in hidden]
    if 0 < len(names) <= 2:
        details = ["".join(f", {_setting(name, record.row.get(name))}" for name in names) for record in records]
        labels = [kind + detail for kind, detail in zip(kinds, details, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    runs = [str(record.row["run"]) for record in records]
    repeats = [runs[: place + 1].count(run) for place, run in enumerate(runs)]
    return [run if number == 1 else f"{run} ({number})" for run, number in zip(runs, repeats, strict=True)]


def _setting(name: str, value: object) -> str:
    name = name.split(".")[-1]
    return f"no {name}" if value in (None, "none") else f"{name} {value}"


def _kind(row: Row) -> str:
    """What a row's model is called."""
    name = label_of(row["attention"])
    return f"CLIP ({name})" if row.get("objective") == "contrastive" else name


def differences(records: Sequence[RunRecord]) -> dict[str, list[object]]:
    """Settings (and epochs, seed, data, precision, hardware) in which the runs differ, with each run's value."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    found: dict[str, list[object]] = {}
    for name in (*names, "epochs", "precision", "seed", "data", "fingerprint", "device", "hardware"):
        values: list[object] = [record.row.get(name) for record in records]
        if len({repr(value) for value in values}) > 1:
            found[name] = values
    return found


@dataclass(frozen=True)
class Ranking:
    """Arms compared over the seeds that they share, and ``by_image`` also test image by test image.

    ``intervals`` are those of :func:`diffvit.reporting.stats.simultaneous_differences`.
    """

    seeds: list[int]
    intervals: dict[tuple[int, int], stats.Interval]
    by_image: bool = False

    def between(self, one: int, two: int) -> stats.Interval:
        """The first arm minus the second, whichever order."""
        return self.intervals[one, two] if one < two else -self.intervals[two, one]


def shared_seeds(groups: Sequence[Sequence[RunRecord]]) -> list[int]:
    """Seeds with a test accuracy in every arm (the runs of each, one for each seed), computed with the same kernels."""
    runs = [
        {(int(each.row["seed"]), each.row.get("kernels")) for each in records if each.row["test_accuracy"] is not None}
        for records in groups
    ]
    return sorted({seed for seed, _ in set.intersection(*runs)})


def ranking(groups: Sequence[Sequence[RunRecord]]) -> Ranking | None:
    """All pairs of arms over their shared seeds; None for fewer than two arms or shared seeds.

    Two seeds give an interval to show; a winner is named from :data:`~diffvit.reporting.stats.MIN_SEEDS` on. Where the
    test images are not the same number for all, the smallest counts.

    Args:
        groups: the runs of each arm, one for each seed, all of the same data, precision, device and hardware.
    """
    seeds = shared_seeds(groups) if len(groups) > 1 else []
    if len(seeds) < 2:
        return None
    counts = [int(count) for records in groups for record in records if (count := record.row.get("test_images"))]
    by_seed = [{int(record.row["seed"]): record for record in records} for records in groups]
    accuracies = [[float(arm[seed].row["test_accuracy"]) for seed in seeds] for arm in by_seed]
    # Which test images each seed of an arm classified correctly, (seeds, images), where all of its runs say so.
    correct: list[stats.Correct | None] = [None] * len(groups)
    if len({each.fingerprint for records in groups for record in records if (each := record.correct)}) == 1:
        known = [[each.images for seed in seeds if (each := arm[seed].correct)] for arm in by_seed]
        correct = [np.stack(found) if len(found) == len(seeds) else None for found in known]
    intervals = stats.simultaneous_differences(accuracies, min(counts, default=None), correct=correct)
    return Ranking(seeds, intervals, all(each is not None for each in correct))


def why_apart(records: Sequence[RunRecord]) -> str | None:
    """The reason why these runs must not be ranked together: other data, precision, device or hardware; else None."""
    never = "are shown and never ranked together."
    for column, word in (("data", "data"), ("precision", "precision"), ("device", "devices"), ("hardware", "hardware")):
        found = sorted({str(record.row.get(column)) for record in records})
        if len(found) > 1:
            return f"Runs of different {word} ({'; '.join(found)}) {never}"
    if len({record.row["fingerprint"] for record in records}) > 1:
        return f"Runs on data of the same name ({records[0].row['data']}) but with other images {never}"
    return None


@dataclass(frozen=True)
class Comparison:
    """Two arms of the same data, precision and hardware over their shared seeds: the first minus the second.

    ``interval`` is there from :data:`~diffvit.reporting.stats.MIN_SEEDS` shared seeds on, where a winner may be named;
    ``same_images`` with one seed of which it is known which images each model classified correctly: how many, and the
    interval paired over them.
    """

    first: Arm
    second: Arm
    seeds: int
    difference: float  # in test accuracy; of the means over all seeds where none is shared
    interval: stats.Interval | None = None
    by_image: bool = False  # whether the interval is also paired test image by test image
    same_images: tuple[int, stats.Interval] | None = None


def comparisons(grouped: Sequence[Arm]) -> list[tuple[list[Comparison], int]]:
    """For each data, precision and hardware: pairs of its arms, and how many arms have intervals that hold jointly.

    All pairs of at most four arms; of more, the first arm with each other.
    """
    alike: dict[tuple[object, ...], list[Arm]] = {}
    for arm in grouped:
        alike.setdefault(arm.records[0].conditions, []).append(arm)
    return [_comparable(each) for each in alike.values()]


def _comparable(grouped: Sequence[Arm]) -> tuple[list[Comparison], int]:
    family: list[Arm] = []  # ranked together: in their order, each arm that leaves enough seeds common to all
    for arm in grouped:
        if len(shared_seeds([each.records for each in (*family, arm)])) >= stats.MIN_SEEDS:
            family.append(arm)
    ranked = ranking([arm.records for arm in family])
    pairs = []
    for first, second in itertools.combinations(grouped, 2):
        if len(grouped) > 4 and first is not grouped[0]:
            break
        if ranked and first in family and second in family:
            interval = ranked.between(family.index(first), family.index(second))
            pair = Comparison(first, second, len(ranked.seeds), interval.estimate, interval, ranked.by_image)
        else:
            pair = _unranked(first, second)
        pairs.append(pair)
    return pairs, len(family) if ranked else 0


def _unranked(first: Arm, second: Arm) -> Comparison:
    """Too few shared seeds for a winner: the difference over those there are."""
    seeds = shared_seeds([first.records, second.records])
    means = [stats.mean([arm.accuracies[seed] for seed in seeds or arm.accuracies]) for arm in (first, second)]
    same_images = None
    if len(seeds) == 1:
        runs = [each for arm in (first, second) for each in arm.records if int(each.row["seed"]) == seeds[0]]
        one, two = (run.correct for run in runs)
        if one and two and one.fingerprint == two.fingerprint:
            same_images = one.count, stats.paired_images(one.images, two.images)
    return Comparison(first, second, len(seeds), means[0] - means[1], same_images=same_images)


def span(interval: stats.Interval) -> str:
    """An interval in percentage points."""
    return f"{100 * interval.low:+z.2f} to {100 * interval.high:+z.2f}"
