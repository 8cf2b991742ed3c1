"""Softmax and differential attention against loops over images, heads and queries, timm, and the paper's properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.diff_attention import DiffAttention
from torch import Tensor

from diffvit.models.attention import Attention, DifferentialAttention, published_lambda_init

KINDS = ("softmax", "differential")


def by_loop(layer: Attention, x: Tensor) -> Tensor:
    """One image, one query, one head at a time, from the weights; differential: equations 1 to 3 of the paper."""
    dim, width = x.shape[2], x.shape[2] // layer.num_heads

    def attend(query: Tensor, keys: Tensor, head: int) -> Tensor:
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([(query[part] * key[part]).sum() / math.sqrt(width) for key in keys]).exp()
        return scores / scores.sum()

    def read(weights: Tensor, values: Tensor) -> Tensor:
        return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)

    def heads_of(query: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        if not isinstance(layer, DifferentialAttention):
            values = v.split(width, dim=1)
            return [read(attend(query, k, head), values[head]) for head in range(layer.num_heads)]
        products = [
            torch.stack([a * b for a, b in zip(q, k, strict=True)]).sum().exp()
            for q, k in ((layer.lambda_q1, layer.lambda_k1), (layer.lambda_q2, layer.lambda_k2))
        ]
        lam, heads = products[0] - products[1] + layer.lambda_init, []
        for pair, value in enumerate(v.split(2 * width, dim=1)):
            head = read(attend(query, k, 2 * pair) - lam * attend(query, k, 2 * pair + 1), value)
            head = head / torch.sqrt((head**2).mean() + 1e-5) * layer.sub_norm.weight
            heads.append(head * (1 - layer.lambda_init))
        return heads

    images = []
    for image in x:
        q, k, v = (image @ layer.qkv.weight[i * dim : (i + 1) * dim].T for i in range(3))
        if layer.qkv.bias is not None:
            q, k, v = (t + layer.qkv.bias[i * dim : (i + 1) * dim] for i, t in enumerate((q, k, v)))
        images.append(torch.stack([torch.cat(heads_of(query, k, v)) for query in q]))
    return torch.stack(images) @ layer.proj.weight.T + layer.proj.bias


def softmax(dim: int, heads: int, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> Attention:
    torch.manual_seed(dim + heads)
    return Attention(dim, heads, qkv_bias=bias).to(dtype)


def differential(
    dim: int, heads: int, *, layer_index: int = 1, bias: bool = True, dtype: torch.dtype = torch.float64
) -> DifferentialAttention:
    torch.manual_seed(dim + heads)
    layer = DifferentialAttention(dim, heads, layer_index=layer_index, qkv_bias=bias)
    torch.nn.init.uniform_(layer.sub_norm.weight, 0.5, 1.5)
    return layer.to(dtype)


MAKE = {"softmax": softmax, "differential": differential}


def gradients(layer: torch.nn.Module, x: Tensor, out: Tensor) -> dict[str, Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    return dict(zip(names, torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()]), strict=True))


SHAPES = [(12, 2, True), (16, 4, False), (24, 4, True), (10, 2, True)]


@pytest.mark.parametrize(
    ("kind", "dim", "heads", "bias"),
    [*((kind, *shape) for kind in KINDS for shape in SHAPES), ("softmax", 12, 3, True), ("softmax", 10, 1, True)],
)
def test_equals_a_loop_over_heads(kind: str, dim: int, heads: int, bias: bool) -> None:
    layer = MAKE[kind](dim, heads, bias=bias)
    x = torch.randn(2, 5, dim, dtype=torch.float64, requires_grad=True)
    expected = by_loop(layer, x)
    wanted = gradients(layer, x, expected)
    assert (layer(x) - expected).abs().max() < 1e-10
    for name, got in gradients(layer, x, layer(x)).items():
        assert (got - wanted[name]).abs().max() < 1e-10, name


@pytest.mark.parametrize(("dim", "heads", "layer_index"), [(32, 2, 0), (96, 4, 3), (192, 6, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_differential_attention_equals_timms(dim: int, heads: int, layer_index: int, bias: bool) -> None:
    ours = differential(dim, heads, layer_index=layer_index, bias=bias, dtype=torch.float32)
    theirs = DiffAttention(dim, num_heads=heads // 2, qkv_bias=bias, depth=layer_index)
    theirs.load_state_dict(ours.state_dict())  # strict: lambda_init is no state
    x = torch.randn(2, 17, dim, requires_grad=True)
    expected = theirs(x)
    wanted = gradients(theirs, x, expected)
    assert (ours(x) - expected).abs().max() < 1e-5
    got = gradients(ours, x, ours(x))
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        assert (got[name] - want).abs().max() < 1e-5 * max(1.0, want.abs().max().item()), name


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(pairs=st.integers(1, 3), width=st.integers(1, 5), tokens=st.integers(1, 9), index=st.integers(0, 12))
def test_rows_of_maps_of_any_shape(kind: str, pairs: int, width: int, tokens: int, index: int) -> None:
    dim, more = 2 * pairs * width, {"layer_index": index} if kind == "differential" else {}
    layer = MAKE[kind](dim, 2 * pairs, **more)
    x = torch.randn(3, tokens, dim, dtype=torch.float64)
    maps = layer.maps(x)
    heads = 2 * pairs if kind == "softmax" else pairs
    assert layer(x).shape == x.shape
    assert maps.positive.shape == (3, heads, tokens, tokens)
    assert torch.allclose(maps.positive.sum(-1), torch.ones(3, heads, tokens, dtype=torch.float64))
    if kind == "softmax":
        assert (maps.negative, maps.lam) == (None, None)
        assert maps.effective is maps.positive
    else:
        assert maps.negative is not None
        assert maps.lam is not None
        assert maps.negative.shape == maps.positive.shape
        assert torch.allclose(maps.effective.sum(-1), (1 - maps.lam).expand(3, heads, tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_maps_and_lambda_are_float32_and_all_parameters_learn(kind: str) -> None:
    layer = MAKE[kind](64, 4, dtype=torch.float32)
    x = torch.randn(4, 17, 64, requires_grad=True)
    exact = gradients(layer, x, layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, maps = layer(x), layer.maps(x)
    assert rounded.dtype == torch.bfloat16
    assert maps.positive.dtype == maps.effective.dtype == torch.float32
    assert (maps.positive.sum(-1) - 1).abs().max() < 1e-6
    assert (rounded - layer(x)).abs().max() < (0.02 if kind == "softmax" else 0.05)
    for name, gradient in gradients(layer, x, rounded.float()).items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.99 or (
            exact[name].abs().max() < 1e-3
        ), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_of_maps_and_lambda_is_the_models_and_at_least_float32(dtype: torch.dtype) -> None:
    for kind in KINDS:
        assert MAKE[kind](12, 2, dtype=dtype).maps(torch.randn(1, 4, 12, dtype=dtype)).positive.dtype == dtype
    layer = differential(24, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.lam()
    assert inside.dtype == dtype
    assert inside.item() == layer.lam().item()
    half = differential(24, 4, dtype=torch.bfloat16)
    assert half.lam().dtype == torch.float32
    assert half(torch.randn(1, 3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_lambda_starts_as_the_paper_says_and_some_of_the_map_is_negative() -> None:
    assert [round(published_lambda_init(layer), 4) for layer in range(3)] == [0.2, 0.3555, 0.4707]
    starts = [differential(192, 2, layer_index=i).lam().item() - published_lambda_init(i) for i in range(8)]
    assert max(map(abs, starts)) < 1.0
    assert differential(192, 2).lambda_q1.std().item() == pytest.approx(0.1, abs=0.03)
    layer = differential(48, 4, layer_index=8)
    assert (layer.maps(5 * torch.randn(2, 16, 48, dtype=torch.float64)).effective < 0).any()


def test_derivatives_second_ones_and_those_of_a_head_that_reads_nothing() -> None:
    assert torch.autograd.gradgradcheck(differential(8, 2), torch.randn(2, 5, 8, dtype=torch.float64).requires_grad_())
    layer = differential(24, 4)
    x = torch.zeros(1, 3, 24, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.qkv.bias.zero_()
    assert all(gradient.isfinite().all() for gradient in gradients(layer, x, layer(x)).values())
