"""Studies as YAML files: every cell a valid run of its own, differing in what its study asks about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffvit.config import flat
from diffvit.errors import ConfigError
from diffvit.experiments.launch import rate_of, seconds_of
from diffvit.experiments.study import (
    BOTH,
    STUDIES,
    TIERS,
    Study,
    TierName,
    cells_of,
    find_study,
    flops_per_image,
    load_study,
    register_study,
    seeds_of,
    training_flops,
)
from diffvit.training.score import flops_per_image as counted
from diffvit.training.task import TrainingData, fresh_model, load_data
from tests.experiments.study_rows import made_record

ASKED = {  # settings in which a study's arms may differ
    "patch-size": {"model.patch_size"},
    "position": {"model.pos_embed"},
    "vit-vs-diffvit": {"model.attention", "model.num_heads"},
    "width": {"model.embed_dim", "model.num_heads"},
    "depth": {"model.depth"},
    "mlp-ratio": {"model.mlp_ratio"},
    "heads": {"model.num_heads"},
    "pooling": {"model.pool"},
    "head": {"model.head"},
    "optimizer": {f"optimizer.{name}" for name in ("name", "lr", "muon_lr", "split_qkv")},
    "initialisation": {"model.init", "whiten"},
    "differential": {f"model.{name}" for name in ("attention", "num_heads", "mlp_ratio", "lambda_init")},
    "differential-where": {
        *("model.attention", "model.patch_size", "model.image_size", "train_share", "label_noise"),
        *("data", "epochs", "shapes.train", "augment.crop"),
    },
}
GIVEN = [study for study in STUDIES.values() if study.report and not study.search]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("study", GIVEN, ids=lambda study: study.name)
def test_trials_are_runs_of_their_own_that_differ_in_what_is_asked(study: Study, tier: TierName) -> None:
    assert find_study(study.name) is study
    cells = cells_of(study, tier)
    assert len({cell.name for cell in cells}) == len({cell.key for cell in cells}) == len(cells)
    arms = (len(study.arms) - len(study.skip.get(tier, ()))) * max(1, len(study.attentions))
    assert len(cells) == arms * seeds_of(study, tier)
    found = [flat(cell.config) for cell in cells]
    different = {name for name in found[0] if len({repr(each[name]) for each in found}) > 1}
    augmentation = {name for name in found[0] if name.startswith("augment.")}
    allowed = {"seed", "model.attention"} | ASKED.get(study.name, augmentation)
    assert different <= allowed
    assert different - {"seed", "model.attention"} or study.name == "vit-vs-diffvit"


def test_the_studies_that_are_wanted_are_there_with_their_seeds() -> None:
    short = {study.name: seeds_of(study, "short") for study in GIVEN}
    assert short == {
        **dict.fromkeys(("patch-size", "position", "augmentation", "differential-where"), 3),
        **dict.fromkeys(("vit-vs-diffvit", "differential"), 5),
        **dict.fromkeys(("width", "depth", "mlp-ratio", "heads", "pooling", "head", "optimizer", "initialisation"), 2),
        "augmentation-25": 2,
    }
    assert all(study.exploratory == (short[study.name] == 2) for study in GIVEN)
    assert set(STUDIES["position"].arms) == {"none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d"}
    assert list(STUDIES["augmentation"].arms)[:2] == ["none", "flip + crop"]
    for study in GIVEN:
        configs = [cell.config for cell in cells_of(study, "short")]
        own = study.name in ("differential", "differential-where", "augmentation-25")
        assert own or {config.model.attention for config in configs} == set(BOTH)
        assert all(config.epochs >= 8 for config in configs if config.data != "shapes-hard")
        assert study.name == "patch-size" or all(config.model.patch_size == 8 for config in configs)


@pytest.mark.parametrize("tier", TIERS)
def test_the_wide_arm_has_as_many_heads_as_the_differential_one_and_values_as_wide(tier: TierName) -> None:
    by_arm = {cell.arm: cell.config.model for cell in cells_of(STUDIES["vit-vs-diffvit"], tier)}
    wide, heads = by_arm["softmax, half the heads"], by_arm["softmax"].num_heads
    assert by_arm["differential"].num_heads == heads
    assert (wide.num_heads, wide.attention) == (heads // 2, "softmax")  # it pairs the baseline's heads


def test_a_share_of_the_images_costs_that_share() -> None:
    by_arm = {cell.arm: cell.config for cell in cells_of(STUDIES["differential-where"], "standard", seeds=1)}
    whole, tenth = by_arm["V1: plain"], by_arm["V1: 10% of the images"]
    assert training_flops(tenth) == pytest.approx(0.1 * 40 / 8 * training_flops(whole))


def test_every_augmentation_but_one_is_flip_and_crop_with_something_added() -> None:
    by_arm = {cell.arm: cell.config.augment for cell in cells_of(STUDIES["augmentation"], "full")}
    off, plain = by_arm["none"], by_arm["flip + crop"]
    settings = (off.flip, off.crop, off.policy, off.cutmix, off.mixup, off.erasing, off.color_jitter)
    assert settings == (False, 0, "none", 0.0, 0.0, 0.0, 0.0)
    for name, settings in by_arm.items():
        if name.startswith("+ "):
            found = {key for key, value in settings if value != getattr(plain, key)}
            assert 1 <= len(found) <= 3, name
            assert (settings.flip, settings.crop) == (True, plain.crop)


def test_the_cost_of_a_training_is_that_of_its_passes() -> None:
    cell = cells_of(STUDIES["patch-size"], "smoke")[0]
    assert training_flops(cell.config) == 3 * flops_per_image(cell.config) * (640 - 100) * 2
    assert seconds_of([cell, cell], 1e9) == pytest.approx(2 * training_flops(cell.config) / 1e9 + 2)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return load_data(cells_of(STUDIES["pooling"], "smoke")[0].config, lambda _: None)


@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["none", "rope-2d", "sincos-2d+rope-2d"])
@pytest.mark.parametrize(
    "sizes", [{}, {"depth": 1, "mlp_ratio": 1.0}, {"embed_dim": 24, "num_heads": 6, "head": "mlp"}]
)
def test_the_cost_from_sizes_is_exactly_what_is_counted(
    attention: str, pool: str, pos_embed: str, sizes: dict[str, Any], data: TrainingData
) -> None:
    config = cells_of(STUDIES["pooling"], "smoke")[0].config
    model = config.model.model_copy(update={"attention": attention, "pool": pool, "pos_embed": pos_embed, **sizes})
    config = config.model_copy(update={"model": model})
    assert flops_per_image(config) == counted(fresh_model(config, data))


def test_the_rate_is_of_all_cores_however_many_threads_a_row_had() -> None:
    """Two cells of one thread each run side by side on two cores."""
    cell = cells_of(STUDIES["patch-size"], "short")[0]
    one = made_record(cell, 0.7)
    assert one.row["threads"] == 1
    single = 3 * one.row["flops_per_image"] * one.row["images_per_second"]
    assert rate_of([one], "cpu") == pytest.approx(2 * single)
    assert rate_of([one], "cpu", cores=8) == pytest.approx(8 * single)
    both = replace(one, row=one.row | {"threads": 2})
    assert rate_of([both], "cpu") == pytest.approx(single)
    card = replace(one, row=one.row | {"device": "cuda"})
    assert rate_of([card], "cuda", cores=8) == pytest.approx(single)
    assert rate_of([card], "cpu") is None  # no row of a CPU


MINE = """
question: Which temperature?
seeds: 4
attentions: [softmax]
base: {epochs: 3, model: {depth: 2}}
tiers: {short: {epochs: 1}}
skip: {full: [cold]}
arms:
  cold: {optimizer: {lr: 0.001}}
  hot: {optimizer: {lr: 0.01}, model: {depth: 1}}
