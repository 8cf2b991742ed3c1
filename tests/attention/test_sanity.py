"""Randomised models against an untrained one, and what randomisation does to maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import images_of, model_of

from diffvit.attention.attribute import randomisation, randomised, stages
from diffvit.models.vit import VisionTransformer


@pytest.mark.parametrize("settings", [{}, {"attention": "differential", "pool": "mean", "registers": 2}])
def test_stages_are_replaced_from_the_head_down_until_nothing_is_left(settings: dict[str, Any]) -> None:
    model = model_of(**settings)
    before = {name: each.clone() for name, each in model.named_parameters()}
    torch.manual_seed(5)
    fresh = dict(VisionTransformer(**model.settings).named_parameters())
    state = torch.random.get_rng_state()
    seen = set()
    for (stage, mixed), (name, beginnings) in zip(randomised(model, 5), stages(model).items(), strict=True):
        assert stage == name
        seen |= {each for each in before if each.startswith(beginnings)}
        for each, parameter in mixed.named_parameters():
            expected = fresh[each] if each in seen else before[each]
            assert torch.equal(parameter, expected), (stage, each)
    assert seen == set(before)
    assert list(stages(model)) == ["head", "norm", "block 1", "block 0", "tokens"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())


def test_a_model_at_another_size_is_randomised_with_its_own_position_table() -> None:
    model = model_of()
    size = 2 * model.settings["image_size"]
    model.set_input_size(size)
    *_, (_, mixed) = randomised(model)
    assert mixed.pos_embed.shape == model.pos_embed.shape
    assert not torch.equal(mixed.pos_embed, model.pos_embed)


def test_what_does_not_see_the_head_keeps_its_map_and_what_does_loses_it() -> None:
    rows = randomisation(model_of(), images_of(3), ["attention", "attnlrp"])
    found = {(row["method"], row["stage"]): row for row in rows}
    assert len(rows) == 2 * 6
    for stage in ("trained", "head", "norm"):
        assert found["attention", stage]["correlation"] == pytest.approx(1.0)
    assert found["attention", "tokens"]["correlation"] < 0.9
    assert found["attnlrp", "trained"]["correlation"] == 1.0
    assert found["attnlrp", "head"]["correlation"] < 0.9
    assert randomisation(model_of(), images_of(3), ["attention", "attnlrp"]) == rows
