"""The studies as they are defined: every trial a valid run of its own, differing in what its study asks about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from study_rows import made_record

from diffvit.config import to_dict
from diffvit.errors import ConfigError
from diffvit.experiments.cost import flops_per_image, rate_of, seconds_of, training_flops
from diffvit.experiments.definitions import BOTH, STUDIES, WIDE, Study
from diffvit.experiments.tiers import TIERS
from diffvit.experiments.trials import find_study, seeds_of, trials_of
from diffvit.reporting.rows import flatten
from diffvit.training.material import fresh_model, load
from diffvit.training.score import flops_per_image as counted

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
}
GIVEN = [study for study in STUDIES.values() if not study.search]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("study", GIVEN, ids=lambda study: study.name)
def test_trials_are_runs_of_their_own_that_differ_in_what_is_asked(study: Study, tier: str) -> None:
    assert find_study(study.name) is study
    trials = trials_of(study, tier)
    assert len({trial.name for trial in trials}) == len({trial.key for trial in trials}) == len(trials)
    arms = len(study.arms) * max(1, len(study.attentions))
    assert len(trials) == arms * seeds_of(study, tier)
    flat = [flatten(to_dict(trial.config)) for trial in trials]
    different = {name for name in flat[0] if len({repr(each[name]) for each in flat}) > 1}
    allowed = {"seed", "model.attention"} | ASKED.get(
        study.name, {name for name in flat[0] if name.startswith("augment.")}
    )
    assert different <= allowed
    assert different - {"seed", "model.attention"} or study.name == "vit-vs-diffvit"


def test_the_studies_that_are_wanted_are_there_with_their_seeds() -> None:
    short = {study.name: seeds_of(study, "short") for study in GIVEN}
    assert short == {
        **dict.fromkeys(("patch-size", "position", "augmentation"), 3),
        "vit-vs-diffvit": 5,
        **dict.fromkeys(("width", "depth", "mlp-ratio", "heads", "pooling", "head", "optimizer", "initialisation"), 2),
    }
    assert {study.name for study in GIVEN if not study.exploratory} == {
        *("patch-size", "position", "augmentation", "vit-vs-diffvit")
    }
    for study in GIVEN:
        found = {trial.config.model.attention for trial in trials_of(study, "short")}
        assert found == set(BOTH)
    assert set(STUDIES["position"].arms) == {"none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d"}
    assert list(STUDIES["augmentation"].arms)[:2] == ["none", "flip + crop"]
    for study in GIVEN:
        trials = trials_of(study, "short")
        assert all(trial.config.epochs >= 8 for trial in trials)
        if study.name != "patch-size":
            assert all(trial.config.model.patch_size == 8 for trial in trials)


@pytest.mark.parametrize("tier", TIERS)
def test_the_wide_arm_has_as_many_heads_as_the_differential_one_and_values_as_wide(tier: str) -> None:
    by_arm = {trial.arm: trial.config.model for trial in trials_of(STUDIES["vit-vs-diffvit"], tier)}
    heads = by_arm["softmax"].num_heads
    assert by_arm["differential"].num_heads == heads
    assert by_arm[WIDE].num_heads == heads // 2  # differential attention pairs the baseline's heads
    assert by_arm[WIDE].attention == "softmax"


def test_every_augmentation_but_one_is_flip_and_crop_with_something_added() -> None:
    by_arm = {trial.arm: trial.config.augment for trial in trials_of(STUDIES["augmentation"], "full")}
    off = by_arm["none"]
    assert (off.flip, off.crop, off.policy, off.cutmix, off.mixup, off.erasing, off.color_jitter) == (
        *(False, 0, "none", 0.0, 0.0, 0.0, 0.0),
    )
    plain = by_arm["flip + crop"]
    for name, settings in by_arm.items():
        if name.startswith("+ "):
            found = {key for key, value in settings if value != getattr(plain, key)}
            assert 1 <= len(found) <= 3, name
            assert (settings.flip, settings.crop) == (True, plain.crop)


@pytest.mark.parametrize("arm", ["patch 2", "patch 8"])
def test_the_cost_is_that_of_the_model_that_is_built(arm: str) -> None:
    trial = next(t for t in trials_of(STUDIES["patch-size"], "smoke") if t.arm == arm)
    model = fresh_model(trial.config, load(trial.config, lambda _: None))
    assert flops_per_image(trial.config) == pytest.approx(counted(model), rel=0.02)
    assert training_flops(trial.config) == 3 * flops_per_image(trial.config) * (640 - 100) * 2
    assert seconds_of([trial, trial], 1e9) == pytest.approx(2 * training_flops(trial.config) / 1e9 + 2)


@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["none", "rope-2d", "sincos-2d+rope-2d"])
@pytest.mark.parametrize(
    "sizes", [{}, {"depth": 1, "mlp_ratio": 1.0}, {"embed_dim": 24, "num_heads": 6, "head": "mlp"}]
)
def test_the_cost_from_sizes_is_exactly_what_is_counted(
    attention: str, pool: str, pos_embed: str, sizes: dict[str, Any]
) -> None:
    config = trials_of(STUDIES["pooling"], "smoke")[0].config
    model = config.model.model_copy(update={"attention": attention, "pool": pool, "pos_embed": pos_embed, **sizes})
    config = config.model_copy(update={"model": model})
    built = fresh_model(config, load(config, lambda _: None))
    assert flops_per_image(config) == counted(built)


def test_the_rate_is_of_all_cores_however_many_threads_a_row_had() -> None:
    """Two trials of one thread each run side by side on two cores."""
    trial = trials_of(STUDIES["patch-size"], "short")[0]
    one = made_record(trial, 0.7)
    assert one.row["threads"] == 1
    single = 3 * one.row["flops_per_image"] * one.row["images_per_second"]
    assert rate_of([one], "cpu") == pytest.approx(2 * single)
    assert rate_of([one], "cpu", cores=8) == pytest.approx(8 * single)
    both = replace(one, row=one.row | {"threads": 2})
    assert rate_of([both], "cpu") == pytest.approx(single)
    card = replace(one, row=one.row | {"device": "cuda"})
    assert rate_of([card], "cuda", cores=8) == pytest.approx(single)
    assert rate_of([card], "cpu") is None  # no row of a CPU


@pytest.mark.parametrize(
    ("name", "tier", "seeds", "said"),
    [
        ("patchsize", "short", None, "study: no study 'patchsize' (have vit-vs-diffvit, patch-size"),
        ("depth", "long", None, "--tier: no tier 'long' (have smoke, short, full)"),
        ("depth", "short", 0, "--seeds: must be at least 1 (found 0)"),
    ],
)
def test_what_there_is_not(name: str, tier: str, seeds: int | None, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trials_of(find_study(name), tier, seeds=seeds)
    assert str(caught.value).startswith(said)
