"""Results of a study: rows of finished runs by arm and attention, and the comparisons between arms that they allow."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffvit.config import Config, merge, nested
from diffvit.errors import ConfigError, did_you_mean
from diffvit.experiments.runner import TEST_ACCURACY, numbers_in, scores_of, stem_of
from diffvit.experiments.study import REPORTS, RUNS, Cell, Study, TierName, find_study, training_flops
from diffvit.files import Row, read_csv
from diffvit.registry import label_of
from diffvit.reporting import stats
from diffvit.reporting.arms import Arm, Ranking, ranking, shared_seeds
from diffvit.reporting.rows import CONDITIONS, SCORE, RunRecord, read, read_run
from diffvit.training.run_dir import RunDir

TRIALS_FILE = "trials.csv"
SEARCHED_ON = ("data", "precision", "device")  # what tells the trials of a search apart that may not be compared


def records_of(
    cells: Sequence[Cell], runs: Path = RUNS, reports: Path = REPORTS, score: str = TEST_ACCURACY
) -> dict[str, list[RunRecord]]:
    """Finished runs and committed rows of each cell of a study, under any conditions, by the cell's name.

    Runs without the numbers of the study's ``score`` are not finished.

    Raises:
        InputError: a damaged run or rows.csv.
    """
    known: dict[tuple[Any, ...], dict[tuple[Any, ...], RunRecord]] = {}
    for record in read(reports / cells[0].study):
        known.setdefault(record.key[:2], {})[record.key] = record
    found: dict[str, list[RunRecord]] = {}
    for cell in cells:
        records, stem = dict(known.get(cell.key, {})), stem_of(cell)
        for folder in sorted((runs / cell.tier).glob(f"{stem}*")):
            tag = folder.name.removeprefix(stem)
            if tag and not (tag.startswith("-") and tag[1:].isalnum()):
                continue  # another seed, a run that the runner renamed, or its errors
            if (scores := scores_of(folder, score)) is None:
                continue
            record = read_run(RunDir(folder))
            # A row that is committed keeps its name.
            name = records[record.key].row["run"] if record.key in records else f"{cell.name}{tag}"
            numbers = numbers_in(scores) if score != TEST_ACCURACY else {}
            own = {"run": name} | {f"{SCORE}{number}": value for number, value in numbers.items()}
            records[record.key] = replace(record, row=record.row | own)
        if records:
            found[cell.name] = list(records.values())
    return found


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The trials of the data, precision and device that most were computed on; those of others are not ranked."""
    together: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(tuple(row.get(name) for name in SEARCHED_ON), []).append(row)
    return max(together.values(), key=len, default=[])


def best_of(rows: Sequence[Row]) -> dict[str, Row]:
    """For each arm or attention the complete trial with the highest validation accuracy, the first of equals."""
    best: dict[str, Row] = {}
    for row in (row for row in rows if row["state"] == "complete"):
        if row["val_accuracy"] > best.setdefault(row["attention"], row)["val_accuracy"]:
            best[row["attention"]] = row
    return best


def tuned(study: Study, tier: TierName, reports: Path = REPORTS) -> Study | None:
    """A study with the settings of each arm's best trial, or as it is where no search tunes it.

    The trials are those of the arm's name, or of its part before a colon: ``V1: 10% of the images`` has V1's. Settings
    that an arm gives itself stay. None where some arm does not have all of its trials at this tier.

    Raises:
        ConfigError: there is no such search.
        InputError: a damaged trials.csv.
    """
    if study.tuned is None:
        return study
    search = find_study(study.tuned)
    file, space = reports / search.name / TRIALS_FILE, search.search
    if space is None:
        raise ConfigError(f"study {study.name}", f"tuned: {study.tuned} searches nothing")
    source = {arm: arm if arm in search.searched else arm.partition(":")[0] for arm in study.arms}
    for arm in dict.fromkeys(source.values()).keys() - search.searched.keys():
        why = f"tuned: {study.tuned} has no arm {arm!r};{did_you_mean(arm, search.searched)}"
        raise ConfigError(f"study {study.name}", why.rstrip(";"))
    rows = comparable([row for row in (read_csv(file) if file.is_file() else []) if row["tier"] == tier])
    counts, best = Counter(row["attention"] for row in rows), best_of(rows)
    if any(counts[arm] < space.trials.get(tier, 1) or arm not in best for arm in source.values()):
        return None
    found = {arm: nested({name: best[of][name] for name in space.settings}) for arm, of in source.items()}
    return study.model_copy(update={"arms": {arm: merge(found[arm], own) for arm, own in study.arms.items()}})


