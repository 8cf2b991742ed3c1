"""Differential attention: against timm, a loop over heads, and the paper's properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.diff_attention import DiffAttention
from torch import Tensor

from diffvit.errors import ConfigError
from diffvit.models.attention import Attention, DifferentialAttention, lambda_init


def by_loop(layer: DifferentialAttention, x: Tensor) -> Tensor:
    """One image, one differential head, one query at a time, from the weights; equations 1 to 3."""
    dim, width = x.shape[2], x.shape[2] // layer.num_heads
    lam = (
        torch.stack([a * b for a, b in zip(layer.lambda_q1, layer.lambda_k1, strict=True)]).sum().exp()
        - torch.stack([a * b for a, b in zip(layer.lambda_q2, layer.lambda_k2, strict=True)]).sum().exp()
        + layer.lambda_init
    )

    def attend(query: Tensor, keys: Tensor, head: int) -> Tensor:
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([(query[part] * key[part]).sum() / math.sqrt(width) for key in keys]).exp()
        return scores / scores.sum()

    images = []
    for image in x:
        q, k, v = (image @ layer.qkv.weight[i * dim : (i + 1) * dim].T for i in range(3))
        if layer.qkv.bias is not None:
            q, k, v = (t + layer.qkv.bias[i * dim : (i + 1) * dim] for i, t in enumerate((q, k, v)))
        rows = []
        for query in q:
            heads = []
            for pair in range(layer.num_heads // 2):
                row = attend(query, k, 2 * pair) - lam * attend(query, k, 2 * pair + 1)
                value = v[:, 2 * width * pair : 2 * width * (pair + 1)]
                head = torch.stack([w * value_row for w, value_row in zip(row, value, strict=True)]).sum(0)
                head = head / torch.sqrt((head**2).mean() + 1e-5) * layer.sub_norm.weight
                heads.append(head * (1 - layer.lambda_init))
            rows.append(torch.cat(heads))
        images.append(torch.stack(rows))
    return torch.stack(images) @ layer.proj.weight.T + layer.proj.bias


def make(
    dim: int, heads: int, *, layer_index: int = 1, bias: bool = True, dtype: torch.dtype = torch.float64
) -> DifferentialAttention:
    torch.manual_seed(dim + heads)
    layer = DifferentialAttention(dim, heads, layer_index=layer_index, qkv_bias=bias)
    torch.nn.init.uniform_(layer.sub_norm.weight, 0.5, 1.5)
    return layer.to(dtype)


def gradients(layer: torch.nn.Module, x: Tensor, out: Tensor) -> dict[str, Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    return dict(zip(names, torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()]), strict=True))


@pytest.mark.parametrize(("dim", "heads", "layer_index"), [(32, 2, 0), (96, 4, 3), (192, 6, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_timm(dim: int, heads: int, layer_index: int, bias: bool) -> None:
    ours = make(dim, heads, layer_index=layer_index, bias=bias, dtype=torch.float32)
    theirs = DiffAttention(dim, num_heads=heads // 2, qkv_bias=bias, depth=layer_index)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 17, dim, requires_grad=True)
    expected = theirs(x)
    wanted = gradients(theirs, x, expected)
    assert (ours(x) - expected).abs().max() < 1e-5
    got = gradients(ours, x, ours(x))
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        assert (got[name] - want).abs().max() < 1e-5 * max(1.0, want.abs().max().item()), name


def test_weights_move_back_from_timm() -> None:
    theirs = DiffAttention(64, num_heads=2, qkv_bias=True, depth=2)
    ours = DifferentialAttention(64, 4, layer_index=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 64)
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
    assert "lambda_init" not in ours.state_dict()


@pytest.mark.parametrize(("dim", "heads", "bias"), [(12, 2, True), (16, 4, False), (24, 4, True)])
def test_equals_a_loop_over_heads(dim: int, heads: int, bias: bool) -> None:
    layer = make(dim, heads, bias=bias)
    x = torch.randn(2, 5, dim, dtype=torch.float64, requires_grad=True)
    expected = by_loop(layer, x)
    wanted = gradients(layer, x, expected)
    assert (layer(x) - expected).abs().max() < 1e-10
    for name, got in gradients(layer, x, layer(x)).items():
        assert (got - wanted[name]).abs().max() < 1e-10, name


@settings(deadline=None, max_examples=20)
@given(
    pairs=st.integers(1, 3), width=st.integers(1, 5), tokens=st.integers(1, 9), batch=st.integers(1, 3), data=st.data()
)
def test_any_shape(pairs: int, width: int, tokens: int, batch: int, data: st.DataObject) -> None:
    dim = 2 * pairs * width
    layer = make(dim, 2 * pairs, layer_index=data.draw(st.integers(0, 12)))
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    maps = layer.maps(x)
    assert layer(x).shape == x.shape
    assert maps.negative is not None
    assert maps.lam is not None
    assert maps.positive.shape == maps.negative.shape == (batch, pairs, tokens, tokens)
    assert torch.allclose(maps.positive.sum(-1), torch.ones(batch, pairs, tokens, dtype=torch.float64))
    assert torch.allclose(maps.effective.sum(-1), (1 - maps.lam).expand(batch, pairs, tokens))


def test_some_of_the_combined_map_is_negative() -> None:
    layer = make(48, 4, layer_index=8)
    assert (layer.maps(5 * torch.randn(2, 16, 48, dtype=torch.float64)).effective < 0).any()


def test_maps_are_what_multiplies_the_values() -> None:
    layer = make(24, 4)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    values = layer.qkv(x)[..., 48:].unflatten(2, (2, 12)).transpose(1, 2)
    heads = layer.sub_norm(layer.maps(x).effective @ values) * (1 - layer.lambda_init)
    assert torch.allclose(layer.proj(heads.transpose(1, 2).flatten(2)), layer(x), atol=1e-10)


def test_with_lambda_zero_only_the_first_map_is_left() -> None:
    layer = make(24, 4)
    # Lambda is exp(0) - exp(s) + lambda_init: choose s so that it vanishes.
    s = math.log(1 + layer.lambda_init)
    with torch.no_grad():
        layer.lambda_q1.zero_()
        layer.lambda_q2.fill_(1.0)
        layer.lambda_k2.fill_(s / layer.head_dim)
    maps = layer.maps(torch.randn(2, 5, 24, dtype=torch.float64))
    assert abs(layer.lam().item()) < 1e-12
    assert torch.allclose(maps.effective, maps.positive, atol=1e-12)
    # Then each differential head is a plain head: the even one of the same weights.
    plain = Attention(24, 4).double()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name[:4] in ("qkv.", "proj")})
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert torch.allclose(layer.maps(x).effective, plain.maps(x).positive[:, ::2], atol=1e-12)


def test_lambda_starts_as_the_paper_says() -> None:
    assert [round(lambda_init(layer), 4) for layer in range(3)] == [0.2, 0.3555, 0.4707]
    starts = torch.tensor([make(192, 2, layer_index=i).lam().item() - lambda_init(i) for i in range(8)])
    assert starts.abs().max() < 1.0
    assert make(192, 2).lambda_q1.std().item() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_is_at_least_float32_under_autocast(dtype: torch.dtype) -> None:
    layer = make(24, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.lam()
    assert inside.dtype == dtype
    assert inside.item() == layer.lam().item()


def test_a_model_in_half_precision_still_has_its_lambda_in_float32() -> None:
    layer = make(24, 4, dtype=torch.bfloat16)
    assert layer.lam().dtype == torch.float32
    assert layer(torch.randn(1, 3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_under_autocast_all_parameters_learn() -> None:
    layer = make(64, 4, dtype=torch.float32)
    x = torch.randn(4, 17, 64)
    exact = gradients(layer, x.requires_grad_(), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, maps = layer(x), layer.maps(x)
    assert rounded.dtype == torch.bfloat16
    assert maps.positive.dtype == maps.effective.dtype == torch.float32
    assert (rounded - layer(x)).abs().max() < 0.05
    for name, gradient in gradients(layer, x, rounded.float()).items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.99 or (
            exact[name].abs().max() < 1e-3
        ), name


def test_its_second_derivative_is_right() -> None:
    layer = make(8, 2)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)


def test_a_head_that_reads_nothing_has_a_finite_gradient() -> None:
    layer = make(24, 4)
    x = torch.zeros(1, 3, 24, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.qkv.bias.zero_()
    assert all(gradient.isfinite().all() for gradient in gradients(layer, x, layer(x)).values())


def test_parameters_are_the_baselines_and_the_lambdas_and_the_norm() -> None:
    count = sum(p.numel() for p in DifferentialAttention(192, 6, layer_index=0).parameters())
    assert count == 148_416
    assert count - sum(p.numel() for p in Attention(192, 6).parameters()) == 192


def test_an_odd_number_of_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_heads: 5 is odd: .* pairs, so it needs an even number"):
        DifferentialAttention(160, 5, layer_index=0)
    with pytest.raises(ConfigError, match="num_heads: 4 does not divide embed_dim 30"):
        DifferentialAttention(30, 4, layer_index=0)
