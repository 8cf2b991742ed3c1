"""A block's sums, layer norms and GELU by the compiled kernels (:mod:`diffvit.native`): bfloat16 autocast on a CPU.

Under autocast torch adds a branch to the residual stream, normalises the sum in float32, and casts the result for the
product that follows: four passes over memory, and more in the backward pass. Here it is one of each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from diffvit.models.autocast import casts_to_bfloat16, once_differentiable
from diffvit.native import jobs
from diffvit.native.library import Kernels, kernels, usable

_LANES = 16  # numbers that the kernels take at once


def add_and_norm(
    norm: nn.LayerNorm, x: Float[Tensor, "batch tokens dim"], branch: Float[Tensor, "batch tokens dim"] | None = None
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
    """``x + branch`` (or x), and its layer norm, which under autocast may come in bfloat16."""
    if _pays(norm, x, branch):
        return _AddNorm.apply(x, branch, norm.weight, norm.bias, norm.eps)
    x = x if branch is None else x + branch
    return x, norm(x)


def gelu(x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead dim"]:
    """The exact GELU (arXiv 1606.08415)."""
    if x.dtype == torch.bfloat16 and _plain(x) and x.numel() % _LANES == 0 and usable(x.device):
        return _Gelu.apply(x)
    return F.gelu(x)


def _pays(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None) -> bool:
    """Whether one pass does what the module would: hooks on it, for one, want to be called."""
    return (
        x.dtype == torch.float32
        and casts_to_bfloat16()
        and x.shape[-1] % _LANES == 0
        and _plain(x)
        and (branch is None or (branch.dtype == torch.bfloat16 and _plain(branch) and branch.shape == x.shape))
        and type(norm) is nn.LayerNorm
        and norm.normalized_shape == x.shape[-1:]
        and all(each is not None and each.dtype == torch.float32 for each in (norm.weight, norm.bias))
        and not has_hooks(norm)
        and usable(x.device)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to be told when the module is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.is_contiguous() and x.numel() > 0


def _kernels() -> Kernels:
    found = kernels()
    assert found is not None
    return found


class _AddNorm(Function):
    """``apply(x, branch, weight, bias, eps)``: the sum in float32, and its norm in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The sum, which is x itself where there is no branch, and its norm."""
        total = x if branch is None else torch.empty_like(x)
        out = torch.empty(x.shape, dtype=torch.bfloat16)
        mean, inverse = torch.empty(2, x.numel() // x.shape[-1]).unbind()
        job = _norm_job(x, weight, mean, inverse, eps)
        job.branch, job.sum = None if branch is None else branch.data_ptr(), total.data_ptr()
        job.bias, job.out = bias.contiguous().data_ptr(), out.data_ptr()
        _kernels().norm("forward", job)
        ctx.save_for_backward(total, weight, mean, inverse)
        ctx.eps, ctx.branched = eps, branch is not None
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x and the branch, the same but for their types, and of weight and bias."""
        of_sum, of_out = grad_outputs
        total, weight, mean, inverse = ctx.saved_tensors
        if of_out is None:
            return of_sum, of_sum.bfloat16() if ctx.branched and of_sum is not None else None, None, None, None
        of_sum, of_out = of_sum if of_sum is None else of_sum.contiguous(), of_out.contiguous()
        of_x = torch.empty_like(total)
        of_branch = torch.empty(total.shape, dtype=torch.bfloat16) if ctx.branched else None
        of_weights = torch.empty(_kernels().norm_chunks(mean.numel()), 2, weight.numel())
        job = _norm_job(total, weight, mean, inverse, ctx.eps)
        job.sum, job.of_out, job.of_x = total.data_ptr(), of_out.data_ptr(), of_x.data_ptr()
        job.of_sum = None if of_sum is None else of_sum.data_ptr()
        job.of_branch = None if of_branch is None else of_branch.data_ptr()
        job.of_weights = of_weights.data_ptr()
        _kernels().norm("backward", job)
        return of_x, of_branch, *of_weights.sum(dim=0).unbind(), None


def _norm_job(x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> jobs.Norm:
    return jobs.Norm(
        **{"x": x.data_ptr(), "weight": weight.contiguous().data_ptr()},
        **{"mean": mean.data_ptr(), "inverse": inverse.data_ptr()},
        **{"rows": mean.numel(), "width": x.shape[-1], "eps": eps},
    )


class _Gelu(Function):
    """``apply(x)``: bfloat16 in and out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """``x`` times the chance that a standard normal number is below it."""
        out = torch.empty_like(x)
        _kernels().gelu("forward", jobs.Gelu(x=x.data_ptr(), out=out.data_ptr(), count=x.numel()))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That chance, and x times the density there."""
        (x,), grad = ctx.saved_tensors, grad_outputs[0].contiguous()
        of_x = torch.empty_like(x)
        job = jobs.Gelu(x=x.data_ptr(), grad=grad.data_ptr(), out=of_x.data_ptr(), count=x.numel())
        _kernels().gelu("backward", job)
        return of_x
