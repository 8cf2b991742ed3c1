"""Attention for one query: the same values and gradients as with a key and a value for every token, for less work."""

from __future__ import annotations

import pytest
import torch
from fast import fast
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffvit.kernels import modules as kernel
from diffvit.models.attention import Attention, DifferentialAttention

KINDS = ("softmax", "differential")


def _layer(kind: str, dim: int, heads: int) -> nn.Module:
    torch.manual_seed(dim)
    layer = Attention(dim, heads) if kind == "softmax" else DifferentialAttention(dim, heads, layer_index=1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_numerical_gradients_agree_and_a_second_derivative_is_there(kind: str) -> None:
    layer = fast(_layer(kind, 8, 2).double())
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda given: layer(given, True), x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_bias_has_no_gradient_for_it_shifts_all_scores_alike(kind: str) -> None:
    layer = fast(_layer(kind, 32, 4))
    layer(torch.randn(2, 17, 32), True).square().sum().backward()
    of_bias = layer.qkv.bias.grad
    assert not of_bias[32:64].any()
    assert of_bias[:32].abs().min() > 0
    assert of_bias[64:].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_projected_to_a_key_or_a_value(kind: str) -> None:
    with FlopCounterMode(display=False) as counter:
        fast(_layer(kind, 192, 6))(torch.randn(1, 65, 192), True)
    keys_and_values = 2 * 65 * 192 * 2 * 192
    assert counter.get_total_flops() < keys_and_values / 10


def test_it_is_for_many_tokens_and_plain_heads() -> None:
    layer, x = Attention(192, 6), torch.randn(1, 65, 192)
    assert kernel.one_query_is_faster(layer, x)
    assert not kernel.one_query_is_faster(layer, x[:, :1])
    assert not kernel.one_query_is_faster(Attention(192, 6, qk_norm="layer"), x)


def test_autocasts_type_is_taken_once_and_only_from_float32() -> None:
    x = torch.randn(1, 2, 4)
    assert kernel.in_working_type(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel.in_working_type(x).dtype == torch.bfloat16
        assert kernel.in_working_type(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_come_out_where_nothing_is_computed(kind: str) -> None:
    assert fast(_layer(kind, 32, 4)).to("meta")(torch.empty(2, 17, 32, device="meta"), True).shape == (2, 1, 32)
