"""Studies whose arms have the settings of the best trials of a search; the study ``differential``."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffvit.errors import ConfigError
from diffvit.experiments.report import gathered, search_files, write_report, write_search
from diffvit.experiments.results import results_of, tuned
from diffvit.experiments.search import cell_of, unpruned
from diffvit.experiments.study import STUDIES, cells_of, load_study
from diffvit.files import Row, read_csv, write_csv
from diffvit.models.vit import VisionTransformer
from tests.experiments.study_rows import made_records

SEARCH = """
question: Which rate?
search:
  trials: {smoke: 2, short: 2}
  settings:
    optimizer.lr: {low: 0.001, high: 0.01, log: true}
    schedule.warmup: {low: 0.0, high: 0.2}
arms:
  softmax: {model: {attention: softmax}}
  Two heads: {model: {attention: softmax, num_heads: 2}}
"""
STUDY = """
question: Which is better?
attentions: []
tuned: rates.yaml
arms:
  softmax: {model: {attention: softmax}}
  Two heads: {model: {attention: softmax, num_heads: 2}, schedule: {warmup: 0.15}}
"""


def trial(arm: str, accuracy: float, lr: float, number: int = 0, **more: object) -> Row:
    known = {"tier": "short", "attention": arm, "trial": f"trial-{number:02}", "state": "complete", "data": "CIFAR-10"}
    known |= {"precision": "bf16", "device": "cpu", "epochs": 3, "val_accuracy": accuracy}
    return {**known, "optimizer.lr": lr, "schedule.warmup": 0.1, **more}


TRIALS = [
    trial("softmax", 0.5, 0.002),
    trial("softmax", 0.7, 0.003, 1),
    trial("Two heads", 0.6, 0.004),
    trial("Two heads", 0.9, 0.005, 1, state="pruned"),
    trial("softmax", 0.9, 0.009, 2, data="shapes"),  # of other data
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.yaml").write_text(SEARCH)
    (tmp_path / "which.yaml").write_text(STUDY)
    return tmp_path


def test_each_arm_has_the_rates_of_its_best_complete_trial_and_keeps_its_own_settings(place: Path) -> None:
    study = load_study(place / "which.yaml")
    assert tuned(study, "short", place) is None
    write_csv(place / "rates" / "trials.csv", TRIALS)
    found = tuned(study, "short", place)
    assert found is not None
    settings = {cell.arm: cell.config for cell in cells_of(found, "short", seeds=1)}
    assert {arm: config.optimizer.lr for arm, config in settings.items()} == {"softmax": 0.003, "Two heads": 0.004}
    assert [config.schedule.warmup for config in settings.values()] == [0.1, 0.15]
    assert [config.model.num_heads for config in settings.values()] == [4, 2]
    assert tuned(study, "smoke", place) is None
    write_csv(place / "rates" / "trials.csv", TRIALS[:3])  # an arm has one of its two trials
    assert tuned(study, "short", place) is None
    assert tuned(STUDIES["position"], "short", place) is STUDIES["position"]
    other = study.model_copy(update={"arms": {"Two head": {}}})
    with pytest.raises(ConfigError, match="has no arm 'Two head'; did you mean 'Two heads'"):
        tuned(other, "short", place)
    with pytest.raises(ConfigError, match="searches nothing"):
        tuned(study.model_copy(update={"tuned": "position"}), "short", place)


def test_a_search_of_arms_tries_each_and_names_its_best(place: Path) -> None:
    search = load_study(place / "rates.yaml")
    cells = unpruned(search, "short")
    assert [cell.config.model.num_heads for cell in cells] == [4, 4, 2, 2]
    tried = cell_of(search, "short", "Two heads", "trial-00", {"optimizer.lr": 0.004, "schedule.warmup": 0.1})
    assert (tried.config.model.num_heads, tried.config.optimizer.lr) == (2, 0.004)
    write_csv(place / "rates" / "trials.csv", TRIALS)
    files = search_files(search, place / "rates")
    assert {name for name in files if name.endswith(".yaml")} == {"best-softmax.yaml", "best-two-heads.yaml"}


def test_trials_of_another_tier_stay_and_the_largest_is_reported(place: Path) -> None:
    search = load_study(place / "rates.yaml")
    write_search(search, place / "rates", TRIALS)
    small = [row | {"tier": "smoke", "val_accuracy": 0.99, "optimizer.lr": 0.0099} for row in TRIALS[:4]]
    write_search(search, place / "rates", small)
    assert len(read_csv(place / "rates" / "trials.csv")) == len(TRIALS) + len(small)
    assert "lr: 0.003" in (place / "rates" / "best-softmax.yaml").read_text()
    assert all(tuned(load_study(place / "which.yaml"), tier, place) for tier in ("smoke", "short"))


def test_rows_of_tuned_arms_are_found_again(place: Path) -> None:
    study = load_study(place / "which.yaml")
    write_csv(place / "rates" / "trials.csv", TRIALS)
    found = tuned(study, "short", place)
    assert found is not None
    cells = cells_of(found, "short")
    write_report(results_of(found, "short", {cells: made_records(cells, lambda cell: 0.5)}), place)
    again = gathered(study, place / "none", place)
    assert (len(again.records), again.missing) == (len(cells), ())


def test_an_arm_with_a_colon_has_the_settings_of_the_arm_before_it(place: Path) -> None:
    (place / "where.yaml").write_text(
        "question: Where?\nattentions: []\ntuned: rates.yaml\n"
        'arms: {"softmax: small": {model: {depth: 2}}, "Two heads: small": {model: {num_heads: 2, depth: 2}}}\n'
    )
    write_csv(place / "rates" / "trials.csv", [*TRIALS, trial("Two heads", 0.6, 0.004, 2)])
    found = tuned(load_study(place / "where.yaml"), "short", place)
    assert found is not None
    rates = {cell.arm: (cell.config.optimizer.lr, cell.config.model.depth) for cell in cells_of(found, "short")}
    assert rates == {"softmax: small": (0.003, 2), "Two heads: small": (0.004, 2)}
    (place / "where.yaml").write_text("question: Where?\nattentions: []\ntuned: rates.yaml\narms: {'V1: small': {}}\n")
    with pytest.raises(ConfigError, match="has no arm 'V1'"):
        tuned(load_study(place / "where.yaml"), "short", place)


def test_the_arms_of_where_are_those_of_differential() -> None:
    by_arm = {cell.arm: cell.config for cell in cells_of(STUDIES["differential"], "standard", seeds=1)}
    for cell in cells_of(STUDIES["differential-where"], "standard", seeds=1):
        name, _, condition = cell.arm.partition(": ")
        assert cell.config.model.attention == by_arm[name].model.attention
        assert (cell.config == by_arm[name]) == (condition == "plain")


def test_the_matched_arms_of_differential_have_as_many_parameters_as_softmax() -> None:
    study, search = STUDIES["differential"], STUDIES["differential-tuning"]
    assert study.arms == search.arms
    sizes = {}
    for cell in cells_of(study, "standard", seeds=1):
        model = VisionTransformer(**cell.config.model.model_dump(exclude={"preset"}))
        sizes[cell.arm] = sum(parameter.numel() for parameter in model.parameters())
    apart = {arm: size / sizes["softmax"] - 1 for arm, size in sizes.items()}
    assert len(apart) == 17
    assert all(abs(gap) < 0.01 for arm, gap in apart.items() if "unmatched" not in arm), apart
    assert all(abs(gap) > 0.01 for arm, gap in apart.items() if "unmatched" in arm), apart
