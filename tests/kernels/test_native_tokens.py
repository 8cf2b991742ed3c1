"""A block's sums, norms and GELU by the compiled kernels: against float64, torch's own and themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fast import apart, fast, strayed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.kernels.modules import FastBlock, FastClsBlock
from diffvit.kernels.native import add_and_norm, gelu
from diffvit.models.vit import Block

pytestmark = pytest.mark.native


def norm_of(width: int, seed: int = 0) -> nn.LayerNorm:
    norm, generator = nn.LayerNorm(width, eps=1e-6), torch.Generator().manual_seed(seed)
    nn.init.normal_(norm.weight, 1.0, 0.5, generator=generator)
    nn.init.normal_(norm.bias, 0.0, 0.5, generator=generator)
    return norm


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def by_formula(norm: nn.LayerNorm, total: Tensor) -> Tensor:
    mean = total.mean(dim=-1, keepdim=True)
    variance = (total - mean).square().mean(dim=-1, keepdim=True)
    return (total - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 5),
    tokens=st.integers(1, 150),  # up to three chunks of rows
    width=st.sampled_from([16, 48, 192]),
    branched=st.booleans(),
    of_which=st.sampled_from(["both", "sum", "norm"]),
    seed=st.integers(0, 1000),
)
def test_sum_norm_and_gradients_are_those_of_the_formula(
    batch: int, tokens: int, width: int, branched: bool, of_which: str, seed: int
) -> None:
    norm = norm_of(width, seed)
    x = numbers(batch, tokens, width, seed=seed).requires_grad_()
    branch = numbers(batch, tokens, width, seed=seed + 1).bfloat16().requires_grad_() if branched else None
    of_sum, of_norm = numbers(batch, tokens, width, seed=seed + 2), numbers(batch, tokens, width, seed=seed + 3)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(norm, x, branch)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    exact = x.double() if branch is None else x.double() + branch.double()
    assert torch.equal(total, exact.float())
    expected = by_formula(norm, exact)
    assert apart(normed, expected) < 0.003
    share = {"both": (1, 1), "sum": (1, 0), "norm": (0, 1)}[of_which]
    loss = sum(((total * of_sum).sum(), (normed.float() * of_norm.bfloat16()).sum())[i] for i in (0, 1) if share[i])
    wanted = share[0] * (exact * of_sum).sum() + share[1] * (expected * of_norm.bfloat16()).sum()
    leaves = [x, *([] if branch is None else [branch]), *([] if of_which == "sum" else norm.parameters())]
    for mine, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).abs().max() <= 0.004 * theirs.abs().max() + 1e-4


def test_neither_threads_nor_repetition_change_a_bit() -> None:
    norm, threads, results = norm_of(64), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            x, branch = numbers(9, 130, 64).requires_grad_(), numbers(9, 130, 64, seed=1).bfloat16().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                total, normed = add_and_norm(norm, x, branch)
                after = gelu(normed)
            leaves = [x, branch, norm.weight, norm.bias]
            grads = torch.autograd.grad((after * after.detach()).float().sum() + total.sum(), leaves)
            results.append(torch.cat([each.float().flatten() for each in (total, after, *grads)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def every_bfloat16() -> Tensor:
    """All finite ones but those near the end of the range, whose square overflows a float: GELU has long settled."""
    found = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return found[found.float().abs() < 1e18]


def test_gelu_and_its_gradient_for_every_number_there_is() -> None:
    x = every_bfloat16()
    x = torch.cat([x, x.new_zeros(-len(x) % 16)]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, expected = gelu(x), exact * 0.5 * torch.special.erfc(-exact / math.sqrt(2))
    assert ((found.double() - expected).abs() <= expected.abs() / 256 + 4e-6).all()
    (mine,), (theirs,) = torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), exact)
    assert ((mine.double() - theirs).abs() <= theirs.abs() / 256 + 1e-5).all()


def test_what_is_not_finite_comes_through() -> None:
    x = torch.zeros(16).bfloat16()
    x[2], x[3] = math.nan, math.inf
    assert gelu(x)[2].isnan()
    assert gelu(x)[3].isposinf()
    tokens = numbers(3, 4, 32)
    tokens[1, 2, 5] = math.nan
    with torch.autocast("cpu", torch.bfloat16):
        _, normed = add_and_norm(norm_of(32), tokens)
    assert normed[1, 2].isnan().all()
    assert normed.isnan().sum() == 32


def test_gelu_of_what_the_kernels_do_not_take_is_torchs() -> None:
    for x in (numbers(3, 5).bfloat16(), numbers(4, 16), numbers(4, 16).double(), numbers(16, 32).bfloat16().T):
        assert torch.equal(gelu(x), F.gelu(x))


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(32, bias=False), nn.LayerNorm(32, elementwise_affine=False), nn.LayerNorm((4, 32))]
)
def test_other_norms_are_left_to_torch(norm: nn.LayerNorm) -> None:
    x = numbers(2, 4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(norm, x)
        assert torch.equal(normed, norm(x))
    assert total is x


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_without_bfloat16_autocast_it_is_the_module(autocast: torch.dtype | None) -> None:
    norm, x, branch = norm_of(32), numbers(2, 4, 32), numbers(2, 4, 32, seed=1)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        total, normed = add_and_norm(norm, x, branch)
        assert torch.equal(normed, norm(x + branch))
    assert torch.equal(total, x + branch)


def test_a_second_derivative_is_refused() -> None:
    x = numbers(2, 4, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        _, normed = add_and_norm(norm_of(32), x)
    for result, leaf in ((normed, x), (gelu(y := numbers(32).bfloat16().requires_grad_()), y)):
        (first,) = torch.autograd.grad(result.float().square().sum(), leaf, create_graph=True)
        with pytest.raises(ConfigError, match="second derivative"):
            first.sum().backward()


@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("only_cls", [False, True])
def test_a_block_strays_no_further_with_the_kernels(only_cls: bool, attention: str) -> None:
    torch.manual_seed(0)
    block = Block(64, 4, 128, attention=attention, layer_index=1)
    x, of_out = numbers(4, 65, 64).requires_grad_(), numbers(4, 65, 64, seed=1)
    leaves = [x, *(each for name, each in block.named_parameters() if "lambda" not in name)]
    exact = block(x)[:, : 1 if only_cls else None]
    of_out = of_out[:, : exact.shape[1]]
    quick = fast(block)
    quick.__class__ = FastClsBlock if only_cls else FastBlock
    errors = strayed(quick, x, of_out, leaves, [exact, *torch.autograd.grad(exact, leaves, of_out)])
    assert errors[0] != errors[1]  # so that both ways were taken
    for by_us, by_torch in zip(*errors, strict=True):
        assert by_us < max(1.2 * by_torch, 0.01), (by_us, by_torch)
