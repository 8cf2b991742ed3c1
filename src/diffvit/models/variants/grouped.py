"""Differential attention in which several first maps share one second map."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.models.attention import AttentionMaps, DifferentialAttention, softmax_map


class GroupedDifferentialAttention(DifferentialAttention):
    """Grouped differential attention, GDA (arXiv 2510.06949): ``ratio`` first maps in a group, and one second map.

    The softmax baseline's queries are divided into groups of ``ratio + 1``, the last of each for the second map. A
    group has two keys, for the first maps and for the second, and one value, twice as wide. Its ``ratio`` heads
    subtract the same map. Lambda, the norm of each head and its constant are V1's; with ``ratio`` 1 it is V1.

    It has ``dim^2`` query weights, ``4 dim^2 / (ratio + 1)`` of keys and values and ``2 dim^2 ratio / (ratio + 1)`` of
    the output.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline; a multiple of ``ratio + 1``.
        layer_index: depth of the layer, counted from 0.
        qkv_bias: bias on the projections of queries, keys and values.
        ratio: first maps over second ones.
        more: as :class:`diffvit.models.attention.DifferentialAttention`.

    Raises:
        ConfigError: ``num_heads`` is no multiple of ``ratio + 1``.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer_index: int, qkv_bias: bool = True, ratio: int = 3, **more: Any
    ) -> None:
        super().__init__(dim, num_heads, layer_index=layer_index, qkv_bias=qkv_bias, **more)
        if num_heads % (ratio + 1):
            raise ConfigError("num_heads", f"{num_heads} is no multiple of {ratio + 1}, the queries of a group")
        del self.qkv
        self.ratio, self.groups = ratio, num_heads // (ratio + 1)
        width = 2 * self.groups * self.head_dim
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k, self.v = (nn.Linear(dim, width, bias=qkv_bias) for _ in range(2))
        self.proj = nn.Linear(width * ratio, dim)

    def heads(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, groups, ratio + 1, tokens, width), keys (batch, groups, 2, tokens, width), values by head."""
        q = self.q_norm(self.q(x).unflatten(2, (-1, self.head_dim)))
        k, v = (part(x).unflatten(2, (-1, self.head_dim)) for part in (self.k, self.v))
        k = self.k_norm(k)
        q, k = (q, k) if self.rope is None else (self.rope(q), self.rope(k))
        q, k = (part.unflatten(2, (self.groups, -1)).permute(0, 2, 3, 1, 4) for part in (q, k))
        v = v.unflatten(2, (-1, 2)).flatten(3).transpose(1, 2)
        return q, k, v.repeat_interleave(self.ratio, dim=1)

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """The first maps of each group, and its second map once for each of them."""
        del x
        first = k[:, :, :1].expand(-1, -1, self.ratio, -1, -1)
        positive = softmax_map(q[:, :, : self.ratio], first, dtype).flatten(1, 2)
        negative = softmax_map(q[:, :, self.ratio :], k[:, :, 1:], dtype).flatten(1, 2)
        return AttentionMaps(positive, negative.repeat_interleave(self.ratio, dim=1), self.lam().to(positive.dtype))
