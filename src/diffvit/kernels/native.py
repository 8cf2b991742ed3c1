"""The compiled kernels as differentiable functions: bfloat16 on a CPU.

Attention: writing each map to memory and reading it back takes six passes in a training step, and every head is copied
in and out; in the kernels one head's map stays in a core's cache. A block's sums, layer norms and GELU: under autocast
torch adds a branch to the residual stream, normalises the sum in float32 and casts the result for the product that
follows, four passes over memory; here it is one. ``docs/log.md`` has the times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from diffvit.errors import ConfigError
from diffvit.kernels import library
from diffvit.kernels.library import Kernels, View, kernels, usable

_LANES = 16  # numbers that the kernels take at once


def casts_to_bfloat16() -> bool:
    """Whether a CPU's matrix products are cast to bfloat16 here."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator of a ``backward`` that has no derivative itself, with a line that says what to do.

    torch's own takes a gradient that does not require one for a constant, and with it what was saved: the second
    derivative would lack it without a word. Here every result refuses.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        several = found if isinstance(found, tuple) else (found,)
        marked = [None if each is None else _Once.apply(each.detach().requires_grad_()) for each in several]
        return tuple(marked) if isinstance(found, tuple) else marked[0]

    return once


class _Once(Function):
    """``apply(gradient)``: the gradient, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        del ctx
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse."""
        del ctx, grad_outputs
        why = "the gradient under bfloat16 autocast on a CPU is written out and can be differentiated no further"
        raise ConfigError("second derivative", why, "Compute it in float32, without torch.autocast.")


def works(x: Tensor, head_dim: int) -> bool:
    """Whether :func:`attention` can be used for tokens x, here and now."""
    # The exact type: a subclass stands for something else, as in torch.export.
    return type(x) is Tensor and x.numel() > 0 and head_dim % 16 == 0 and _in_bfloat16(x) and usable(x.device)


def _in_bfloat16(x: Tensor) -> bool:
    """Whether a projection of x comes out in bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.bfloat16
    return casts_to_bfloat16() and x.dtype in (torch.float32, torch.bfloat16)


def attention(
    projected: Tensor, num_heads: int, turn: Tensor | None = None, lam: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` per head; with ``lam`` per pair of adjacent heads that of differential attention.

    That is ``rms_norm((softmax(q1 k1^T / sqrt(d)) - lam softmax(q2 k2^T / sqrt(d))) v)``.

    Args:
        projected: q, k and v side by side, bfloat16 (batch, tokens, 3 dim).
        num_heads: heads of the softmax baseline, of width d = dim / num_heads, side by side; even with ``lam``.
        turn: rotary positions of q and k, float32 (at least tokens, 2, d): cosine and signed sine; None for none.
        lam: 0-dim.
        eps: of the norm, which has no weight here.

    Returns:
        (batch, tokens, dim); differentiable once.
    """
    return _Core.apply(projected, num_heads, turn, lam, eps)


