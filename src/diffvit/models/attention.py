"""Softmax and differential attention (they are registered in :mod:`diffvit.registry`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError, check_choice
from diffvit.models.pos_embed import Rope2d

NORMS: dict[str, type[nn.Module]] = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights of one layer, after the softmax.

    Args:
        positive: (batch, heads, query, key); rows sum to 1, or to a head's gate. float32, or float64 from such a model.
        negative: the subtracted map of differential attention, of the same shape; else None.
        lam: the weight of ``negative``, 0-dim, or (batch, heads, query, 1); else None.
    """

    positive: Float[Tensor, "batch heads query key"]
    negative: Float[Tensor, "batch heads query key"] | None = None
    lam: Float[Tensor, ...] | None = None

    @property
    def effective(self) -> Float[Tensor, "batch heads query key"]:
        """What multiplies the values, ``positive - lam * negative``: signed, each row of V1 sums to ``1 - lam``."""
        if self.negative is None or self.lam is None:
            return self.positive
        return self.positive - self.lam * self.negative


class AttentionModule(Protocol):
    """Interface of an attention module, for the encoder, the reports and the explorer."""

    num_heads: int

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same shape."""
        ...

    def maps(self, x: Tensor) -> AttentionMaps:
        """The maps that the forward pass applies to these tokens."""
        ...

    def read(self, weights: Tensor, x: Tensor) -> Tensor:
        """The layer's output where ``weights``, as effective maps, multiply the values of these tokens.

        Only attribution by the maps' gradients needs it (:mod:`diffvit.attention.attribute`).
        """
        ...


def softmax_map(
    q: Float[Tensor, "*heads query width"], k: Float[Tensor, "*heads key width"], dtype: torch.dtype | None = None
) -> Float[Tensor, "*heads query key"]:
    """``softmax(q k^T / sqrt(width))`` over the keys (arXiv 1706.03762, equation 1); ``dtype``: of the result."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1, dtype=dtype)


