"""Differential attention that a trained softmax model can be continued as."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.attention import Attention, AttentionMaps, softmax_map, widened


class SplitDifferentialAttention(Attention):
    """Softmax attention minus lambda times a second map of each head, ``(A1 - lambda A2) V``; lambda starts at 0.

    For continuing a trained softmax model as a differential one: where lambda is 0, it computes exactly what
    :class:`Attention` does with the same ``qkv`` and ``proj``. :class:`DifferentialAttention` (V1) cannot: of its heads
    one in two has a first map, and its norm divides every head's output by its own length. So here each head keeps its
    map and its values, the second queries and keys are a projection of their own (``2 dim^2`` weights more), there is
    no norm per head, and lambda is a plain number per layer, free to change its sign.

    Args:
        dim: width of a token.
        num_heads: heads, of width ``dim / num_heads``.
        qkv_bias: bias on the projections of queries, keys and values.
        more: as :class:`Attention`; the norms of queries and keys are those of both pairs.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, **more: object) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **more)  # pyright: ignore[reportArgumentType]
        self.qk2 = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.lambda_ = nn.Parameter(torch.zeros(()))

    def lam(self) -> Float[Tensor, ""]:
        """Lambda, one scalar for the layer's heads."""
        return widened(self.lambda_).clone()  # a tensor of its own, without a gradient where none is recorded

    def second(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> tuple[Float[Tensor, "batch heads tokens width"], Float[Tensor, "batch heads tokens width"]]:
        """The second queries and keys of each head."""
        q, k = (part.unflatten(2, (self.num_heads, self.head_dim)) for part in self.qk2(x).chunk(2, dim=2))
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = (q, k) if self.rope is None else (self.rope(q), self.rope(k))
        return q.transpose(1, 2), k.transpose(1, 2)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply both maps to the values, subtract, concatenate, project."""
        q, k, v = self.heads(x)
        q2, k2 = self.second(x)
        subtracted = F.scaled_dot_product_attention(q2, k2, v)
        return self.joined(F.scaled_dot_product_attention(q, k, v) - self.lam().to(subtracted.dtype) * subtracted)

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The two maps of each head, and lambda."""
        q, k = map(widened, self.heads(x)[:2])
        q2, k2 = map(widened, self.second(x))
        return AttentionMaps(softmax_map(q, k, q.dtype), softmax_map(q2, k2, q.dtype), self.lam())
