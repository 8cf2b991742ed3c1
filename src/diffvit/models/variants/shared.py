"""Differential attention whose two maps share one projection, each with an update of low rank."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.attention import DifferentialAttention


class SharedDifferentialAttention(DifferentialAttention):
    """Shared DIFF attention (arXiv 2501.17900): the queries of map i are ``x (W + A_i B_i)``, so are the keys.

    ``W`` is one matrix for both maps, half as wide as V1's; ``A_i B_i`` has a low rank. All else is V1's. It has
    ``dim^2 - 6 dim rank`` weights fewer. The paper's code was not public when this was written.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline; even.
        layer_index: depth of the layer, counted from 0.
        qkv_bias: bias on the projections of queries, keys and values.
        rank: of the updates; by default ``dim / 16``.
        more: as :class:`diffvit.models.attention.DifferentialAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer_index: int, qkv_bias: bool = True, rank: int = 0, **more: Any
    ) -> None:
        super().__init__(dim, num_heads, layer_index=layer_index, qkv_bias=qkv_bias, **more)
        del self.qkv
        rank = rank or max(1, dim // 16)
        self.q, self.k = (nn.Linear(dim, dim // 2, bias=qkv_bias) for _ in range(2))  # of both maps
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        # Of the first and second queries, and of the first and second keys.
        self.down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(4))
        self.up = nn.ModuleList(nn.Linear(rank, dim // 2, bias=False) for _ in range(4))

    def project(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """As V1's: queries and keys of head pairs next to each other."""
        updates = [up(down(x)) for up, down in zip(self.up, self.down, strict=True)]
        q, k = (
            torch.stack([(shared + each).unflatten(2, (-1, self.head_dim)) for each in both], dim=3).flatten(2, 3)
            for shared, both in ((self.q(x), updates[:2]), (self.k(x), updates[2:]))
        )
        q, k, v = self.q_norm(q), self.k_norm(k), self.v(x).unflatten(2, (self.num_heads, self.head_dim))
        return (q, k, v) if self.rope is None else (self.rope(q), self.rope(k), v)
