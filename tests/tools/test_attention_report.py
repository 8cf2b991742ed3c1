"""The study's report from made-up rows, whose means and gaps are known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diffvit.attention.scores import METRICS
from diffvit.files import write_csv
from diffvit.reporting import rows, stats
from tools import attention
from tools.attention import (
    CURVES,
    DIFFERENTIAL,
    SCORES,
    SOFTMAX,
    WIDE,
    Study,
    answers,
    between,
    differences,
    gap,
    report,
    within,
)
from tools.pages import update

CLUTTER, SEEDS = (0.0, 0.5), (0, 1, 2)
BETTER = 0.1  # by which the made-up Diff-ViT's maps lie better on the object


def made_up(better: float = BETTER, seeds: tuple[int, ...] = SEEDS) -> Study:
    """Every score is its arm's level, plus noise that is the same for all arms and a little that is not."""
    draw = random.Random(1)
    records, scores, curves = [], [], []
    blank = dict.fromkeys(rows.RESULT_COLUMNS) | {"attention": "softmax", "test_accuracy": 0.9, "precision": "fp32"}
    blank |= {"hardware": "a machine", "torch": "2", "diffvit": "0"}
    for seed in seeds:
        for clutter in (*CLUTTER, None):
            shared = draw.uniform(0, 0.1)
            for arm in (SOFTMAX, DIFFERENTIAL, WIDE):
                if arm == WIDE and clutter is None:
                    continue
                data = "shapes" if clutter is not None else "cifar10"
                key = {"config_hash": f"{arm}-{clutter}-{seed}", "seed": seed}
                row = {**blank, **key, "run": f"{arm}-{clutter}-{seed}", "data": data}
                records.append(rows.RunRecord(row, []))
                names = ["layer 0", "layer 1", "rollout", "uniform", "centre", "random"]
                if arm == DIFFERENTIAL:
                    names += ["layer 0, A1 alone", "layer 1, A1 alone", "rollout, A1 alone"]
                for name in names:
                    level = 0.4 + shared + draw.uniform(0, 0.005)
                    level += better if arm == DIFFERENTIAL and "A1" not in name else 0.0
                    score = {"arm": arm, **key, "data": data, "clutter": clutter, "map": name}
                    score |= dict.fromkeys(METRICS, level if data == "shapes" else None)
                    areas = {"deletion": 0.5 - level / 2, "insertion": level}
                    score |= areas if data == "cifar10" or name == "rollout" else dict.fromkeys(areas)
                    scores.append(score | {"images": 100_000, "removal_images": 50_000})
                    if data == "cifar10" and name in ("layer 1", "rollout", "random"):
                        point = {"arm": arm, **key, "data": data, "clutter": None, "map": name}
                        curves += [point | {"share": at, "deletion": 1 - at, "insertion": at} for at in (0.0, 0.5, 1.0)]
    return Study(records, scores, curves)


def test_gaps_are_paired_by_seed_and_averaged_over_clutter() -> None:
    study = made_up()
    first, second = (study.values(arm, "rollout", "mass") for arm in (DIFFERENTIAL, SOFTMAX))
    assert len(differences(first, second)) == len(SEEDS) * len(CLUTTER)
    means = [[stats.mean([side[seed, clutter] for clutter in CLUTTER]) for seed in SEEDS] for side in (first, second)]
    expected, found = stats.paired_difference(means[0], means[1], 100), gap(first, second, 100)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert found.estimate == pytest.approx(BETTER, abs=0.005)
    one = gap(first, second, 100, clutter=0.5)
    assert one is not None
    assert one.estimate == pytest.approx(stats.mean([first[s, 0.5] - second[s, 0.5] for s in SEEDS]))
    wide = gap(first, second, 100, comparisons=6)
    assert wide is not None
    assert wide.low < found.low < found.high < wide.high
    assert gap({(0, 0.5): 1.0, (0, 0.0): 1.0}, {(0, 0.5): 0.5, (0, 0.0): 0.5}, 100) is None  # one seed is one pair
    assert gap({(0, 0.5): 1.0, (1, 0.5): 1.0}, {(2, 0.5): 0.5}, 100) is None


@pytest.mark.parametrize(("better", "outcome"), [(0.1, "better"), (-0.1, "worse"), (0.0, "undecided")])
def test_outcomes_say_what_the_rows_say(better: float, outcome: str) -> None:
    study = made_up(better)
    for questions in (between(study, DIFFERENTIAL, SOFTMAX), between(study, DIFFERENTIAL, WIDE), within(study)):
        assert {answer.outcome for answer in answers(study, questions)} == {outcome}
    text = report(study)
    favoured = {"better": "6 favour Diff-ViT", "worse": "6 favour ViT", "undecided": "6 are undecided"}
    assert favoured[outcome] in text
    assert "too few seeds" in report(made_up(better, seeds=(0,)))


def test_the_report_and_its_plots_are_made_from_the_rows(tmp_path: Path) -> None:
    folder, study = tmp_path / "reports" / "attention", made_up()
    rows.write(folder, study.records)
    write_csv(folder / SCORES, study.scores)
    write_csv(folder / CURVES, study.curves)
    assert len(update(attention.documents(tmp_path), "attention", tmp_path, check=False)) == 1 + len(attention.PLOTS)
    assert update(attention.documents(tmp_path), "attention", tmp_path, check=True) == []
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in attention.PLOTS)
