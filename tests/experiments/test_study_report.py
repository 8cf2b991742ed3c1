"""What a study's report says: numbers of a plain computation, winners only where the intervals allow it."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffvit.config import parse, read_yaml
from diffvit.errors import InputError
from diffvit.experiments.report import gathered, report, table, totals, write_report
from diffvit.experiments.results import Results, compared_arms, difference, over_all_arms, results_of
from diffvit.experiments.study import STUDIES, Cell, Study, TierName, cells_of
from diffvit.reporting.rows import write
from tests.experiments.study_rows import made_records, rows_of

T_975 = {2: 4.302653, 4: 2.776445}  # Student's t by degrees of freedom
POSITION, PAIR = STUDIES["position"], STUDIES["vit-vs-diffvit"]
LEVEL = {"none": 0.50, "learned-1d": 0.60, "learned-2d": 0.61, "sincos-1d": 0.62, "sincos-2d": 0.6205}


def noise(cell: Cell) -> float:
    """Of a run, the same each time; the larger part is the seed's."""
    seed = cell.config.seed
    own = np.random.default_rng([zlib.crc32(cell.name.encode()), seed]).normal(0, 0.0006)
    return np.random.default_rng(seed).normal(0, 0.004) + own


def level(cell: Cell) -> float:
    ahead = 0.02 if cell.config.model.attention == "differential" else 0.0
    return LEVEL[cell.arm] + ahead + noise(cell)


def made(study: Study, accuracy: Callable[[Cell], float] = level, tier: TierName = "short") -> Results:
    cells = cells_of(study, tier)
    return results_of(study, tier, {cells: made_records(cells, accuracy)})


def test_a_difference_is_that_of_a_plain_computation() -> None:
    """Student's t over the seeds and the normal interval of 10,000 images, added in squares."""
    one, two = made(POSITION).of("softmax")[:2]
    found = difference(two, one)
    assert found is not None
    gaps = np.array([two.accuracies[seed] - one.accuracies[seed] for seed in range(3)])
    training = T_975[2] * gaps.std(ddof=1) / math.sqrt(3)
    images = 1.959964 * math.sqrt(sum(line.mean * (1 - line.mean) / 10_000 for line in (one, two)))
    assert found.estimate == pytest.approx(gaps.mean())
    assert found.high - found.estimate == pytest.approx(math.hypot(training, images), rel=1e-4)
    assert found.estimate - found.low == pytest.approx(math.hypot(training, images), rel=1e-4)


def test_the_best_arm_is_ranked_with_intervals_of_all_pairs() -> None:
    results = made(POSITION)
    lines = results.of("softmax")
    ranked = results.ranking(lines)
    assert ranked is not None
    assert (ranked.seeds, len(ranked.intervals)) == ([0, 1, 2], 10)
    alone = difference(lines[3], lines[0])
    assert alone is not None
    assert ranked.between(3, 0).estimate == pytest.approx(alone.estimate)
    assert ranked.between(3, 0).low < alone.low


def test_rows_of_other_data_precision_or_hardware_stand_apart(tmp_path: Path) -> None:
    """The same cells on two data sets: each has its own winner, in its own section, and no sentence speaks of both."""
    cells = cells_of(PAIR, "short")
    one = made_records(cells, lambda cell: 0.7 + 0.2 * (cell.arm == "softmax") + noise(cell))
    other = made_records(
        cells, lambda cell: 0.7 - 0.2 * (cell.arm == "softmax") + noise(cell), data="CIFAR-10", fingerprint="g"
    )
    both = {name: [*one[name], *other[name]] for name in one}
    results = results_of(PAIR, "short", {cells: both})
    assert {len(each.records) for each in (results, *results.others)} == {15}
    text = report(results)
    first, second = text.split("## Other conditions: ")
    assert "**softmax beats differential**" in first
    assert "**differential beats softmax**" not in first
    assert "**differential beats softmax**" in second
    assert second.startswith("CIFAR-10, bf16, cpu, a machine, 45,000 training images")
    write_report(results, tmp_path)
    again = gathered(PAIR, tmp_path / "none", tmp_path)
    assert [len(each.records) for each in (again, *again.others)] == [15, 15]
    assert report(again) == text
    for column, value in (("precision", "fp32"), ("device", "cuda"), ("hardware", "another")):
        moved = {name: [replace(each, row=each.row | {column: value}) for each in found] for name, found in one.items()}
        split = {name: found + (one[name] if "s0" in name else []) for name, found in moved.items()}
        assert len(results_of(PAIR, "short", {cells: split}).others) == 1