class _Core(Function):
    """``apply(projected, num_heads, turn, lam, eps)``: both attentions."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, num_heads: int, turn: Tensor | None, lam: Tensor | None, eps: float
    ) -> Tensor:
        """Output, and what makes the maps again: each row's maximum, and one over its sum."""
        projected = projected if projected.stride(2) == 1 else projected.contiguous()
        batch, tokens, dim = projected.shape[0], projected.shape[1], projected.shape[2] // 3
        out = torch.empty((batch, tokens, dim), dtype=projected.dtype)
        top, inverse = torch.empty(2, batch * num_heads * tokens).unbind()
        length = torch.empty(0 if lam is None else top.numel() // 2)
        ctx.given = num_heads, 1 if lam is None else 2, 0.0 if lam is None else lam.item(), eps
        ctx.lam_type = None if lam is None else lam.dtype
        job = _job(ctx.given, projected, top, inverse, length, turn)
        job.out = View.of(out)
        _kernels().run("attention_forward", job)
        ctx.save_for_backward(projected, top, inverse, length, turn, None if lam is None else out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of what was projected, and of lam."""
        projected, top, inverse, length, turn, out = ctx.saved_tensors
        grad, of_projected = grad_outputs[0].contiguous(), torch.empty(projected.shape, dtype=projected.dtype)
        job = _job(ctx.given, projected, top, inverse, length, turn)
        of_lam = torch.empty(job.images * job.heads)
        job.grad, job.of_lam = View.of(grad), of_lam.data_ptr()
        job.of_q, job.of_k, job.of_v = (View.of(part) for part in of_projected.chunk(3, dim=2))
        if out is not None:
            job.out = View.of(out)
        _kernels().run("attention_backward", job)
        return of_projected, None, None, None if ctx.lam_type is None else of_lam.sum().to(ctx.lam_type), None


def _job(
    given: tuple[int, int, float, float],
    projected: Tensor,
    top: Tensor,
    inverse: Tensor,
    length: Tensor,
    turn: Tensor | None,
) -> library.Attention:
    num_heads, maps, lam, eps = given
    q, k, v = projected.chunk(3, dim=2)
    images, tokens, dim = q.shape
    return library.Attention(
        **{"q": View.of(q), "k": View.of(k), "v": View.of(v)},
        **{"top": top.data_ptr(), "inverse": inverse.data_ptr(), "length": length.data_ptr()},
        **{"turn": None if turn is None else turn.data_ptr()},
        **{"images": images, "tokens": tokens, "heads": num_heads // maps, "maps": maps, "width": dim // num_heads},
        **{"lam": lam, "eps": eps},
    )


def add_and_norm(
    norm: nn.LayerNorm, x: Float[Tensor, "batch tokens dim"], branch: Float[Tensor, "batch tokens dim"] | None = None
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
    """``x + branch`` (or x), and its layer norm, which under autocast may come in bfloat16."""
    if _norm_pays(norm, x, branch):
        return _AddNorm.apply(x, branch, norm.weight, norm.bias, norm.eps)
    x = x if branch is None else x + branch
    return x, norm(x)


def gelu(x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead dim"]:
    """The exact GELU (arXiv 1606.08415)."""
    if x.dtype == torch.bfloat16 and _plain(x) and x.numel() % _LANES == 0 and usable(x.device):
        return _Gelu.apply(x)
    return F.gelu(x)


def _norm_pays(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None) -> bool:
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
        and usable(x.device)
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
        _kernels().run("norm_forward", job)
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
        _kernels().run("norm_backward", job)
        return of_x, of_branch, *of_weights.sum(dim=0).unbind(), None


def _norm_job(x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> library.Norm:
    return library.Norm(
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
        _kernels().run("gelu_forward", library.Gelu(x=x.data_ptr(), out=out.data_ptr(), count=x.numel()))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That chance, and x times the density there."""
        (x,), grad = ctx.saved_tensors, grad_outputs[0].contiguous()
        of_x = torch.empty_like(x)
        job = library.Gelu(x=x.data_ptr(), grad=grad.data_ptr(), out=of_x.data_ptr(), count=x.numel())
        _kernels().run("gelu_backward", job)
        return of_x


def linear(
    layer: nn.Linear, x: Float[Tensor, "*lead dim"], weight: Float[Tensor, "out dim"] | None = None
) -> Float[Tensor, "*lead out"]:
    """``layer(x)``; with ``weight`` in place of the layer's own where it is given."""
    if _biased_pays(layer, x):
        weight = layer.weight if weight is None else weight
        return _Biased.apply(x.bfloat16(), weight.bfloat16(), layer.bias)
    return layer(x) if weight is None else F.linear(x, weight, layer.bias)


def _biased_pays(layer: nn.Linear, x: Tensor) -> bool:
    return (
        casts_to_bfloat16()
        and x.dtype in (torch.float32, torch.bfloat16)
        and type(x) is Tensor
        and x.numel() > 0
        and type(layer) is nn.Linear
        and layer.bias is not None
        and x.dim() > 1
        and layer.weight.dtype == torch.float32
        and usable(x.device)
    )


class _Biased(Function):
    """``apply(x, weight, bias)``: x and weight in bfloat16, bias in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``x weight^T + bias``."""
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias.bfloat16(), "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of all three."""
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            (grad @ weight).view(x.shape) if of_x else None,
            grad.T @ x.flatten(0, -2) if of_weight else None,
            grad.sum(dim=0).float() if of_bias else None,
        )
