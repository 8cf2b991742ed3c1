"""Differential attention between its projections, with the gradient written out: bfloat16 on a CPU.

Autograd's own backward pass scales and sums whole maps and walks the norm in eight steps. Here the second map's
gradient is that of the first with another factor, put into the products that read it. ``docs/log.md`` has the times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffvit.models.autocast import casts_to_bfloat16, once_differentiable


def pays(x: Tensor) -> bool:
    """Whether :class:`DifferentialCore` is the faster way: bfloat16 on a CPU by autocast, outside ``torch.compile``."""
    return x.device.type == "cpu" and casts_to_bfloat16() and not torch.compiler.is_compiling()


class DifferentialCore(Function):
    """``rms_norm((softmax(q1 k1^T / sqrt(d)) - lam softmax(q2 k2^T / sqrt(d))) v)`` per head; differentiable once.

    ``apply(q, k, v, lam, num_heads, eps)``: q, k, v (batch, tokens, dim) as the projection gives them, adjacent heads
    of width d = dim / num_heads paired; lam 0-dim. Gives (batch, tokens, dim), without the norm's weight.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, num_heads: int, eps: float) -> Tensor:
        """Both maps in one product and one softmax; combined before the value product."""
        pairs, width = num_heads // 2, q.shape[2] // num_heads
        q, k = _pairs_first(q, pairs), _pairs_first(k, pairs)
        v = v.unflatten(2, (pairs, 2 * width)).transpose(1, 2).flatten(0, 1)
        maps = _product(q.flatten(0, 1), k.flatten(0, 1).mT, width**-0.5).softmax(dim=-1).unflatten(0, (2, -1))
        ctx.lam, ctx.lam_type = lam.item(), lam.dtype
        combined = torch.sub(maps[0], maps[1], alpha=ctx.lam)
        heads = (combined @ v).unflatten(0, (-1, pairs)).transpose(1, 2).contiguous()
        wide = torch.promote_types(heads.dtype, torch.float32)
        length = torch.linalg.vector_norm(heads, dim=-1, keepdim=True, dtype=wide)
        scale = (length.square_() / (2 * width) + eps).rsqrt_().to(heads.dtype)
        normed = heads.mul_(scale)
        ctx.save_for_backward(q, k, v, maps, combined, normed, scale)
        return normed.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of q, k, v and lam."""
        q, k, v, maps, combined, normed, scale = ctx.saved_tensors
        pairs, width = normed.shape[2], q.shape[-1]
        grad = grad_outputs[0].view_as(normed)
        along = (grad * normed).mean(dim=-1, keepdim=True).neg_()
        of_heads = torch.addcmul(grad, normed, along).mul_(scale).transpose(1, 2).flatten(0, 1)
        of_map = of_heads @ v.mT
        of_v = combined.mT @ of_heads
        of_q, of_k = torch.empty_like(q), torch.empty_like(k)
        for i, factor in enumerate((1.0, -ctx.lam)):
            of_scores = torch.ops.aten._softmax_backward_data(of_map, maps[i], -1, maps.dtype)
            _product(of_scores, k[i], factor * width**-0.5, out=of_q[i])
            _product(of_scores.mT, q[i], factor * width**-0.5, out=of_k[i])
        of_lam = (of_map * maps[1]).sum().neg_().to(ctx.lam_type) if ctx.needs_input_grad[3] else None
        of_v = of_v.unflatten(0, (-1, pairs)).transpose(1, 2).flatten(2)
        return _tokens_first(of_q, pairs), _tokens_first(of_k, pairs), of_v, of_lam, None, None


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """``factor * a @ b``, the factor inside the product; into ``out`` where given."""
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0, alpha=factor, out=out)


def _pairs_first(x: Tensor, pairs: int) -> Tensor:
    """(batch, tokens, dim) to (2, batch * pairs, tokens, width)."""
    return x.unflatten(2, (pairs, 2, -1)).permute(3, 0, 2, 1, 4).contiguous().flatten(1, 2)


def _tokens_first(x: Tensor, pairs: int) -> Tensor:
    """What :func:`_pairs_first` was given."""
    return x.unflatten(1, (-1, pairs)).permute(1, 3, 2, 0, 4).flatten(2)