def test_the_best_arm_is_chosen_on_validation_images() -> None:
    """An arm that is ahead on the test set and behind on the validation images is not the best."""
    cells = cells_of(POSITION, "short")
    assert {cell.config.validation_size for cell in cells} == {5_000}
    records = made_records(cells, level)
    for cell in cells:
        [record] = records[cell.name]
        record.row["val_accuracy"] = 0.9 if cell.arm == "none" else 0.5
    results = results_of(POSITION, "short", {cells: records})
    assert (results.best().arm, results.chosen_on) == ("none", "validation")
    assert max(results.lines, key=lambda line: line.mean).arm != "none"
    assert report(results).count("the best arm by validation accuracy is none") == 2


def test_rows_without_validation_images_say_so_and_stand_apart_from_those_with(tmp_path: Path) -> None:
    before = cells_of(POSITION, "short", validation=False)
    old = results_of(POSITION, "short", {before: made_records(before, level)})
    assert old.chosen_on == "test"
    paragraphs = report(old).split("\n\n")
    assert "set no images aside for validation" in paragraphs[1]
    write_report(old, tmp_path)
    assert len(gathered(POSITION, tmp_path / "none", tmp_path).records) == 30
    new = cells_of(POSITION, "short")
    write(tmp_path / "position", [*old.records, *rows_of(made_records(new, level))])
    results = gathered(POSITION, tmp_path / "none", tmp_path)
    assert (results.chosen_on, [each.chosen_on for each in results.others]) == ("validation", ["test"])
    assert "set no images aside" not in report(results).split("## Other conditions")[0]


def test_the_attentions_are_paired_by_seed_over_all_arms() -> None:
    results = made(POSITION)
    found = over_all_arms(results, "differential", "softmax")
    assert found is not None
    ours, theirs = (
        np.mean([list(line.accuracies.values()) for line in results.of(each)]) for each in ("differential", "softmax")
    )
    assert found.estimate == pytest.approx(ours - theirs)
    assert found.estimate == pytest.approx(0.02, abs=0.001)


def test_arms_that_hardly_learn_are_not_in_the_mean_over_the_arms() -> None:
    cells = cells_of(POSITION, "short")
    worse = {cell.name: 0.2 if cell.arm == "none" else level(cell) for cell in cells}
    records = made_records(cells, lambda cell: worse[cell.name])
    results = results_of(POSITION, "short", {cells: records})
    kept = [ours.arm for ours, _ in compared_arms(results, "differential", "softmax")]
    assert "none" not in kept
    assert len(kept) == 4
    assert len(compared_arms(made(POSITION), "differential", "softmax")) == 5
    with_one = dict.fromkeys(worse, 0.2) | {cell.name: 0.9 for cell in cells if cell.arm == "none"}
    few = results_of(POSITION, "short", {cells: made_records(cells, lambda cell: with_one[cell.name])})
    assert [ours.arm for ours, _ in compared_arms(few, "differential", "softmax")] == ["none"]


def test_a_winner_is_named_where_the_interval_allows_it_and_not_else() -> None:
    text = report(made(POSITION))
    vit = next(line for line in text.split("\n\n") if line.startswith("**ViT**"))
    assert "the best arm by validation accuracy is sincos-2d, 62.09% ± 0.09. It beats none" in vit
    assert "It beats none by 12." in vit or "It beats none by 11." in vit
    assert "sincos-1d (" in vit.split("Not decided against")[1]
    assert "**Diff-ViT minus ViT**, mean over the arms: +" in text
    assert "Diff-ViT is ahead in this study." in text
    assert "not comparable with, published CIFAR-10 figures" in text
    assert "Not complete" not in text


