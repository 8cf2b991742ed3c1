"""Ablation of heads against models whose projection lacks the head, and the logit lens against the model itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import images_of, model_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from diffvit.attention.heads import ablation, logit_lens
from diffvit.errors import ConfigError, InputError
from diffvit.models.vit import VisionTransformer

COUNT = 40
LABELS = torch.arange(COUNT) % 5


def answers(model: VisionTransformer) -> tuple[float, float]:
    with torch.no_grad():
        logits = model(images_of(COUNT))
    return (logits.argmax(1) == LABELS).double().mean().item(), logits.gather(1, LABELS[:, None]).mean().item()


def without_columns(model: VisionTransformer, layer: int, head: int, heads: int, value: Tensor | None) -> Any:
    """A copy whose output projection ignores a head, or has what the head's mean gives among its biases."""
    changed: Any = copy.deepcopy(model)
    proj, width = changed.blocks[layer].attn.proj, 16 // heads
    columns = slice(head * width, (head + 1) * width)
    with torch.no_grad():
        if value is not None:
            proj.bias += proj.weight[:, columns] @ value
        proj.weight[:, columns] = 0
    return changed


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("attention", "heads"), [("softmax", 4), ("differential", 2), ("differential-split", 4)])
def test_without_a_head_is_without_its_columns_of_the_projection(attention: str, heads: int, pool: str) -> None:
    model = model_of(attention=attention, pool=pool)
    rows = ablation(model, images_of(COUNT), LABELS, batch_size=17)
    whole = answers(model)
    each = [(layer, head) for layer in range(2) for head in range(heads)]
    assert [(row["layer"], row["head"]) for row in rows] == [(None, None), *each]
    assert rows[0]["accuracy"] == pytest.approx(whole[0])
    for row in rows[1:]:
        expected = answers(without_columns(model, row["layer"], row["head"], heads, None))
        assert row["accuracy"] == pytest.approx(expected[0])
        assert row["accuracy_change"] == pytest.approx(expected[0] - whole[0])
        assert row["logit_change"] == pytest.approx(expected[1] - whole[1])
    assert max(abs(row["logit_change"]) for row in rows) > 0.01


def test_the_mean_of_a_head_is_over_images_and_tokens() -> None:
    model = model_of()
    rows = ablation(model, images_of(COUNT), LABELS, to="mean", batch_size=17)
    layer: Any = model.blocks[1]
    with torch.no_grad():
        normed = layer.norm1(model.blocks[:1](model.tokens(images_of(COUNT))))
        q, k, v = layer.attn.heads(normed)
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v).mean(dim=(0, 2))
    for row in rows:
        if row["layer"] == 1:
            expected = answers(without_columns(model, 1, row["head"], 4, read[row["head"]]))
            assert row["logit_change"] == pytest.approx(expected[1] - answers(model)[1])


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_the_lens_ends_at_the_models_answer(attention: str) -> None:
    model = model_of(attention=attention)
    rows = logit_lens(model, images_of(COUNT), LABELS, batch_size=17)
    assert [row["layer"] for row in rows] == [-1, 0, 1]
    with torch.no_grad():
        logits = model(images_of(COUNT))
        early = model.forward_head(model.blocks[:1](model.tokens(images_of(COUNT))))
    chance = (-cross_entropy(early, LABELS, reduction="none")).exp().mean().item()
    assert rows[-1]["accuracy"] == pytest.approx(answers(model)[0])
    assert rows[-1]["agreement"] == 1
    assert rows[1]["probability"] == pytest.approx(chance, rel=1e-6)
    assert rows[1]["agreement"] == pytest.approx((early.argmax(1) == logits.argmax(1)).double().mean().item())


def test_what_does_not_fit_is_refused() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="have zero, mean"):
        ablation(model, images_of(COUNT), LABELS, to="noise")
    with pytest.raises(InputError, match="another shape"):
        logit_lens(model, images_of(COUNT)[:, :, :8, :8], LABELS)
    block: Any = model.blocks[0]
    block.attn = torch.nn.Identity()
    with pytest.raises(ConfigError, match="does not give the outputs of its heads"):
        ablation(model, images_of(COUNT), LABELS)
