from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.models import linear as module
from diffvit.models.linear import BFloat16Linear, Linear, linear


def _whole(*shape: int, seed: int) -> Tensor:
    """Small whole numbers, whose products and sums bfloat16 and float32 hold exactly here."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).float().requires_grad_()


@given(
    lead=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    wide=st.integers(1, 12),
    out=st.integers(1, 12),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_whole_numbers_come_out_exactly_with_their_gradients(
    lead: list[int], wide: int, out: int, bias: bool, seed: int
) -> None:
    inputs = [_whole(*lead, wide, seed=seed), _whole(out, wide, seed=seed + 1)]
    inputs += [_whole(out, seed=seed + 2)] if bias else []
    # A gradient of one image alone keeps every sum small enough to be exact.
    of_result = torch.zeros(*lead, out)
    of_result.view(-1, out)[0] = _whole(out, seed=seed + 3).detach()
    with torch.autocast("cpu", torch.bfloat16):
        result = linear(inputs[0], inputs[1], inputs[2] if bias else None)
    expected = F.linear(*(value.double() for value in inputs))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result.double(), expected)
    found = torch.autograd.grad(result, inputs, of_result.to(torch.bfloat16))
    oracle = torch.autograd.grad(expected, inputs, of_result.double())
    for mine, theirs in zip(found, oracle, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("wide", "out"), [(192, 576), (384, 192), (16, 16)])
def test_no_further_from_float64_than_autocast(wide: int, out: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(4, 65, wide), torch.randn(out, wide) / wide**0.5, torch.randn(out)]
    inputs = [value.requires_grad_() for value in inputs]
    of_result = torch.randn(4, 65, out)
    exact = F.linear(*(value.double() for value in inputs))
    oracle = [exact, *torch.autograd.grad(exact, inputs, of_result.double())]
    errors = []
    for function in (linear, F.linear):
        with torch.autocast("cpu", torch.bfloat16):
            result = function(*inputs)
        found = [result, *torch.autograd.grad(result, inputs, of_result.to(result.dtype))]
        errors.append([(mine - theirs).norm() / theirs.norm() for mine, theirs in zip(found, oracle, strict=True)])
    for mine, autocast in zip(*errors, strict=True):
        assert 0 < mine <= 1.05 * autocast
        assert mine < 0.01


def test_the_fallback_without_onednn_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 7, 16), torch.randn(8, 16), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        first = linear(x, weight, bias)
        monkeypatch.setattr(module, "_HAS_ONEDNN_LINEAR", False)
        second = linear(x, weight, bias)
    torch.testing.assert_close(first, second, rtol=2**-7, atol=2**-7)


def test_outside_autocast_it_is_torchs_layer_bit_for_bit() -> None:
    torch.manual_seed(0)
    layer, x = Linear(16, 8), torch.randn(3, 16, requires_grad=True)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    # Twice differentiable there, as torch's is.
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.abs().sum() > 0


def test_a_frozen_weight_gets_no_gradient_and_the_rest_does() -> None:
    torch.manual_seed(0)
    layer, x = Linear(16, 8), torch.randn(3, 16, requires_grad=True)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, torch.full((8,), 3.0))
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1), rtol=0.02, atol=0.02)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    result = BFloat16Linear.apply(x, weight, None)
    (first,) = torch.autograd.grad(result.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
