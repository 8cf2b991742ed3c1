"""Runs grouped into arms (the same settings, other seeds), named by what tells them apart, and compared honestly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from diffvit.reporting import stats
from diffvit.reporting.rows import Row, RunRecord

MODEL_NAMES = {"softmax": "ViT", "differential": "Diff-ViT"}


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
    own = {name: record.row[name] for name in ("epochs", "precision", "data", "fingerprint")}
    return own | {name: str(value) for name, value in record.settings.items() if value is not None}


def _arm_labels(records: Sequence[RunRecord]) -> list[str]:
    """Short names: the kind of model, then at most two settings that tell the arms apart; else the run's own name."""
    kinds = [_kind(record.row) for record in records]
    if len(set(kinds)) == len(kinds):
        return kinds
    names = [name for name in differences(records) if name not in ("model.attention", "seed", "device", "fingerprint")]
    if 0 < len(names) <= 2:
        details = ["".join(f", {name.split('.')[-1]} {record.row.get(name)}" for name in names) for record in records]
        labels = [kind + detail for kind, detail in zip(kinds, details, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    return _unique([str(record.row["run"]) for record in records])


def _kind(row: Row) -> str:
    """What a row's model is called."""
    name = MODEL_NAMES.get(str(row["attention"]), str(row["attention"]))
    return f"CLIP ({name})" if row.get("objective") == "contrastive" else name


def _unique(labels: Sequence[str]) -> list[str]:
    """Labels told apart by a number where two are equal."""
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return unique


def differences(records: Sequence[RunRecord]) -> dict[str, list[object]]:
    """Settings (and epochs, precision, data, seed) in which the runs differ, with each run's value."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    found: dict[str, list[object]] = {}
    for name in (*names, "epochs", "precision", "seed", "data", "fingerprint", "device"):
        values: list[object] = [record.row.get(name) for record in records]
        if len({repr(value) for value in values}) > 1:
            found[name] = values
    return found


def cannot_rank(records: Sequence[RunRecord]) -> str | None:
    """Why these runs must not be ranked against each other; None where they may be."""
    names = sorted({str(record.row["data"]) for record in records})
    if len(names) > 1:
        return f"These runs were scored on different data ({'; '.join(names)}): they are not ranked."
    if len({record.row["fingerprint"] for record in records}) > 1:
        return f"These runs name the same data ({names[0]}) but its images differ (fingerprints): they are not ranked."
    return None


def statements(grouped: Sequence[Arm]) -> list[str]:
    """What may be said of these arms, one sentence or two each; a winner only with seeds and an interval."""
    refusal = cannot_rank([record for arm in grouped for record in arm.records])
    if refusal:
        return [refusal]
    pairs = list(itertools.combinations(grouped, 2))
    if len(grouped) > 4:
        pairs = [(grouped[0], other) for other in grouped[1:]]
    said = [_pair(first, second, len(pairs)) for first, second in pairs]
    ranked = [text for text in said if "seeds" in text and "interval" in text]
    if len(ranked) > 1:
        said.append(
            f"Each interval is widened for {len(pairs)} comparisons (Bonferroni), so that together they hold 95%."
        )
    return said


def _pair(first: Arm, second: Arm, comparisons: int) -> str:
    seeds = sorted(first.accuracies.keys() & second.accuracies.keys())
    if len(seeds) >= stats.MIN_SEEDS:
        return _over_seeds(first, second, seeds, comparisons)
    gap = stats.mean(list(first.accuracies.values())) - stats.mean(list(second.accuracies.values()))
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} shared seeds"
    text = f"{first.label} minus {second.label}: {points(gap)} of test accuracy; {count}: no winner is named."
    if len(seeds) == 1:
        return f"{text} {_over_images(first, second, seeds[0])}".strip()
    return text


def _over_seeds(first: Arm, second: Arm, seeds: Sequence[int], comparisons: int) -> str:
    confidence = 1 - (1 - stats.CONFIDENCE) / comparisons
    pairs = [(first.accuracies[seed], second.accuracies[seed]) for seed in seeds]
    interval = stats.paired_difference([a for a, _ in pairs], [b for _, b in pairs], confidence)
    what = f"{100 * confidence:.3g}% paired interval over {len(seeds)} seeds"
    if not interval.excludes_zero:
        return (
            f"No winner between {first.label} and {second.label}: the first minus the second is "
            f"{points(interval.estimate)} ({what} {span(interval)}, which includes 0)."
        )
    winner, loser = (first, second) if interval.estimate > 0 else (second, first)
    if interval.estimate < 0:
        interval = stats.Interval(-interval.estimate, -interval.high, -interval.low)
    return (
        f"{winner.label} beats {loser.label} by {points(interval.estimate).lstrip('+')} of test accuracy "
        f"({what} {span(interval)})."
    )


def _over_images(first: Arm, second: Arm, seed: int) -> str:
    """The two trained models on the same images, where both runs kept their predictions."""
    correct = []
    for arm in (first, second):
        record = next(record for record in arm.records if int(record.row["seed"]) == seed)
        evaluation = record.evaluation or {}
        if not evaluation.get("predictions") or evaluation.get("split", "test") != "test":
            return ""
        correct.append((evaluation["predictions"], evaluation["labels"]))
    (ours, labels), (theirs, other_labels) = correct
    if labels != other_labels:
        return ""
    interval = stats.paired_images(
        [found == true for found, true in zip(ours, labels, strict=True)],
        [found == true for found, true in zip(theirs, labels, strict=True)],
    )
    return (
        f"Over the same {len(labels):,} test images the 95% paired interval is {span(interval)}: it covers the choice "
        "of images for these two trained models, not the luck of training."
    )


def points(fraction: float) -> str:
    """A difference of fractions in percentage points, signed."""
    return f"{100 * fraction:+z.2f} points"


def span(interval: stats.Interval) -> str:
    """An interval in percentage points."""
    return f"{100 * interval.low:+z.2f} to {100 * interval.high:+z.2f}"
