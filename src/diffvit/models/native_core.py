"""Attention between its projections by the compiled kernels (:mod:`diffvit.native`): bfloat16 on a CPU.

The explicit path writes each map to memory and reads it back six times in a training step, and copies every head in and
out. Here one head's map lives and dies in a core's cache. ``docs/log.md`` has the times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from diffvit.native import jobs
from diffvit.native.jobs import View
from diffvit.native.library import kernels, usable


def pays(x: Tensor, head_dim: int) -> bool:
    """Whether :func:`softmax` and :func:`differential` are to be used for tokens x: if they can, outside of tracing."""
    # The exact type: a subclass stands for something else, as in torch.export.
    fits = type(x) is Tensor and x.numel() > 0 and head_dim % 16 == 0
    return fits and _works_in_bfloat16(x) and usable(x.device)


def _works_in_bfloat16(x: Tensor) -> bool:
    """Whether a projection of x comes out in bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.bfloat16
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16)


def softmax(parts: tuple[Tensor, ...], num_heads: int) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` per head.

    Args:
        parts: what the projection gives, bfloat16 (batch, tokens, 3 dim), as it is; or q, k, v (batch, tokens, dim).
        num_heads: heads of width d = dim / num_heads, side by side.

    Returns:
        (batch, tokens, dim); differentiable once.
    """
    return _Core.apply(num_heads, 1, None, 0.0, *parts)


def differential(parts: tuple[Tensor, ...], num_heads: int, lam: Tensor, eps: float) -> Tensor:
    """``rms_norm((softmax(q1 k1^T / sqrt(d)) - lam softmax(q2 k2^T / sqrt(d))) v)`` per pair of adjacent heads.

    Args:
        parts: as in :func:`softmax`.
        num_heads: heads of the softmax baseline, even.
        lam: 0-dim.
        eps: of the norm, which has no weight here.

    Returns:
        (batch, tokens, dim); differentiable once.
    """
    return _Core.apply(num_heads, 2, lam, eps, *parts)


class _Core(Function):
    """``apply(num_heads, maps, lam, eps, *parts)``: both attentions, ``maps`` to a head."""

    @staticmethod
    def forward(ctx: Any, num_heads: int, maps: int, lam: Tensor | None, eps: float, *parts: Tensor) -> Tensor:
        """Output, and what makes the maps again: each row's maximum, and one over its sum."""
        parts = tuple(part if part.stride(2) == 1 else part.contiguous() for part in parts)
        q, k, v = _three(parts)
        out = torch.empty(q.shape, dtype=q.dtype)
        top, inverse = torch.empty(2, q.shape[0] * num_heads * q.shape[1]).unbind()
        length = torch.empty(top.numel() // 2 if maps == 2 else 0)
        ctx.given = num_heads, maps, 0.0 if lam is None else lam.item(), eps
        ctx.lam_type = None if lam is None else lam.dtype
        job = _job(ctx.given, q, k, v, top, inverse, length)
        job.out = View.of(out)
        _run("forward", job)
        ctx.save_for_backward(top, inverse, length, out if maps == 2 else None, *parts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of lam and of the parts, in the layout that these came in."""
        top, inverse, length, out, *parts = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        found = tuple(torch.empty(part.shape, dtype=part.dtype) for part in parts)
        job = _job(ctx.given, *_three(parts), top, inverse, length)
        of_lam = torch.empty(job.images * job.heads)
        job.grad, job.of_lam = View.of(grad), of_lam.data_ptr()
        job.of_q, job.of_k, job.of_v = (View.of(part) for part in _three(found))
        if out is not None:
            job.out = View.of(out)
        _run("backward", job)
        return None, None, None if ctx.lam_type is None else of_lam.sum().to(ctx.lam_type), None, *found


def _three(parts: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = parts[0].chunk(3, dim=2) if len(parts) == 1 else parts
    return q, k, v


def _job(
    given: tuple[int, int, float, float], q: Tensor, k: Tensor, v: Tensor, top: Tensor, inverse: Tensor, length: Tensor
) -> jobs.Attention:
    num_heads, maps, lam, eps = given
    images, tokens, dim = q.shape
    return jobs.Attention(
        **{"q": View.of(q), "k": View.of(k), "v": View.of(v)},
        **{"top": top.data_ptr(), "inverse": inverse.data_ptr(), "length": length.data_ptr()},
        **{"images": images, "tokens": tokens, "heads": num_heads // maps, "maps": maps, "width": dim // num_heads},
        **{"lam": lam, "eps": eps},
    )


def _run(which: str, job: jobs.Attention) -> None:
    found = kernels()
    assert found is not None
    found.attention(which, job)
