"""Differential attention whose two maps share one projection, each with an update of low rank."""

from __future__ import annotations

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
        layer_index: depth of the layer, counted from 0; it sets ``lambda_init``.
        qkv_bias: bias on the projections of queries, keys and values.
        rank: of the updates; by default ``dim / 16``.
        more: as :class:`diffvit.models.attention.Attention`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer_index: int, qkv_bias: bool = True, rank: int = 0, **more: object
    ) -> None:
        super().__init__(dim, num_heads, layer_index=layer_index, qkv_bias=qkv_bias, **more)
        del self.qkv
        rank = rank or max(1, dim // 16)
        self.qk = nn.Linear(dim, dim, bias=qkv_bias)  # queries, then keys, of both maps
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.down = nn.Linear(dim, 4 * rank, bias=False)  # first and second queries, first and second keys
        self.up = nn.ModuleList(nn.Linear(rank, dim // 2, bias=False) for _ in range(4))

    def project(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> tuple[
        Float[Tensor, "batch tokens heads width"],
        Float[Tensor, "batch tokens heads width"],
        Float[Tensor, "batch tokens heads width"],
    ]:
        """As V1's: queries and keys of head pairs next to each other."""
        updates = [up(part) for up, part in zip(self.up, self.down(x).chunk(4, dim=2), strict=True)]
        shared = self.qk(x).chunk(2, dim=2)
        q, k = (
            torch.stack([(base + each).unflatten(2, (-1, self.head_dim)) for each in both], dim=3).flatten(2, 3)
            for base, both in zip(shared, (updates[:2], updates[2:]), strict=True)
        )
        q, k, v = self.q_norm(q), self.k_norm(k), self.v(x).unflatten(2, (self.num_heads, self.head_dim))
        return (q, k, v) if self.rope is None else (self.rope(q), self.rope(k), v)
