"""Linear layers with the bias inside the product: against float64, the module, and what the kernels leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fast import apart
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffvit.kernels.native import linear


@pytest.mark.native
@settings(deadline=None, max_examples=25)
@given(
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dim=st.integers(1, 40),
    out=st.integers(1, 40),
    half=st.booleans(),
    other=st.booleans(),
    seed=st.integers(0, 100),
)
def test_values_and_gradients_are_those_of_float64(
    lead: list[int], dim: int, out: int, half: bool, other: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(dim, out), torch.randn(*lead, dim)
    x = (x.bfloat16() if half else x).requires_grad_()
    weight = (layer.weight * 0.5).detach().requires_grad_() if other else None
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(layer, x, weight)
    used = layer.weight if weight is None else weight
    leaves = [x, used, layer.bias]
    exact = F.linear(x.double(), used.double(), layer.bias.double())
    of_out = torch.randn(found.shape).bfloat16()
    grads = torch.autograd.grad(found, leaves, of_out), torch.autograd.grad(exact, leaves, of_out.double())
    assert found.dtype == torch.bfloat16
    size = (x.double().abs() @ used.double().abs().T + layer.bias.double().abs()).max()
    assert (found - exact).abs().max() <= 0.01 * size
    rows = found[..., 0].numel()
    for mine, theirs, leaf, summed in zip(*grads, leaves, (out, rows, rows), strict=True):
        assert (mine.dtype, mine.shape) == (leaf.dtype, leaf.shape)
        assert (mine - theirs).abs().max() <= 0.06 * summed**0.5


@pytest.mark.native
def test_the_bias_is_rounded_once_less_than_by_the_module() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96), torch.randn(512, 64)
    exact = layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert 0 < apart(linear(layer, x), exact) <= apart(layer(x), exact)


@pytest.mark.native
def test_what_is_frozen_gets_no_gradient() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        linear(layer, x).float().square().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.bias.grad is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_or_bias_it_is_the_module(bias: bool, dtype: torch.dtype) -> None:
    layer, x = nn.Linear(8, 6, bias=bias).to(dtype), torch.randn(2, 3, 8, dtype=dtype)
    assert torch.equal(linear(layer, x), layer(x))
    assert torch.equal(linear(layer, x, 2 * layer.weight), F.linear(x, 2 * layer.weight, layer.bias))
    if not bias and dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(linear(layer, x), layer(x))
