"""Softmax attention: against a loop over heads and itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.errors import ConfigError
from diffvit.models.attention import Attention, AttentionMaps


def by_loop(layer: Attention, x: Tensor) -> Tensor:
    """One image, one head, one query at a time, from the weights."""
    dim, width = x.shape[2], x.shape[2] // layer.num_heads
    images = []
    for image in x:
        q, k, v = (image @ layer.qkv.weight[i * dim : (i + 1) * dim].T for i in range(3))
        if layer.qkv.bias is not None:
            q, k, v = (t + layer.qkv.bias[i * dim : (i + 1) * dim] for i, t in enumerate((q, k, v)))
        rows = []
        for query in q:
            heads = []
            for head in range(layer.num_heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.stack([(query[part] * key[part]).sum() / math.sqrt(width) for key in k]).exp()
                weights = scores / scores.sum()
                heads.append(torch.stack([w * value[part] for w, value in zip(weights, v, strict=True)]).sum(0))
            rows.append(torch.cat(heads))
        images.append(torch.stack(rows))
    return torch.stack(images) @ layer.proj.weight.T + layer.proj.bias


def make(dim: int, heads: int, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> Attention:
    torch.manual_seed(dim + heads)
    return Attention(dim, heads, qkv_bias=bias).to(dtype)


def gradients(layer: torch.nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize(("dim", "heads", "bias"), [(12, 3, True), (16, 2, False), (10, 1, True)])
def test_equals_a_loop_over_heads(dim: int, heads: int, bias: bool) -> None:
    layer = make(dim, heads, bias=bias)
    x = torch.randn(2, 5, dim, dtype=torch.float64, requires_grad=True)
    expected = by_loop(layer, x)
    wanted = gradients(layer, x, expected)
    assert (layer(x) - expected).abs().max() < 1e-10
    for got, want in zip(gradients(layer, x, layer(x)), wanted, strict=True):
        assert (got - want).abs().max() < 1e-10


@settings(deadline=None, max_examples=20)
@given(heads=st.integers(1, 4), width=st.integers(1, 5), tokens=st.integers(1, 9), batch=st.integers(1, 3))
def test_any_shape(heads: int, width: int, tokens: int, batch: int) -> None:
    layer = make(heads * width, heads)
    x = torch.randn(batch, tokens, heads * width, dtype=torch.float64)
    maps = layer.maps(x)
    assert layer(x).shape == x.shape
    assert maps.positive.shape == (batch, heads, tokens, tokens)
    assert torch.allclose(maps.effective.sum(-1), torch.ones(batch, heads, tokens, dtype=torch.float64))


def test_maps_are_what_multiplies_the_values() -> None:
    layer = make(12, 3)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    values = layer.qkv(x)[..., 24:].unflatten(2, (3, 4)).transpose(1, 2)
    rebuilt = layer.proj((layer.maps(x).effective @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(rebuilt, layer(x), atol=1e-12)


def test_maps_have_no_negative_part() -> None:
    maps = make(12, 3).maps(torch.randn(1, 4, 12, dtype=torch.float64))
    assert maps.negative is None
    assert maps.lam is None
    assert maps.effective is maps.positive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_keep_the_models_precision(dtype: torch.dtype) -> None:
    assert make(12, 3, dtype=dtype).maps(torch.randn(1, 4, 12, dtype=dtype)).positive.dtype == dtype


def test_a_width_that_does_not_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^num_heads: 5 does not divide embed_dim 12\.$"):
        Attention(12, 5)


def test_effective_subtracts_with_the_weight() -> None:
    positive, negative = torch.full((1, 1, 2, 2), 0.5), torch.eye(2)[None, None]
    effective = AttentionMaps(positive, negative, torch.tensor(0.75)).effective
    assert torch.equal(effective, torch.tensor([[[[-0.25, 0.5], [0.5, -0.25]]]]))


def test_maps_are_float32_under_autocast_too() -> None:
    layer = make(64, 4, dtype=torch.float32)
    x = torch.randn(4, 17, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out, maps = layer(x), layer.maps(x)
    assert out.dtype == torch.bfloat16
    assert (out - layer(x)).abs().max() < 0.02
    assert maps.positive.dtype == torch.float32
    assert (maps.positive.sum(-1) - 1).abs().max() < 1e-6
