"""The encoder block and stochastic depth."""

from __future__ import annotations

import pytest
import torch

from diffvit.models.vit import Block, DropPath


def block(attention: str = "softmax", drop_path: float = 0.0) -> Block:
    torch.manual_seed(0)
    return Block(
        16,
        4,
        32,
        attention=attention,
        layer_index=0,
        qkv_bias=True,
        norm_eps=1e-6,
        drop_path=drop_path,
    )


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_two_residual_steps(attention: str) -> None:
    layer = block(attention)
    x = torch.randn(2, 5, 16)
    middle = x + layer.attn(layer.norm1(x))
    assert torch.equal(layer(x), middle + layer.mlp(layer.norm2(middle)))


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 3, 2))
    per_sample = out.flatten(1)
    assert torch.equal(per_sample, per_sample[:, :1].expand_as(per_sample))
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    assert per_sample[:, 0].mean().item() == pytest.approx(1.0, abs=0.04)


def test_stochastic_depth_rests_in_evaluation_and_at_zero() -> None:
    x = torch.randn(3, 2, 2)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_dropped_branches_leave_the_input() -> None:
    layer = block(drop_path=0.999999).train()
    x = torch.randn(2, 5, 16)
    assert torch.equal(layer(x), x)
