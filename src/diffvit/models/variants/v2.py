"""Differential attention V2: second queries on the same keys and values, lambda from the token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.attention import Attention, AttentionMaps, softmax_map, widened


class DifferentialAttentionV2(Attention):
    """Differential attention, V2 (microsoft/unilm, Diff-Transformer-V2), without a causal mask.

    Each head has two queries on one key and one value: ``softmax(q1 k^T) v - sigmoid(x w) softmax(q2 k^T) v``. Lambda
    is a number for each token and head; there is no norm per head. It has ``dim^2`` query weights and ``dim num_heads``
    lambda weights more than :class:`Attention`, and where lambda is 0 it computes the same.

    Args:
        dim: width of a token.
        num_heads: heads, of width ``dim / num_heads``.
        qkv_bias: bias on the projections of queries, keys and values.
        more: as :class:`Attention`.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, **more: object) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **more)  # pyright: ignore[reportArgumentType]
        self.q2 = nn.Linear(dim, dim, bias=qkv_bias)
        self.lambda_proj = nn.Linear(dim, num_heads, bias=False)

    def lambda_of(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens 1"]:
        """Lambda of each token and head, 0 to 1, in float32 or wider."""
        return widened(self.lambda_proj(x)).sigmoid().transpose(1, 2)[..., None]

    def second(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens width"]:
        """The second queries of each head."""
        q = self.q_norm(self.q2(x).unflatten(2, (self.num_heads, self.head_dim)))
        return (q if self.rope is None else self.rope(q)).transpose(1, 2)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the difference of both maps to the values, concatenate, project."""
        q, k, v = self.heads(x)
        positive, negative = softmax_map(q, k), softmax_map(self.second(x), k)
        return self.joined((positive - self.lambda_of(x).to(positive.dtype) * negative).to(v.dtype) @ v)

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The two maps of each head, and lambda."""
        q, k = map(widened, self.heads(x)[:2])
        q2 = widened(self.second(x))
        return AttentionMaps(softmax_map(q, k, q.dtype), softmax_map(q2, k, q.dtype), self.lambda_of(x))
