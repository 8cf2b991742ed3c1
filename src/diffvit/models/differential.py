"""Differential attention, V1 (arXiv 2410.05258): the difference of two softmax maps, normalised per head."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.models import few_queries, native_core
from diffvit.models.attention import AttentionMaps, maps_of, project, softmax_map
from diffvit.models.differential_core import DifferentialCore, pays
from diffvit.models.linear import linear
from diffvit.models.rope import Rope2d


def lambda_init(layer_index: int) -> float:
    """Where lambda starts in a layer counted from 0: 0.2, 0.356, 0.471, ... towards 0.8 (section 2.1)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer_index)


class DifferentialAttention(nn.Module):
    """Multi-head differential attention (arXiv 2410.05258, equations 1 to 3).

    ``num_heads`` counts the heads of the softmax baseline; adjacent ones, 2i and 2i + 1, form the two query/key pairs
    of differential head i, whose value has twice their width. So it has the baseline's parameters, plus four lambda
    vectors and one norm.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline, of width ``dim / num_heads``; even.
        layer_index: depth of the layer, counted from 0; it sets ``lambda_init``.
        qkv_bias: bias on the query, key and value projection.
        rope: turns queries and keys by their positions, before the product; None for no rotary positions.

    Raises:
        ConfigError: ``num_heads`` is odd or does not divide ``dim``.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer_index: int, qkv_bias: bool = True, rope: Rope2d | None = None
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError("num_heads", f"{num_heads} does not divide embed_dim {dim}")
        if num_heads % 2:
            why = f"{num_heads} is odd: differential attention subtracts heads in pairs, so it needs an even number"
            raise ConfigError("num_heads", why)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.lambda_init = lambda_init(layer_index)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim))
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, std=0.1)
        self.sub_norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)
        self.rope = rope

    def lam(self) -> Float[Tensor, ""]:
        """Lambda, one scalar for the layer's heads (equation 2), in float32 or wider whatever autocast says."""
        vectors = (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        q1, k1, q2, k2 = (vector.to(torch.promote_types(vector.dtype, torch.float32)) for vector in vectors)
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_init

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """Attend with one value product, by the combined map; with ``queries``, only the first so many tokens ask.

        As :meth:`attend`, with the elementwise steps where they are cheap. Few queries need no keys and values
        (:mod:`diffvit.models.few_queries`); in bfloat16 on a CPU compiled kernels do it
        (:mod:`diffvit.models.native_core`), or, where there are none, the gradient is written out
        (:class:`DifferentialCore`).
        """
        turn = None if self.rope is None else self.rope.turn
        if queries is None and native_core.pays(x, self.head_dim, turn):
            normed = native_core.differential(linear(self.qkv, x), self.num_heads, self.lam(), self._eps, turn)
        elif queries is None and pays(x):
            q, k, v = project(self.qkv, x, None, self.rope)
            normed = DifferentialCore.apply(q, k, v, self.lam(), self.num_heads, self._eps)
        else:
            normed = self._normed(self._read(x, queries))
        # The norm's weight and the constant act on what proj reads: put into its columns, they cost dim^2, once.
        columns = self.sub_norm.weight.repeat(self.num_heads // 2) * (1.0 - self.lambda_init)
        return linear(self.proj, normed, self.proj.weight * columns)

    def attend(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """The output of :meth:`forward` as the paper writes it, step by step."""
        (q1, q2), (k1, k2), v = self._heads(x, queries)
        positive, negative = softmax_map(q1, k1), softmax_map(q2, k2)
        combined = positive - self.lam().to(positive.dtype) * negative
        heads = (combined @ v.flatten(0, 1)).unflatten(0, v.shape[:2])
        heads = self.sub_norm(heads.to(self.sub_norm.weight.dtype)) * (1.0 - self.lambda_init)
        return self.proj(heads.transpose(1, 2).flatten(2))

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The two maps of each differential head, and lambda."""
        (q1, q2), (k1, k2), _ = self._heads(x)
        return AttentionMaps(maps_of(q1, k1), maps_of(q2, k2), self.lam())

    def _read(self, x: Tensor, queries: int | None) -> Float[Tensor, "batch query pairs width"]:
        """The values by the combined map."""
        if queries is not None and self.rope is None and few_queries.pays(x, queries, self.num_heads):
            x = few_queries.in_working_type(x)
            maps = few_queries.maps_of_few(self.qkv, x, queries, self.num_heads)
            lam = self.lam()
            combined = torch.addcmul(maps[:, 0::2], maps[:, 1::2], -lam.to(maps.dtype))
            return few_queries.read_by_few(self.qkv, x, combined, row_sum=1.0 - lam)
        (q1, q2), (k1, k2), v = self._heads(x, queries)
        positive, negative = softmax_map(q1, k1), softmax_map(q2, k2)
        combined = torch.addcmul(positive, negative, -self.lam().to(positive.dtype))
        return torch.bmm(combined, v.flatten(0, 1)).unflatten(0, v.shape[:2]).transpose(1, 2)

    def _normed(self, read: Float[Tensor, "batch query pairs width"]) -> Float[Tensor, "batch query dim"]:
        """The heads' outputs over their root mean square, side by side."""
        wide = torch.promote_types(read.dtype, torch.float32)
        length = torch.linalg.vector_norm(read, dim=-1, keepdim=True, dtype=wide)
        scale = (length.square() / (2 * self.head_dim) + self._eps).rsqrt().to(read.dtype)
        return (read * scale).flatten(2)

    @property
    def _eps(self) -> float:
        return self.sub_norm.eps or 0.0

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Two queries and two keys (batch, num_heads / 2, tokens, head_dim), and a value twice as wide."""
        q, k, v = project(self.qkv, x, queries, self.rope)
        pairs = (self.num_heads // 2, 2, self.head_dim)
        q = q.unflatten(2, pairs).permute(3, 0, 2, 1, 4)
        k = k.unflatten(2, pairs).permute(3, 0, 2, 1, 4)
        v = v.unflatten(2, (self.num_heads // 2, 2 * self.head_dim)).transpose(1, 2)
        return q.unbind(0), k.unbind(0), v
