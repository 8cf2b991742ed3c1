from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.errors import ConfigError
from diffvit.models.differential import DifferentialAttention
from diffvit.models.differential_core import DifferentialCore
from diffvit.models.rope import Rope2d
from diffvit.native import library

EPS = 1e-5


def _naive(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, heads: int) -> Tensor:
    """The paper's equations 1 and 3 without weight and constant, head by head and image by image."""
    width = q.shape[2] // heads
    images = []
    for image in range(len(q)):
        of_heads = []
        for head in range(heads // 2):
            maps = []
            for half in (0, 1):
                part = slice((2 * head + half) * width, (2 * head + half + 1) * width)
                maps.append((q[image][:, part] @ k[image][:, part].T / math.sqrt(width)).softmax(dim=1))
            read = (maps[0] - lam * maps[1]) @ v[image][:, 2 * head * width : (2 * head + 2) * width]
            of_heads.append(read / (read.square().mean(dim=1, keepdim=True) + EPS).sqrt())
        images.append(torch.cat(of_heads, dim=1))
    return torch.stack(images)


def _inputs(batch: int, tokens: int, dim: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(batch, tokens, dim, dtype=torch.float64, generator=generator) for _ in range(3)]
    lam = torch.rand((), dtype=torch.float64, generator=generator)
    return [value.requires_grad_() for value in (*parts, lam)]


def _apart(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    pairs=st.integers(1, 3),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_values_and_gradients_are_those_of_a_naive_loop(
    batch: int, tokens: int, pairs: int, width: int, seed: int
) -> None:
    heads = 2 * pairs
    inputs = _inputs(batch, tokens, heads * width, seed)
    result, expected = DifferentialCore.apply(*inputs, heads, EPS), _naive(*inputs, heads)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)
    of_result = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(result, inputs, of_result)
    oracle = torch.autograd.grad(expected, inputs, of_result)
    for mine, theirs in zip(found, oracle, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8 * (1 + theirs.abs().max().item()))


def test_numerical_gradients_agree() -> None:
    assert torch.autograd.gradcheck(lambda *given: DifferentialCore.apply(*given, 4, EPS), _inputs(2, 5, 24, seed=1))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("kernels", [True, False])
def test_in_bfloat16_the_layer_strays_little_more_than_the_steps_one_by_one(
    rotary: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(library, "_found", lambda: "switched off")
    # Over four draws: in a single one the gradient of lambda, a sum of terms of either sign, may be near zero.
    errors: dict[str, list[Tensor]] = {"forward": [], "attend": []}
    for seed in range(4):
        torch.manual_seed(seed)
        rope = Rope2d((8, 8), 4, 16, 0) if rotary else None
        layer = DifferentialAttention(64, 4, layer_index=2, rope=rope)
        x, of_result = torch.randn(16, 64, 64, requires_grad=True), torch.randn(16, 64, 64)
        leaves = [x, *layer.parameters()]
        exact = [layer(x), *torch.autograd.grad(layer(x), leaves, of_result)]
        for way, found_of in errors.items():
            with torch.autocast("cpu", torch.bfloat16):
                result = getattr(layer, way)(x)
            found = [result, *torch.autograd.grad(result, leaves, of_result.to(result.dtype))]
            pairs = zip(found, exact, strict=True)
            squares = [[part.square().sum().item() for part in (one - other, other)] for one, other in pairs]
            found_of.append(torch.tensor(squares))
    mine, stepwise = (torch.stack(of).sum(dim=0).sqrt() for of in errors.values())
    mine, stepwise = mine[:, 0] / mine[:, 1], stepwise[:, 0] / stepwise[:, 1]
    assert (mine > 0).all()
    assert (mine < (1.5 * stepwise).clamp(min=0.02)).all(), (mine, stepwise)


def test_a_second_derivative_is_refused_in_bfloat16_and_right_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = DifferentialAttention(16, 4, layer_index=0), torch.randn(2, 5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
    (first,) = torch.autograd.grad(result.float().square().sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match=r"second derivative: .* float32"):
        first.sum().backward()
    # Also where the loss is linear in the result, of which torch's own marker would see constants.
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(layer(x))
    (first,) = torch.autograd.grad(result.float().sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match=r"second derivative: .* float32"):
        first.square().sum().backward()
    layer, x = layer.double(), x.detach().double().requires_grad_()
    assert torch.autograd.gradgradcheck(layer, x)