@dataclass(frozen=True)
class Line(Arm):
    """One arm of a study with one attention; ``label`` is for tables, ``arm`` the study's name of it.

    ``config`` is that of its first seed, ``attention`` that of its model.
    """

    arm: str
    attention: str
    config: Config

    @property
    def mean(self) -> float:
        """Mean test accuracy over the seeds."""
        return stats.mean(list(self.accuracies.values()))

    @property
    def validation(self) -> float | None:
        """Mean validation accuracy; None where images were not kept for it."""
        kept = all(record.row["val_accuracy"] is not None for record in self.records)
        return self.mean_of("val_accuracy") if kept else None

    @property
    def flops(self) -> float:
        """FLOPs of a whole training, computed from the model's sizes."""
        return training_flops(self.config)

    def mean_of(self, column: str) -> float:
        """Mean over the seeds of a figure of the rows."""
        return stats.mean([float(record.row[column]) for record in self.records])

    @property
    def train_seconds(self) -> float:
        """Median over the seeds: a run beside other work may take several times as long."""
        return statistics.median(float(record.row["train_seconds"]) for record in self.records)

    @property
    def scores(self) -> dict[str, list[float]]:
        """Numbers of the study's score over the seeds, by name; empty where it is the test accuracy."""
        names = dict.fromkeys(name for record in self.records for name in record.row if name.startswith(SCORE))
        whole = [name for name in names if all(record.row.get(name) is not None for record in self.records)]
        return {name.removeprefix(SCORE): [float(record.row[name]) for record in self.records] for name in whole}

    @property
    def last_training_accuracy(self) -> float | None:
        """Training accuracy of the last epoch, on augmented images; None where no epochs are known."""
        found = [record.epochs[-1]["train_accuracy"] for record in self.records if record.epochs]
        return stats.mean(found) if found else None


@dataclass(frozen=True)
class Results:
    """A study's rows of the same data, precision and hardware."""

    study: Study
    tier: TierName
    lines: tuple[Line, ...]  # in the study's order, those with rows
    missing: tuple[str, ...]  # names of cells without a row
    records: tuple[RunRecord, ...]  # all of them in the cells' order
    others: tuple[Results, ...] = ()  # on other data, precision or hardware: never ranked with these

    @property
    def seeds(self) -> int:
        """Smallest number of seeds of any line."""
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
    def conditions(self) -> list[str]:
        """Data, precision, device, hardware and training images of the rows, in words."""
        row = self.records[0].row
        told = [str(row[name]) for name in CONDITIONS if name != "fingerprint"]
        return [*told, f"{row['train_images']:,} training images"]

    def best(self, lines: Sequence[Line] | None = None) -> Line:
        """The line with the highest mean accuracy on the images of :attr:`chosen_on`; of all lines by default."""
        choose = (lambda line: line.mean) if self.chosen_on == "test" else (lambda line: line.validation)
        return max(lines or self.lines, key=choose)

    def of(self, attention: str) -> list[Line]:
        """The lines with this attention."""
        return [line for line in self.lines if line.attention == attention]

    def ranking(self, lines: Sequence[Line]) -> Ranking | None:
        """All pairs of these lines together; None where no winner may be named."""
        found = ranking([line.records for line in lines]) if self.may_rank else None
        return found if found and len(found.seeds) >= stats.MIN_SEEDS else None


def results_of(
    study: Study, tier: TierName, known: Mapping[tuple[Cell, ...], Mapping[str, Sequence[RunRecord]]]
) -> Results:
    """The rows of a study by line, those of the data, precision and hardware with most rows; the others beside them.

    ``known`` has for all of its cells at this tier, as they are or once were, the rows of :func:`records_of` these; one
    at least.
    """
    found: list[Results] = []
    for cells, records in known.items():
        together: dict[tuple[object, ...], dict[str, RunRecord]] = {}
        for cell in cells:
            for record in records.get(cell.name, ()):
                together.setdefault(record.conditions, {}).setdefault(cell.name, record)
        found += [_results(study, tier, cells, each) for each in together.values()]
    first = min(found, key=lambda each: len(each.missing))
    return replace(first, others=tuple(each for each in found if each is not first))


def _results(study: Study, tier: TierName, cells: Sequence[Cell], records: Mapping[str, RunRecord]) -> Results:
    finished = [cell for cell in cells if cell.name in records]
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in finished:
        groups.setdefault((cell.arm, cell.config.model.attention), []).append(cell)
    ordered = sorted(groups, key=lambda key: list(study.arms).index(key[0]))  # stable: attentions as they come
    lines = []
    for arm, attention in ordered:
        mine = groups[arm, attention]
        label = f"{arm}, {label_of(attention)}" if study.attentions else arm
        lines.append(Line(label, [records[cell.name] for cell in mine], arm, attention, mine[0].config))
    missing = tuple(cell.name for cell in cells if cell.name not in records)
    return Results(study, tier, tuple(lines), missing, tuple(records[cell.name] for cell in finished))


def difference(one: Line, two: Line) -> stats.Interval | None:
    """The first minus the second, paired by seed, for this one comparison; None with fewer than two seeds in common."""
    found = ranking([one.records, two.records])
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
    seeds = shared_seeds([line.records for pair in pairs for line in pair]) if pairs else []
    if len(seeds) < 2:
        return None
    ours, theirs = ([stats.mean([pair[side].accuracies[seed] for pair in pairs]) for seed in seeds] for side in (0, 1))
    images = [record.row["test_images"] for record in results.records if record.row["test_images"]]
    return stats.paired_difference(ours, theirs, min(map(int, images), default=None))