def widened(x: Tensor) -> Tensor:
    """float32, or wider where ``x`` is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 2010.11929, appendix A, after arXiv 1706.03762).

    Args:
        dim: width of a token.
        num_heads: heads, of width ``dim / num_heads``.
        layer_index: depth of the layer, counted from 0; softmax attention is the same in all.
        qkv_bias: bias on the query, key and value projection.
        qk_norm: norm on each head's queries and keys (arXiv 2302.05442, section 2): ``none``, ``layer`` or ``rms``.
        norm_eps: epsilon of those norms.
        rope: rotates queries and keys by their positions; None for no rotary positions.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, or there is no such norm.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        layer_index: int = 0,
        qkv_bias: bool = True,
        qk_norm: str = "none",
        norm_eps: float = 1e-6,
        rope: Rope2d | None = None,
    ) -> None:
        super().__init__()
        del layer_index
        if dim % num_heads:
            raise ConfigError("num_heads", f"{num_heads} does not divide embed_dim {dim}")
        check_choice("qk_norm", qk_norm, NORMS)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (NORMS[qk_norm](self.head_dim, eps=norm_eps) for _ in range(2))
        self.proj = nn.Linear(dim, dim)
        self.rope = rope

    def project(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> tuple[
        Float[Tensor, "batch tokens heads width"],
        Float[Tensor, "batch tokens heads width"],
        Float[Tensor, "batch tokens heads width"],
    ]:
        """Queries, keys and values of all heads, normalised and rotated where the model does so."""
        q, k, v = (part.unflatten(2, (self.num_heads, self.head_dim)) for part in self.qkv(x).chunk(3, dim=2))
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if self.rope is None else (self.rope(q), self.rope(k), v)

    def heads(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head, as :meth:`by_head` orders them."""
        return self.by_head(*self.project(x))

    def by_head(
        self,
        q: Float[Tensor, "batch queries heads width"],
        k: Float[Tensor, "batch tokens heads width"],
        v: Float[Tensor, "batch tokens heads width"],
    ) -> tuple[
        Float[Tensor, "batch heads queries width"],
        Float[Tensor, "batch heads tokens width"],
        Float[Tensor, "batch heads tokens width"],
    ]:
        """Put the head axis of :meth:`project`'s results before the token axis."""
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Self-attention: the heads' outputs are concatenated and projected."""
        q, k, v = self.heads(x)
        return self.joined(F.scaled_dot_product_attention(q, k, v))

    def joined(self, out: Float[Tensor, "batch heads queries width"]) -> Float[Tensor, "batch queries dim"]:
        """Concatenate what the heads read from their values, and project."""
        return self.proj(out.transpose(1, 2).flatten(2))

    def read(
        self, weights: Float[Tensor, "batch heads query key"], x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch query dim"]:
        """Output of the layer where ``weights`` multiply the values; it is :meth:`forward`'s with the effective map."""
        v = self.heads(x)[2]
        return self.joined(weights.to(v.dtype) @ v)

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The map of each head."""
        q, k = map(widened, self.heads(x)[:2])
        return AttentionMaps(softmax_map(q, k, q.dtype))


class PairedAttention(Attention):
    """Attention whose heads combine two maps: here their mean; a subclass says otherwise, in :meth:`combined`.

    Heads 2i and 2i + 1 of the softmax baseline share one value, twice as wide: it has the baseline's parameters.
    Arguments as :class:`Attention`.

    Raises:
        ConfigError: ``num_heads`` is odd or does not divide ``dim``, or there is no such norm.
    """

    def __init__(self, dim: int, num_heads: int, **more: object) -> None:
        super().__init__(dim, num_heads, **more)  # pyright: ignore[reportArgumentType]
        if num_heads % 2:
            why = f"{num_heads} is odd: differential attention subtracts heads in pairs, so it needs an even number"
            raise ConfigError("num_heads", why)

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """The maps of each head from the tokens and their queries and keys, as :meth:`by_head` orders these."""
        del x
        return AttentionMaps(softmax_map(q, k, dtype).mean(dim=2))

    def by_head(
        self,
        q: Float[Tensor, "batch queries heads width"],
        k: Float[Tensor, "batch tokens heads width"],
        v: Float[Tensor, "batch tokens heads width"],
    ) -> tuple[
        Float[Tensor, "batch pairs 2 queries width"],
        Float[Tensor, "batch pairs 2 tokens width"],
        Float[Tensor, "batch pairs tokens double_width"],
    ]:
        """Two queries and two keys of each head, and its value."""
        q, k = (part.unflatten(2, (-1, 2)).permute(0, 2, 3, 1, 4) for part in (q, k))
        return q, k, v.unflatten(2, (-1, 2)).flatten(3).transpose(1, 2)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply each head's effective map to its values, concatenate, project."""
        q, k, v = self.heads(x)
        return self.joined(self.combined(x, q, k).effective.to(v.dtype) @ v)

    def maps(self, x: Float[Tensor, "batch tokens dim"]) -> AttentionMaps:
        """The maps of each head, and the weight of the second."""
        q, k = map(widened, self.heads(x)[:2])
        return self.combined(x, q, k, q.dtype)


def published_lambda_init(layer_index: int) -> float:
    """Lambda's initial value in a layer counted from 0: 0.2, 0.356, 0.471, ... (arXiv 2410.05258, section 2.1)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer_index)


class DifferentialAttention(PairedAttention):
    """Multi-head differential attention, V1 (arXiv 2410.05258, equations 1 to 3).

    Heads 2i and 2i + 1 of the softmax baseline are the two query/key pairs of differential head i, whose value has
    twice their width. So it has the baseline's parameters, plus four lambda vectors and one norm.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline, of width ``dim / num_heads``; even.
        layer_index: depth of the layer, counted from 0.
        lambda_init: lambda's constant, near which it starts; by default :func:`published_lambda_init` of the layer.
        more: as :class:`Attention`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer_index: int, lambda_init: float | None = None, **more: object
    ) -> None:
        super().__init__(dim, num_heads, **more)
        self.lambda_init = published_lambda_init(layer_index) if lambda_init is None else lambda_init
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim))
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, std=0.1)
        self.sub_norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)

    def lam(self) -> Float[Tensor, ""]:
        """Lambda (equation 2), one scalar for the layer's heads, in float32 or wider."""
        q1, k1, q2, k2 = map(widened, (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_init

    def combined(self, x: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype | None = None) -> AttentionMaps:
        """The difference of two maps (equation 1)."""
        del x
        positive, negative = softmax_map(q, k, dtype).unbind(2)
        return AttentionMaps(positive, negative, self.lam().to(positive.dtype))

    def joined(self, out: Float[Tensor, "batch pairs queries double_width"]) -> Float[Tensor, "batch queries dim"]:
        """Normalise what each head reads from its values, concatenate, and project (equation 3)."""
        return super().joined(self.sub_norm(out.to(self.sub_norm.weight.dtype)) * (1.0 - self.lambda_init))
