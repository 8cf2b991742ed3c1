"""The attribution study's report from made-up rows, whose means and gaps are known."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from diffvit.attention import METHODS
from diffvit.files import write_csv
from diffvit.reporting import rows, stats
from tools import attribution
from tools.attribution import DIFFERENTIAL, VIT, WIDE, Study, documents, gap, leaders, over_arm, over_baselines, sanity
from tools.pages import update

SEEDS, STAGES = (0, 1, 2, 3), ("trained", "head", "norm", "block 1", "block 0", "tokens")
ARMS = (VIT, DIFFERENTIAL, WIDE, "ViT on CIFAR-10", "Diff-ViT on CIFAR-10")
BETTER = 0.15  # by which the made-up Diff-ViT's maps lie more often on the object
STUBBORN = "smoothgrad"  # the method whose maps do not depend on the weights


def made_up(better: float = BETTER, seeds: tuple[int, ...] = SEEDS) -> Study:
    """Each method's score is its level, plus noise that is the same for all arms and a little that is not."""
    draw = random.Random(1)
    records: list[rows.RunRecord] = []
    tables: dict[str, list[rows.Row]] = {name: [] for name in attribution.TABLES}
    blank = dict.fromkeys(rows.RESULT_COLUMNS) | {"attention": "softmax", "test_accuracy": 0.9, "precision": "fp32"}
    blank |= {"hardware": "a machine", "torch": "2", "diffvit": "0", "train_seconds": 1800.0, "threads": 1}
    for seed in seeds:
        shared = draw.uniform(0, 0.05)
        for arm in ARMS:
            key = {"config_hash": arm, "seed": seed}
            masked = "CIFAR" not in arm
            data = "shapes-hard" if masked else "CIFAR-10"
            records.append(rows.RunRecord({**blank, **key, "run": f"{arm}-{seed}", "data": data}, []))
            own = {"arm": arm, **key}
            for weights, clutter in (("trained", 0.1), ("trained", 0.6), ("random", 0.1)):
                names = {name: 0.3 + 0.03 * place for place, name in enumerate(METHODS)}
                if weights == "trained":
                    names |= {"brightness": 0.2, "random": 0.1}
                for name, level in names.items():
                    trained = weights == "trained" and name in METHODS
                    level += trained * (0.1 + shared + draw.uniform(0, 0.005) + better * (arm == DIFFERENTIAL))
                    row = {**own, "weights": weights, "clutter": clutter if masked else None, "map": name}
                    row |= dict.fromkeys(attribution.MASKED, level if masked else None)
                    row |= dict.fromkeys(attribution.REMOVED, level / 2 if trained and clutter == 0.1 else None)
                    tables["methods"].append(row | {"images": 100_000, "removal_images": 50_000 if trained else None})
            tables["agreement"] += [
                {**own, "map": one, "other": other, "correlation": 0.25 + 0.01 * seed}
                for one, other in combinations(METHODS, 2)
            ]
            for method in METHODS:
                for place, stage in enumerate(STAGES):
                    left = 0.9 if method == STUBBORN else 1 - place / (len(STAGES) - 1)
                    noise = draw.uniform(-0.01, 0.01)
                    tables["sanity"].append({**own, "method": method, "stage": stage, "correlation": left + noise})
    return Study(records, tables)


def test_scores_are_means_over_the_clutter_and_gaps_are_paired_by_seed() -> None:
    study = made_up()
    found = study.values(VIT, "attention", "pointing")
    for seed in SEEDS:
        table = study.tables["methods"]
        same = [row for row in table if (row["arm"], row["map"], row["seed"]) == (VIT, "attention", seed)]
        assert found[seed] == stats.mean([row["pointing"] for row in same if row["weights"] == "trained"])
    one, two = (study.values(arm, "attnlrp", "road") for arm in (DIFFERENTIAL, VIT))
    assert (study.images("pointing"), study.images("road")) == (100_000, 50_000)
    told = gap(one, two, "road", 1000, 10)
    expected = stats.paired_difference([x + 0.5 for x in one.values()], [x + 0.5 for x in two.values()], 1000, 0.995)
    assert told is not None
    assert (told.low, told.high) == pytest.approx((expected.low, expected.high))
    halved = gap(one, two, "saco", 1000, 10)
    assert halved is not None
    assert halved.estimate == pytest.approx(stats.mean([one[seed] - two[seed] for seed in SEEDS]))
    assert gap({0: 1.0}, {0: 0.5}, "pointing", 10, 1) is None


@pytest.mark.parametrize(("better", "outcome"), [(BETTER, "higher"), (-BETTER, "lower"), (0.0, "undecided")])
def test_the_outcome_of_subtraction_is_that_of_the_rows(better: float, outcome: str) -> None:
    study = made_up(better)
    for other in (VIT, WIDE):
        assert {each.outcome for each in over_arm(study, DIFFERENTIAL, other, "pointing", 2)} == {outcome}


def test_methods_are_held_against_the_best_map_without_a_model_and_against_each_other() -> None:
    study = made_up()
    assert study.best_baseline(VIT) == "brightness"
    assert {each.outcome for each in over_baselines(study, VIT)} == {"higher"}
    best, close = leaders(study, VIT)
    assert best == "occlusion"  # the last and highest
    assert close == []
    equal = [{**row, "pointing": 0.5 + 0.001 * row["seed"]} for row in study.tables["methods"]]
    assert len(leaders(replace(study, tables=study.tables | {"methods": equal}), VIT)[1]) == len(METHODS) - 1


def test_a_method_whose_maps_do_not_depend_on_the_weights_fails() -> None:
    verdicts = {name: verdict for name, _, verdict in sanity(made_up(), VIT)}
    assert verdicts.pop(STUBBORN) == "fails"
    assert set(verdicts.values()) == {"passes"}
    assert {verdict for *_, verdict in sanity(made_up(seeds=(0,)), VIT)} == {"undecided"}


def test_agreement_is_a_symmetric_mean_over_seeds() -> None:
    found = made_up().agreement(VIT)
    off = found[~np.eye(len(METHODS), dtype=bool)]
    assert off == pytest.approx(0.25 + 0.01 * stats.mean(SEEDS))
    assert np.diag(found) == pytest.approx(1.0)


def test_the_report_and_its_plots_are_made_from_the_rows(tmp_path: Path) -> None:
    folder, study = tmp_path / attribution.FOLDER, made_up()
    assert documents(tmp_path) == {}
    rows.write(folder, study.records)
    for name, table in study.tables.items():
        write_csv(folder / f"{name}.csv", table)
    assert len(update(documents(tmp_path), "attribution", tmp_path, check=False)) == 1 + len(attribution.PLOTS)
    assert update(documents(tmp_path), "attribution", tmp_path, check=True) == []
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in attribution.PLOTS)
    text = (folder / "report.md").read_text()
    assert f"1 of 10 methods fail ({STUBBORN})" in text
