"""Attention for few queries: the same values and gradients as with a key and a value for every token, for less work."""

from __future__ import annotations

import pytest
import torch
from fast import fast
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffvit.kernels import modules as kernel
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d

KINDS = ("softmax", "differential")


def _layer(kind: str, dim: int, heads: int, rope: Rope2d | None = None) -> nn.Module:
    torch.manual_seed(dim)
    if kind == "softmax":
        layer = Attention(dim, heads, rope=rope)
    else:
        layer = DifferentialAttention(dim, heads, layer_index=1, rope=rope)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def _by_loop(qkv: nn.Linear, x: Tensor, queries: int, heads: int) -> tuple[Tensor, Tensor]:
    """Maps and what they read, one image and head at a time, from every token's key and value."""
    width = x.shape[2] // heads
    maps, reads = [], []
    for image in x:
        q, k, v = qkv(image).chunk(3, dim=1)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            maps.append((q[:queries, part] @ k[:, part].T / width**0.5).softmax(dim=1))
            reads.append(maps[-1] @ v[:, part])
    shape = (len(x), heads, queries)
    return torch.stack(maps).view(*shape, -1), torch.stack(reads).view(*shape, width).transpose(1, 2)


@settings(deadline=None, max_examples=30)
@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 5),
    tokens=st.integers(1, 9),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    data=st.data(),
)
def test_maps_and_what_they_read_are_a_loops(
    heads: int, width: int, tokens: int, batch: int, bias: bool, data: st.DataObject
) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(batch, tokens, heads * width, dtype=torch.float64)
    queries = data.draw(st.integers(1, tokens))
    layer = Attention(heads * width, heads, qkv_bias=bias).double()
    qkv = layer.qkv
    maps = kernel.maps_for_few(layer, x, queries)
    expected = _by_loop(qkv, x, queries, heads)
    torch.testing.assert_close(maps, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel.values_for_few(qkv, x, maps), expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_numerical_gradients_agree_and_a_second_derivative_is_there(kind: str) -> None:
    layer = fast(_layer(kind, 8, 2).double())
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda given: layer(given, 1), x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_bias_has_no_gradient_for_it_shifts_all_scores_alike(kind: str) -> None:
    layer = fast(_layer(kind, 32, 4))
    layer(torch.randn(2, 17, 32), 1).square().sum().backward()
    of_bias = layer.qkv.bias.grad
    assert not of_bias[32:64].any()
    assert of_bias[:32].abs().min() > 0
    assert of_bias[64:].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_projected_to_a_key_or_a_value(kind: str) -> None:
    layer, x = fast(_layer(kind, 192, 6)), torch.randn(1, 65, 192)
    counts = []
    for queries in (1, 40):  # with so many, there are keys and values
        with FlopCounterMode(display=False) as counter:
            layer(x, queries)
        counts.append(counter.get_total_flops())
    keys_and_values = 2 * 65 * 192 * 2 * 192
    assert counts[0] < counts[1] - 0.9 * keys_and_values


def test_it_is_for_few_queries() -> None:
    layer, x = Attention(192, 6), torch.randn(1, 65, 192)
    assert kernel.few_are_faster(layer, x, 1)
    assert kernel.few_are_faster(layer, x, 21)
    assert not kernel.few_are_faster(layer, x, 22)
    assert not kernel.few_are_faster(Attention(192, 6, qk_norm="layer"), x, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rotary_keys_are_made_one_by_one(kind: str) -> None:
    layer = _layer(kind, 32, 4, rope=Rope2d((4, 4), 8, 1)).double()
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    expected = layer(x)[:, :1]
    torch.testing.assert_close(fast(layer)(x, 1), expected, rtol=1e-10, atol=1e-12)


def test_autocasts_type_is_taken_once_and_only_from_float32() -> None:
    x = torch.randn(1, 2, 4)
    assert kernel.in_working_type(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel.in_working_type(x).dtype == torch.bfloat16
        assert kernel.in_working_type(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_come_out_where_nothing_is_computed(kind: str) -> None:
    assert fast(_layer(kind, 32, 4)).to("meta")(torch.empty(2, 17, 32, device="meta"), 1).shape == (2, 1, 32)
