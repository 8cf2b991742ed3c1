"""Attention between its projections by the compiled kernels (:mod:`diffvit.native`): bfloat16 on a CPU.

The explicit path writes each map to memory and reads it back six times in a training step, and copies every head in and
out. Here one head's map lives and dies in a core's cache. ``docs/log.md`` has the times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffvit.models.autocast import casts_to_bfloat16, once_differentiable
from diffvit.native import jobs
from diffvit.native.jobs import View
from diffvit.native.library import kernels, usable


def pays(x: Tensor, head_dim: int, turn: Tensor | None = None) -> bool:
    """Whether :func:`softmax` and :func:`differential` are to be used for tokens x: if they can, outside of tracing."""
    # The exact type: a subclass stands for something else, as in torch.export.
    fits = type(x) is Tensor and x.numel() > 0 and head_dim % 16 == 0
    if turn is not None:  # which a model moved to half precision has lost
        fits = fits and turn.dtype == torch.float32 and len(turn) >= x.shape[1]
    return fits and _works_in_bfloat16(x) and usable(x.device)


def _works_in_bfloat16(x: Tensor) -> bool:
    """Whether a projection of x comes out in bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.bfloat16
    return casts_to_bfloat16() and x.dtype in (torch.float32, torch.bfloat16)


def softmax(projected: Tensor, num_heads: int, turn: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` per head.

    Args:
        projected: q, k and v side by side, bfloat16 (batch, tokens, 3 dim).
        num_heads: heads of width d = dim / num_heads, side by side.
        turn: rotary positions of q and k, float32 (at least tokens, 2, d): cosine and signed sine; None for none.

    Returns:
        (batch, tokens, dim); differentiable once.
    """
    return _Core.apply(projected, num_heads, 1, None, 0.0, turn)


def differential(projected: Tensor, num_heads: int, lam: Tensor, eps: float, turn: Tensor | None = None) -> Tensor:
    """``rms_norm((softmax(q1 k1^T / sqrt(d)) - lam softmax(q2 k2^T / sqrt(d))) v)`` per pair of adjacent heads.

    Args:
        projected: as in :func:`softmax`.
        num_heads: heads of the softmax baseline, even.
        lam: 0-dim.
        eps: of the norm, which has no weight here.
        turn: as in :func:`softmax`.

    Returns:
        (batch, tokens, dim); differentiable once.
    """
    return _Core.apply(projected, num_heads, 2, lam, eps, turn)


class _Core(Function):
    """``apply(projected, num_heads, maps, lam, eps, turn)``: both attentions, ``maps`` to a head."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, num_heads: int, maps: int, lam: Tensor | None, eps: float, turn: Tensor | None
    ) -> Tensor:
        """Output, and what makes the maps again: each row's maximum, and one over its sum."""
        projected = projected if projected.stride(2) == 1 else projected.contiguous()
        batch, tokens, dim = projected.shape[0], projected.shape[1], projected.shape[2] // 3
        out = torch.empty((batch, tokens, dim), dtype=projected.dtype)
        top, inverse = torch.empty(2, batch * num_heads * tokens).unbind()
        length = torch.empty(top.numel() // 2 if maps == 2 else 0)
        ctx.given = num_heads, maps, 0.0 if lam is None else lam.item(), eps
        ctx.lam_type = None if lam is None else lam.dtype
        job = _job(ctx.given, projected, top, inverse, length, turn)
        job.out = View.of(out)
        _run("forward", job)
        ctx.save_for_backward(projected, top, inverse, length, turn, out if maps == 2 else None)
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
        _run("backward", job)
        return of_projected, None, None, None if ctx.lam_type is None else of_lam.sum().to(ctx.lam_type), None, None


def _job(
    given: tuple[int, int, float, float],
    projected: Tensor,
    top: Tensor,
    inverse: Tensor,
    length: Tensor,
    turn: Tensor | None,
) -> jobs.Attention:
    num_heads, maps, lam, eps = given
    q, k, v = projected.chunk(3, dim=2)
    images, tokens, dim = q.shape
    return jobs.Attention(
        **{"q": View.of(q), "k": View.of(k), "v": View.of(v)},
        **{"top": top.data_ptr(), "inverse": inverse.data_ptr(), "length": length.data_ptr()},
        **{"turn": None if turn is None else turn.data_ptr()},
        **{"images": images, "tokens": tokens, "heads": num_heads // maps, "maps": maps, "width": dim // num_heads},
        **{"lam": lam, "eps": eps},
    )


def _run(which: str, job: jobs.Attention) -> None:
    found = kernels()
    assert found is not None
    found.attention(which, job)
