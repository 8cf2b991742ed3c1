"""What a study's report says: numbers of a plain computation, winners only where the intervals allow it."""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from study_rows import made_records

from diffvit.config import parse, read_yaml
from diffvit.errors import InputError
from diffvit.studies import words
from diffvit.studies.definitions import STUDIES, Study
from diffvit.studies.report import gathered, write_report
from diffvit.studies.results import Results, compared_arms, difference, over_all_arms, results_of
from diffvit.studies.trials import Trial, trials_of

T_975 = {2: 4.302653, 4: 2.776445}  # Student's t by degrees of freedom
POSITION, PAIR = STUDIES["position"], STUDIES["vit-vs-diffvit"]
LEVEL = {"none": 0.50, "learned-1d": 0.60, "learned-2d": 0.61, "sincos-1d": 0.62, "sincos-2d": 0.6205}


def noise(trial: Trial) -> float:
    """Of a run, the same each time; the larger part is the seed's."""
    seed = trial.config.seed
    own = np.random.default_rng([zlib.crc32(trial.name.encode()), seed]).normal(0, 0.0006)
    return np.random.default_rng(seed).normal(0, 0.004) + own


def level(trial: Trial) -> float:
    ahead = 0.01 if trial.config.model.attention == "differential" else 0.0
    return LEVEL[trial.arm] + ahead + noise(trial)


def made(study: Study, accuracy: object = level, tier: str = "short") -> Results:
    trials = trials_of(study, tier)
    return results_of(study, tier, trials, made_records(trials, accuracy))  # type: ignore[arg-type]


def test_a_difference_is_that_of_a_plain_computation() -> None:
    one, two = made(POSITION).of("softmax")[:2]
    found = difference(two, one)
    assert found is not None
    gaps = np.array([two.accuracies[seed] - one.accuracies[seed] for seed in range(3)])
    half = T_975[2] * gaps.std(ddof=1) / math.sqrt(3)
    assert found.estimate == pytest.approx(gaps.mean())
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=1e-6)
    wider = difference(two, one, 4)
    assert wider is not None
    assert wider.low < found.low
    assert wider.high > found.high


def test_the_attentions_are_paired_by_seed_over_all_arms() -> None:
    results = made(POSITION)
    found = over_all_arms(results, "differential", "softmax")
    assert found is not None
    by_seed = [
        np.mean([line.accuracies[seed] for line in results.of("differential")])
        - np.mean([line.accuracies[seed] for line in results.of("softmax")])
        for seed in range(3)
    ]
    assert found.estimate == pytest.approx(np.mean(by_seed))
    assert found.estimate == pytest.approx(0.01, abs=0.001)


def test_arms_that_hardly_learn_are_not_in_the_mean_over_the_arms() -> None:
    trials = trials_of(POSITION, "short")
    worse = {trial.name: 0.2 if trial.arm == "none" else level(trial) for trial in trials}
    records = made_records(trials, lambda trial: worse[trial.name])
    results = results_of(POSITION, "short", trials, records)
    kept = [ours.arm for ours, _ in compared_arms(results, "differential", "softmax")]
    assert "none" not in kept
    assert len(kept) == 4
    assert len(compared_arms(made(POSITION), "differential", "softmax")) == 5
    with_one = dict.fromkeys(worse, 0.2) | {trial.name: 0.9 for trial in trials if trial.arm == "none"}
    few = results_of(POSITION, "short", trials, made_records(trials, lambda trial: with_one[trial.name]))
    assert [ours.arm for ours, _ in compared_arms(few, "differential", "softmax")] == ["none"]


def test_a_winner_is_named_where_the_interval_allows_it_and_not_else() -> None:
    text = words.report(made(POSITION))
    vit = next(line for line in text.split("\n\n") if line.startswith("**ViT**"))
    assert "the highest mean is 62.09% ± 0.09, with sincos-2d. It beats none" in vit
    assert "It beats none by 12." in vit or "It beats none by 11." in vit
    assert "Not decided against sincos-" in vit
    assert "98.8% intervals paired over 3 seeds" in vit
    assert "**Diff-ViT minus ViT**, mean over the arms: +" in text
    assert "Diff-ViT is ahead in this study." in text
    assert "not comparable with, published CIFAR-10 figures" in text
    assert "Not complete" not in text


