"""Attention for few queries, as in the last block, where [CLS] alone asks: no token's key or value is ever made.

With one query ``(q W_k) x^T`` is the same as ``q (x W_k)^T``, and ``(map x) W_v`` the same as ``map (x W_v)``: two
products with every token, each as wide as the heads are many, in place of two that are as wide as the model. The keys'
bias adds the same to all of a query's scores, which the softmax takes away again; the values' bias comes through as it
is, times the sum of the map's row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def pays(x: Tensor, queries: int | None, num_heads: int) -> bool:
    """Whether this takes fewer operations than keys and values for all tokens."""
    tokens, dim = x.shape[1:]
    return queries is not None and queries * (dim + num_heads * tokens) < tokens * dim


def in_working_type(x: Tensor) -> Tensor:
    """What autocast would make of ``x`` in each product that reads it, made once."""
    kind = x.device.type
    # "meta" has no autocast to ask about. torch.amp.is_autocast_available would say so, but the compiler of torch 2.11
    # cannot read it.
    casts = kind != "meta" and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if casts and x.dtype == torch.float32 else x


def maps_of_few(
    qkv: nn.Linear, x: Float[Tensor, "batch tokens dim"], queries: int, num_heads: int
) -> Float[Tensor, "batch heads query tokens"]:
    """``softmax(q k^T / sqrt(dim / num_heads))`` per head for the first ``queries`` tokens."""
    dim = x.shape[2]
    q = F.linear(x[:, :queries], qkv.weight[:dim], None if qkv.bias is None else qkv.bias[:dim])
    of_heads = q.unflatten(2, (num_heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)
    asked = torch.bmm(of_heads, qkv.weight[dim : 2 * dim].unflatten(0, (num_heads, -1)))
    asked = asked.unflatten(1, (-1, queries)).transpose(0, 1).flatten(1, 2)  # (batch, heads * queries, dim)
    nothing = asked.new_zeros(())  # the summand that beta=0 leaves out
    scores = torch.baddbmm(nothing, asked, x.mT, beta=0, alpha=(dim // num_heads) ** -0.5)
    return scores.softmax(dim=-1).unflatten(1, (num_heads, queries))


def read_by_few(
    qkv: nn.Linear,
    x: Float[Tensor, "batch tokens dim"],
    maps: Float[Tensor, "batch heads query tokens"],
    row_sum: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch query heads width"]:
    """``maps`` times the values of as many heads, whose rows sum to ``row_sum``."""
    dim, heads, queries = x.shape[2], *maps.shape[1:3]
    read = torch.bmm(maps.flatten(1, 2), x).unflatten(1, (heads, queries))
    values = qkv.weight[2 * dim :].unflatten(0, (heads, -1))
    of_heads = torch.bmm(read.transpose(0, 1).flatten(1, 2), values.mT)
    found = of_heads.unflatten(1, (-1, queries)).permute(1, 2, 0, 3)
    if qkv.bias is None:
        return found
    return found + (qkv.bias[2 * dim :] * row_sum).to(found.dtype).unflatten(0, (heads, -1))
