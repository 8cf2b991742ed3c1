"""Differential attention with a gate in place of lambda."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffvit.models.attention import AttentionMaps, PairedAttention, softmax_map, widened


class GatedDifferentialAttention(PairedAttention):
    """Differential gated self-attention, M-DGSA (arXiv 2505.24054): ``g A1 - (1 - g) A2``, ``g = sigmoid(x w + b)``.

    The gate is a number for each token and head: 1 reads the first map alone, 0 the second with its sign turned. There
    is no norm per head. It has the softmax baseline's parameters and ``(dim + 1) num_heads / 2`` of the gates. The
    paper's code was not public when this was written; the split of heads is V1's.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline; even.
        more: as :class:`diffvit.models.attention.Attention`.
    """

    def __init__(self, dim: int, num_heads: int, **more: object) -> None:
        super().__init__(dim, num_heads, **more)
        self.gate = nn.Linear(dim, num_heads // 2)

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """The first map times the gate, and the second, times what the gate leaves."""
        positive, negative = softmax_map(q, k, dtype).unbind(2)
        gate = widened(self.gate(x)).sigmoid().to(positive.dtype).transpose(1, 2)[..., None]
        return AttentionMaps(gate * positive, negative, 1 - gate)
