"""Softmax attention: against a loop over heads, the fused path and itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.errors import ConfigError
from diffvit.models.attention import Attention, AttentionMaps, explicit_is_faster


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
def test_both_paths_equal_a_loop_over_heads(dim: int, heads: int, bias: bool) -> None:
    layer = make(dim, heads, bias=bias)
    x = torch.randn(2, 5, dim, dtype=torch.float64, requires_grad=True)
    expected = by_loop(layer, x)
    wanted = gradients(layer, x, expected)
    for path in (layer.forward, layer.attend):
        assert (path(x) - expected).abs().max() < 1e-10
        for got, want in zip(gradients(layer, x, path(x)), wanted, strict=True):
            assert (got - want).abs().max() < 1e-10


@settings(deadline=None, max_examples=20)
@given(
    heads=st.integers(1, 4), width=st.integers(1, 5), tokens=st.integers(1, 9), batch=st.integers(1, 3), data=st.data()
)
def test_any_shape(heads: int, width: int, tokens: int, batch: int, data: st.DataObject) -> None:
    layer = make(heads * width, heads)
    x = torch.randn(batch, tokens, heads * width, dtype=torch.float64)
    queries = data.draw(st.integers(1, tokens))
    whole, maps = layer(x), layer.maps(x)
    assert whole.shape == x.shape
    assert torch.allclose(layer.attend(x), whole, atol=1e-12)
    assert torch.allclose(layer(x, queries), whole[:, :queries], atol=1e-12)
    assert torch.allclose(layer.attend(x, queries), whole[:, :queries], atol=1e-12)
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


def test_under_autocast_maps_are_float32_and_paths_agree() -> None:
    layer = make(64, 4, dtype=torch.float32)
    x = torch.randn(4, 17, 64)
    with torch.autocast("cpu", torch.bfloat16):
        fast, slow, maps = layer(x), layer.attend(x), layer.maps(x)
    assert fast.dtype == torch.bfloat16
    assert maps.positive.dtype == torch.float32
    assert (maps.positive.sum(-1) - 1).abs().max() < 1e-6
    exact = layer(x)
    assert (fast - exact).abs().max() < 0.02
    assert (slow - exact).abs().max() < 0.02


def test_the_explicit_path_is_for_half_precision_and_short_sequences_on_a_cpu() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert explicit_is_faster(cpu, torch.bfloat16, 257)
    assert explicit_is_faster(cpu, torch.float32, 65)
    assert not explicit_is_faster(cpu, torch.float32, 256)
    assert not explicit_is_faster(cuda, torch.bfloat16, 65)


@pytest.mark.parametrize("queries", [None, 100])
def test_the_fused_path_gives_the_explicit_ones_values_and_gradients(
    queries: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or fused(*qkv)
    )
    layer, results = make(12, 3), []
    for path in (layer.forward, layer.attend):
        x = torch.randn(2, 130, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer.zero_grad()
        out = path(x, queries)
        out.square().sum().backward()
        results.append([out, x.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    assert calls == [1]
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_a_width_that_does_not_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^num_heads: 5 does not divide embed_dim 12\.$"):
        Attention(12, 5)


def test_effective_subtracts_with_the_weight() -> None:
    positive, negative = torch.full((1, 1, 2, 2), 0.5), torch.eye(2)[None, None]
    effective = AttentionMaps(positive, negative, torch.tensor(0.75)).effective
    assert torch.equal(effective, torch.tensor([[[[-0.25, 0.5], [0.5, -0.25]]]]))