def test_a_run_that_waited_for_other_work_does_not_change_the_training_time() -> None:
    cells = cells_of(PAIR, "short")
    records = {name: [each[0]] for name, each in made_records(cells, lambda _: 0.7).items()}
    times = dict(zip(range(5), (60.0, 61.0, 1900.0, 59.0, 62.0), strict=True))
    for (record,) in records.values():
        record.row["train_seconds"] = times[int(record.row["seed"])]
    lines = results_of(PAIR, "short", {cells: records}).of("softmax")
    assert {line.train_seconds for line in lines} == {61.0}


def test_runs_and_training_times_are_added_up_by_attention() -> None:
    assert totals(made(POSITION)) == [("ViT", 15, 900.0), ("Diff-ViT", 15, 900.0)]
    assert totals(made(PAIR, lambda _: 0.7)) == [("all arms", 15, 900.0)]


def test_an_exploratory_study_names_no_winner() -> None:
    text = report(made(STUDIES["depth"], lambda cell: 0.5 + cell.config.model.depth / 20))
    assert text.count("2 seeds: no winner is named") == 2
    assert "exploratory: no winner is named" in text
    assert "beats" not in text


def test_three_arms_are_compared_in_pairs() -> None:
    gain = {"softmax": 0.0, "differential": 0.02, "softmax, half the heads": 0.0003}

    results = made(PAIR, lambda cell: 0.7 + gain[cell.arm] + noise(cell))
    text = report(results)
    assert "**differential beats softmax**" in text
    assert "**differential beats softmax, half the heads**" in text
    assert "(Tukey's HSD), paired over 5 seeds" in text
    line = next(part for part in text.split("\n\n") if part.startswith("softmax minus differential"))
    assert line.count("not decided") == 1
    assert [row[0] for row in table(results).rows] == list(PAIR.arms)


def test_a_study_of_augmentation_says_how_close_its_arms_fit() -> None:
    text = report(made(STUDIES["augmentation"], lambda cell: 0.7 if cell.arm == "none" else 0.6 + noise(cell)))
    assert "Training minus test accuracy after 12 epochs, points: " in text
    assert "none, ViT -5.0" in text  # made rows have a training accuracy five points below
    assert "`diffvit study run augmentation --tier full` trains for 50" in text
    assert "Training minus test" not in report(made(POSITION))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    cells = cells_of(POSITION, "short")
    some = made_records(cells[:20], level)
    text = report(results_of(POSITION, "short", {cells: some}))
    assert "**Not complete:** 10 cells have no row yet." in text
    assert "2 seeds: no winner is named" in text
    with pytest.raises(InputError, match="has no finished run and no committed row"):
        gathered(POSITION, tmp_path, tmp_path)


def test_the_same_bytes_come_from_the_rows_alone(tmp_path: Path) -> None:
    write_report(made(POSITION), tmp_path)
    folder = tmp_path / "position"

    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = digests()
    tables, plots = ("rows.csv", "epochs.csv", "report.md", "best.yaml"), ("accuracy.png", "curves.png", "cost.png")
    assert before.keys() == {*tables, *plots}
    for name in ("report.md", "cost.png"):
        (folder / name).unlink()
    again = gathered(POSITION, tmp_path / "no runs", tmp_path)
    assert again.tier == "short"
    write_report(again, tmp_path)
    assert digests() == before
    best = parse(read_yaml(folder / "best.yaml"))
    assert (best.model.attention, best.seed) == ("differential", 0)
    assert best.model.pos_embed.startswith("sincos")


def test_the_larger_tier_is_shown_once_it_is_complete(tmp_path: Path) -> None:
    short, full = ([*made(POSITION, tier=tier).records] for tier in ("short", "full"))
    write(tmp_path / "position", [*short, *full[:5]])
    shown = gathered(POSITION, tmp_path / "none", tmp_path)
    assert (shown.tier, shown.missing) == ("short", ())
    write_report(shown, tmp_path)  # keeps the rows of the other tier
    some = gathered(POSITION, tmp_path / "none", tmp_path, tier="full")
    assert (len(some.records), len(some.missing)) == (5, len(full) - 5)
    write(tmp_path / "position", [*short, *full])
    assert gathered(POSITION, tmp_path / "none", tmp_path).tier == "full"
    assert gathered(POSITION, tmp_path / "none", tmp_path, tier="short").missing == ()