"""


def test_a_study_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    """Tier, then base, then the tier's own settings, then the arm's: each beats the one before."""
    (tmp_path / "heat.yaml").write_text(MINE)
    study = find_study(str(tmp_path / "heat.yaml"))
    assert (study.name, study.exploratory, study.score) == ("heat", False, "test_accuracy")
    cells = cells_of(study, "short")
    assert [cell.name for cell in cells][:3] == ["cold-softmax-s0", "hot-softmax-s0", "cold-softmax-s1"]
    assert len(cells) == 8
    cold, hot = cells[0].config, cells[1].config
    assert (cold.epochs, cold.model.depth, cold.optimizer.lr, cold.batch_size) == (1, 2, 0.001, 128)
    assert (hot.epochs, hot.model.depth, hot.optimizer.lr) == (1, 1, 0.01)
    assert {(cell.arm, cell.config.epochs) for cell in cells_of(study, "full")} == {("hot", 3)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question: a\narms: {a: {}}\nseed: 3\n", "mine.yaml: seed: unknown key; did you mean 'seeds'?"),
        ("arms: {a: {}}\n", "mine.yaml: question: Field required"),
        ("question: a\n", "mine.yaml: must have arms, or a search"),
        ("question: a\narms: {a: {}}\nseeds: none\n", "mine.yaml: seeds: Input should be a valid integer"),
        ("question: a\narms: {a: {}}\ntiers: {long: {}}\n", "mine.yaml: tiers.long"),
        ("question: a\narms: {a: {epoch: 3}}\n", "study mine: epoch: unknown key; did you mean 'epochs'?"),
        ("question: a\narms: {a: {model: {attention: x}}}\nattentions: []\n", "study mine: model.attention: "),
        ("question: [a\n", "mine.yaml: is not YAML"),
        (
            "question: a\narms: {cold: {}}\nskip: {smoke: [colt]}\n",
            "mine.yaml: skip: no arm 'colt'; did you mean 'cold'?",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        cells_of(find_study(str(tmp_path / "mine.yaml")), "smoke")
    assert said in str(caught.value)


def test_studies_are_registered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffvit.experiments.study.STUDIES", dict(STUDIES))
    (tmp_path / "heat.yaml").write_text(MINE)
    study = load_study(tmp_path / "heat.yaml")
    register_study(study)
    assert find_study("heat") is study
    with pytest.raises(ValueError, match="registered already"):
        register_study(study)
    with pytest.raises(ConfigError, match="Rename the file"):
        find_study(str(tmp_path / "heat.yaml"))
