"""Controls for differential attention: what is left of it if lambda is free, or if nothing is subtracted."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.attention import Attention, AttentionMaps, DifferentialAttention, PairedAttention, softmax_map


class FreeDifferentialAttention(DifferentialAttention):
    """V1 with lambda's constant 0 and no norm per head: lambda starts near 0 and may take either sign."""

    def __init__(self, dim: int, num_heads: int, *, layer_index: int, **more: object) -> None:
        super().__init__(dim, num_heads, layer_index=layer_index, lambda_init=0.0, **more)
        self.sub_norm = nn.Identity()

    def joined(self, out: Float[Tensor, "batch pairs queries double_width"]) -> Float[Tensor, "batch queries dim"]:
        """Concatenate what the heads read from their values, and project."""
        return Attention.joined(self, out)


class NonNegativeDifferentialAttention(FreeDifferentialAttention):
    """:class:`FreeDifferentialAttention` with the absolute value of its lambda: it cannot add the second map."""

    def lam(self) -> Float[Tensor, ""]:
        """Lambda, at least 0."""
        return super().lam().abs()


class SummedAttention(PairedAttention):
    """The sum of two maps, ``A1 + A2``: lambda held at -1, no norm per head."""

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """Both maps, lambda -1."""
        del x
        positive, negative = softmax_map(q, k, dtype).unbind(2)
        return AttentionMaps(positive, negative, -positive.new_ones(()))
