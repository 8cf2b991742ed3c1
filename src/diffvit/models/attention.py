"""Softmax self-attention: an explicit path, which writes the maps out, and fused ones, torch's and our own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.models import few_queries, native_core
from diffvit.models.linear import linear
from diffvit.models.rope import Rope2d


@dataclass(frozen=True)
class AttentionMaps:
    """Which tokens (keys) each token (query) of one layer reads, after the softmax.

    Args:
        positive: (batch, heads, query, key); rows sum to 1. float32, or float64 from a float64 model.
        negative: the subtracted maps of differential attention, of the same shape; else None.
        lam: 0-dim, the weight of ``negative``; else None.
    """

    positive: Float[Tensor, "batch heads query key"]
    negative: Float[Tensor, "batch heads query key"] | None = None
    lam: Float[Tensor, ""] | None = None

    @property
    def effective(self) -> Float[Tensor, "batch heads query key"]:
        """``positive - lam * negative``, what multiplies the values: signed, each row sums to ``1 - lam``."""
        if self.negative is None or self.lam is None:
            return self.positive
        return self.positive - self.lam * self.negative


_LONG = 128  # tokens, from which on the fused kernel wins in float32 on a CPU


def explicit_is_faster(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Whether writing the map out beats torch's fused kernel for queries of this dtype and so many keys.

    On a CPU it does in half precision, whose fused backward pass is slow, and in float32 for short sequences: a whole
    training step of a small ViT (65 tokens) takes 0.95 of the time. ``diffvit bench attention`` has the layer alone,
    for every way, number of tokens and width (reports/speed).
    """
    return device.type == "cpu" and (dtype in (torch.bfloat16, torch.float16) or tokens < _LONG)


def project(
    qkv: nn.Linear, x: Float[Tensor, "batch tokens dim"], queries: int | None, rope: Rope2d | None
) -> tuple[Float[Tensor, "batch read dim"], Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
    """Queries, keys and values of all heads; with ``queries``, only the first so many tokens ask."""
    if queries is None:
        q, k, v = qkv(x).chunk(3, dim=2)
    else:
        dim = x.shape[2]
        q_bias, kv_bias = (None, None) if qkv.bias is None else (qkv.bias[:dim], qkv.bias[dim:])
        k, v = F.linear(x, qkv.weight[dim:], kv_bias).chunk(2, dim=2)
        q = F.linear(x[:, :queries], qkv.weight[:dim], q_bias)
    return (q, k, v) if rope is None else (rope(q), rope(k), v)


def softmax_map(
    q: Float[Tensor, "batch heads query width"], k: Float[Tensor, "batch heads key width"]
) -> Float[Tensor, "heads_of_all_images query key"]:
    """``softmax(q k^T / sqrt(width))`` over the keys, images and heads in one leading dimension (batch * heads).

    The scale is a factor of the product itself: multiplying q first costs 8% of the whole attention on a CPU.
    """
    nothing = q.new_zeros(())  # the summand that beta=0 leaves out
    scores = torch.baddbmm(nothing, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(dim=-1)


def maps_of(
    q: Float[Tensor, "batch heads query width"], k: Float[Tensor, "batch heads key width"]
) -> Float[Tensor, "batch heads query key"]:
    """:func:`softmax_map` to look at: in float32 or wider whatever autocast says, heads apart from images."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return softmax_map(q.to(wide), k.to(wide)).unflatten(0, q.shape[:2])


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 2010.11929, appendix A, after arXiv 1706.03762).

    Args:
        dim: width of a token.
        num_heads: heads, of width ``dim / num_heads``.
        qkv_bias: bias on the query, key and value projection.
        rope: turns queries and keys by their positions, before the product; None for no rotary positions.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, rope: Rope2d | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError("num_heads", f"{num_heads} does not divide embed_dim {dim}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rope = rope

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """Attend by whichever way is fastest here; with ``queries``, only the first so many tokens ask.

        Few queries need no keys and values (:mod:`diffvit.models.few_queries`); in bfloat16 on a CPU compiled kernels
        do it where there are some (:mod:`diffvit.models.native_core`).
        """
        if queries is not None and self.rope is None and few_queries.pays(x, queries, self.num_heads):
            x = few_queries.in_working_type(x)
            maps = few_queries.maps_of_few(self.qkv, x, queries, self.num_heads)
            return self.proj(few_queries.read_by_few(self.qkv, x, maps).flatten(2))
        turn = None if self.rope is None else self.rope.turn
        if queries is None and native_core.pays(x, self.head_dim, turn):
            return linear(self.proj, native_core.softmax(linear(self.qkv, x), self.num_heads, turn))
        return self._by_heads(x, queries)

    def attend(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """The output of :meth:`forward` by the explicit path, whatever the device."""
        return self._explicit(*self._heads(x, queries))

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The maps of the explicit path."""
        q, k, _ = self._heads(x)
        return AttentionMaps(maps_of(q, k))

    def _by_heads(self, x: Tensor, queries: int | None) -> Tensor:
        """The explicit path or torch's fused kernel."""
        q, k, v = self._heads(x, queries)
        if explicit_is_faster(q.device, q.dtype, k.shape[2]):
            return self._explicit(q, k, v)
        return self._merge(F.scaled_dot_product_attention(q, k, v))

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (batch, heads, tokens, head_dim) each."""
        parts = project(self.qkv, x, queries, self.rope)
        q, k, v = (part.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        return q, k, v

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        read = torch.bmm(softmax_map(q, k), v.flatten(0, 1))
        return self._merge(read.unflatten(0, q.shape[:2]))

    def _merge(self, heads: Tensor) -> Tensor:
        return self.proj(heads.transpose(1, 2).flatten(2))
