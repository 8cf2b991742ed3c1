"""Attention by the compiled kernels: against a float64 loop of the formula, torch's bfloat16 and itself."""

from __future__ import annotations

import math

import pytest
import torch
from fast import apart, fast, numbers, strayed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.errors import ConfigError
from diffvit.kernels import native as kernel
from diffvit.kernels.modules import FastRope2d
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d

pytestmark = pytest.mark.native
EPS = 1e-5
LAM = 0.37


def naive(qkv: Tensor, heads: int, maps: int, lam: Tensor) -> Tensor:
    """The formulas, head by head and image by image."""
    width = qkv.shape[2] // 3 // heads
    images = []
    for image in qkv:
        q, k, v = image.chunk(3, dim=1)
        read = []
        for head in range(heads // maps):
            weights = []
            for part in range(head * maps, (head + 1) * maps):
                columns = slice(part * width, (part + 1) * width)
                weights.append((q[:, columns] @ k[:, columns].T / math.sqrt(width)).softmax(dim=1))
            values = v[:, head * maps * width : (head + 1) * maps * width]
            if maps == 1:
                read.append(weights[0] @ values)
            else:
                found = (weights[0] - lam * weights[1]) @ values
                read.append(found / (found.square().mean(dim=1, keepdim=True) + EPS).sqrt())
        images.append(torch.cat(read, dim=1))
    return torch.stack(images)


def native(projected: Tensor, heads: int, maps: int, lam: Tensor, turn: Tensor | None = None) -> Tensor:
    return kernel.attention(projected, heads, turn, lam if maps == 2 else None, EPS)


def near(mine: Tensor, theirs: Tensor, bound: float) -> bool:
    """Whether the gradients of queries, keys and values differ by rounding alone: the norms of their errors.

    A map of few tokens saturates: its scores' gradients are differences of nearly equal numbers, whose rounding is
    measured against the whole gradient. (The largest of 4,000 random cases are half of the bounds below.)
    """
    least = 1.0 if mine.shape[1] < 6 else 0.1
    return all(
        (a - b).norm() < bound * max(b.norm(), least * theirs.norm())
        for a, b in zip(mine.double().chunk(3, dim=2), theirs.chunk(3, dim=2), strict=True)
    )


def check(batch: int, tokens: int, width: int, heads: int, maps: int, seed: int) -> None:
    qkv, of_out = (
        numbers(batch, tokens, 3 * heads * width, seed=seed),
        numbers(batch, tokens, heads * width, seed=seed + 1),
    )
    exact, lam64 = qkv.double().requires_grad_(), torch.tensor(LAM, dtype=torch.float64, requires_grad=True)
    expected = naive(exact, heads, maps, lam64)
    expected.backward(of_out.double())
    given, lam = qkv.requires_grad_(), torch.tensor(LAM, requires_grad=True)
    found = native(given, heads, maps, lam)
    found.backward(of_out)
    assert (lam.grad is not None) == (maps == 2)
    assert given.grad is not None
    assert exact.grad is not None
    assert found.dtype == given.grad.dtype == torch.bfloat16
    assert apart(found, expected) < 0.004
    assert near(given.grad, exact.grad, 0.008)
    if lam.grad is not None and lam64.grad is not None:
        # Its sum runs over terms of either sign: what rounding leaves is measured against their size.
        assert abs(lam.grad - lam64.grad) < 0.01 * math.sqrt(found.numel())


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    width=st.sampled_from([16, 32, 48, 64]),
    pairs=st.integers(1, 3),
    maps=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_a_loop(
    batch: int, tokens: int, width: int, pairs: int, maps: int, seed: int
) -> None:
    check(batch, tokens, width, 2 * pairs, maps, seed)


@settings(deadline=None, max_examples=20)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    prefix=st.integers(0, 1),
    width=st.sampled_from([16, 32, 64]),
    fewer=st.booleans(),
    maps=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_rotary_positions_are_those_of_the_module(
    sides: tuple[int, int], prefix: int, width: int, fewer: bool, maps: int, seed: int
) -> None:
    rope = FastRope2d(sides, width, prefix)
    tokens = max(1, sides[0] * sides[1] + prefix - 3 * fewer)
    qkv, of_out = (
        numbers(2, tokens, 6 * width, seed=seed).requires_grad_(),
        numbers(2, tokens, 2 * width, seed=seed + 1),
    )
    q, k, v = (exact := qkv.detach().double().requires_grad_()).chunk(3, dim=2)
    lam = torch.tensor(LAM, dtype=torch.float64)
    q, k = (Rope2d.forward(rope, part.unflatten(2, (2, -1))).flatten(2) for part in (q, k))
    expected = naive(torch.cat([q, k, v], dim=2), 2, maps, lam)
    found = native(qkv, 2, maps, lam.float(), rope.turn)
    assert apart(found, expected) < 0.006
    (mine,), (theirs,) = torch.autograd.grad(found, qkv, of_out), torch.autograd.grad(expected, exact, of_out.double())
    assert near(mine, theirs, 0.012)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("tokens", [257, 300])  # several blocks of rows, the last one short, and one of odd length
def test_long_sequences(tokens: int, maps: int) -> None:
    check(2, tokens, 32, 2, maps, seed=5)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("tokens", [16, 65, 257])
def test_it_strays_less_than_torchs_steps_in_bfloat16(tokens: int, maps: int) -> None:
    torch.manual_seed(0)
    layer = Attention(64, 4) if maps == 1 else DifferentialAttention(64, 4, layer_index=2)
    x, of_out = torch.randn(4, tokens, 64, requires_grad=True), torch.randn(4, tokens, 64)
    leaves = [x, *layer.parameters()]
    exact = layer.double()(x.double())
    wanted = [exact, *torch.autograd.grad(exact, leaves, of_out.double())]
    for by_us, by_torch in zip(*strayed(fast(layer.float()), x, of_out, leaves, wanted), strict=True):
        assert by_us < max(1.2 * by_torch, 0.02), (by_us, by_torch)


@pytest.mark.parametrize("maps", [1, 2])
def test_neither_threads_nor_strides_change_a_bit(maps: int) -> None:
    qkv, of_out, lam = numbers(5, 33, 3 * 64), numbers(5, 33, 64, seed=1), torch.tensor(LAM)
    apart_in_memory = numbers(5, 33, 3 * 64).mT.contiguous().mT
    wider = torch.cat([qkv, qkv], dim=2)[:, :, : 3 * 64]
    results, threads = [], torch.get_num_threads()
    try:
        for count, whole in ((1, qkv), (2, qkv), (3, qkv), (1, apart_in_memory), (2, wider)):
            torch.set_num_threads(count)
            leaf = whole.detach().requires_grad_()
            out = native(leaf, 4, maps, lam)
            results.append(torch.cat([out, *torch.autograd.grad(out, leaf, of_out)], dim=2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_image_and_is_not_hidden(bad: float, maps: int) -> None:
    qkv = numbers(3, 20, 3 * 32)
    clean = native(qkv, 2, maps, torch.tensor(LAM))
    qkv[1, 7, 5] = bad  # of a query
    found = native(qkv, 2, maps, torch.tensor(LAM))
    assert not found[1, 7].isfinite().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    qkv[1, 7, 5], qkv[1, 19, 2 * 32 + 3] = 0.0, bad  # of the last value, which all tokens read
    assert not native(qkv, 2, maps, torch.tensor(LAM))[1, :, 3].isfinite().any()


@pytest.mark.parametrize("maps", [1, 2])
def test_large_scores_neither_overflow_nor_vanish(maps: int) -> None:
    qkv = numbers(2, 40, 3 * 32) * 300
    found = native(qkv, 2, maps, torch.tensor(LAM))
    assert apart(found, naive(qkv.double(), 2, maps, torch.tensor(LAM, dtype=torch.float64))) < 0.004


def test_backward_again_and_with_tensors_that_were_put_away() -> None:
    qkv, of_out = numbers(2, 9, 3 * 32).requires_grad_(), numbers(2, 9, 32, seed=1)
    (plain,) = torch.autograd.grad(kernel.attention(qkv, 2), qkv, of_out)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        out = kernel.attention(qkv, 2)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out, qkv, of_out, retain_graph=True)[0], plain)
    of_sum, of_ones = (
        torch.autograd.grad(out, qkv, each, retain_graph=True)[0]
        for each in (torch.ones(()).bfloat16().expand_as(out), torch.ones_like(out))
    )
    assert torch.equal(of_sum, of_ones)


def test_a_second_derivative_is_refused() -> None:
    qkv = numbers(1, 5, 3 * 32).requires_grad_()
    (first,) = torch.autograd.grad(kernel.attention(qkv, 2).float().square().sum(), qkv, create_graph=True)
    with pytest.raises(ConfigError, match="second derivative"):
        first.sum().backward()
