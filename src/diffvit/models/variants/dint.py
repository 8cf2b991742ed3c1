"""Differential-integral attention: the difference of two maps, plus what all queries look at."""

from __future__ import annotations

import torch
from torch import Tensor

from diffvit.models.attention import AttentionMaps, DifferentialAttention, softmax_map


class DintAttention(DifferentialAttention):
    """DINT attention (arXiv 2501.17486): ``A1 - lambda A2 + lambda G``; each row of ``G`` is the mean row of ``A1``.

    So the rows sum to 1. Without a causal mask the mean is over all queries. Lambda, the norm of each head and its
    constant are V1's. The subtracted map is ``A2 - G``, whose rows sum to 0. Arguments as
    :class:`DifferentialAttention`.
    """

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """V1's maps, the second less the mean row of the first."""
        del x
        positive, negative = softmax_map(q, k, dtype).unbind(2)
        lam = self.lam().to(positive.dtype)
        return AttentionMaps(positive, negative - positive.mean(dim=-2, keepdim=True), lam)