def test_an_exploratory_study_names_no_winner() -> None:
    text = words.report(made(STUDIES["depth"], lambda trial: 0.5 + trial.config.model.depth / 20))
    assert text.count("2 seeds: no winner is named") == 2
    assert "exploratory: no winner is named" in text
    assert "beats" not in text


def test_three_arms_are_compared_in_pairs() -> None:
    gain = {"softmax": 0.0, "differential": 0.02, "softmax, half the heads": 0.0003}

    results = made(PAIR, lambda trial: 0.7 + gain[trial.arm] + noise(trial))
    text = words.report(results)
    assert "**differential beats softmax**" in text
    assert "**differential beats softmax, half the heads**" in text
    assert "98.3% intervals paired over 5 seeds" in text
    line = next(part for part in text.split("\n\n") if part.startswith("softmax minus differential"))
    assert line.count("not decided") == 1
    assert [row[0] for row in words.table(results).rows] == list(PAIR.arms)


def test_a_study_of_augmentation_says_how_close_its_arms_fit() -> None:
    text = words.report(made(STUDIES["augmentation"], lambda trial: 0.7 if trial.arm == "none" else 0.6 + noise(trial)))
    assert "Training minus test accuracy after 12 epochs, points: " in text
    assert "none, ViT -5.0" in text  # made rows have a training accuracy five points below
    assert "`diffvit study run augmentation --tier full` trains for 50" in text
    assert "Training minus test" not in words.report(made(POSITION))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    trials = trials_of(POSITION, "short")
    some = made_records(trials[:20], level)
    text = words.report(results_of(POSITION, "short", trials, some))
    assert "**Not complete:** 10 trials have no row yet." in text
    assert "2 seeds: no winner is named" in text
    with pytest.raises(InputError, match="has no finished run and no committed row"):
        gathered(POSITION, tmp_path, tmp_path)


def test_the_same_bytes_come_from_the_rows_alone(tmp_path: Path) -> None:
    write_report(made(POSITION), tmp_path)
    folder = tmp_path / "position"

    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = digests()
    assert before.keys() == {
        "rows.csv",
        "epochs.csv",
        "report.md",
        "best.yaml",
        "accuracy.png",
        "curves.png",
        "cost.png",
    }
    for name in ("report.md", "cost.png"):
        (folder / name).unlink()
    again = gathered(POSITION, tmp_path / "no runs", tmp_path)
    assert again.tier == "short"
    write_report(again, tmp_path)
    assert digests() == before
    best = parse(read_yaml(folder / "best.yaml"))
    assert (best.model.pos_embed, best.model.attention, best.seed)[:] == (best.model.pos_embed, "differential", 0)
    assert best.model.pos_embed.startswith("sincos")


def test_the_larger_tier_is_shown_once_it_is_complete(tmp_path: Path) -> None:
    write_report(made(POSITION), tmp_path)
    full = trials_of(POSITION, "full")
    some = results_of(POSITION, "full", full, made_records(full[:5], level))
    assert some.missing
    write_report(some, tmp_path)
    shown = gathered(POSITION, tmp_path / "none", tmp_path)
    assert (shown.tier, shown.missing) == ("short", ())  # its rows are still there, beside five of tier full
    assert len(gathered(POSITION, tmp_path / "none", tmp_path, tier="full").records) == 5
    write_report(shown, tmp_path)
    assert len(gathered(POSITION, tmp_path / "none", tmp_path, tier="full").records) == 5
    write_report(made(POSITION, tier="full"), tmp_path)
    assert gathered(POSITION, tmp_path / "none", tmp_path).tier == "full"
    assert "Tier full" in (tmp_path / "position" / "report.md").read_text()
    assert gathered(POSITION, tmp_path / "none", tmp_path, tier="short").missing == ()
