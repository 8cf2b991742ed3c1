"""Attention rollout: the attention of the pooled token to each input patch, through all layers.

After arXiv 2005.00928, section 3: fuse the heads, mix with the identity for the residual branch, normalise the rows,
and multiply from the first layer up. It follows attention and the identity alone, not the values, MLPs and norms.

Differential maps are signed, and no reference says how to roll them out. Four ways, which agree where lambda is 0:

===========  ===================================================================================================
``clamp``    the positive part of each head's map. The default: non-negative, rows sum to 1. It does not show
             what a head subtracts.
``positive``  the first map alone, A1: plain rollout as if nothing were subtracted. Beside ``clamp`` it shows what the
             subtraction changes.
``abs``      the map's absolute value. It does not tell adding from subtracting.
``signed``   the map as it is, rows not normalised: the linear part followed exactly. A row sums to
             ``residual + (1 - residual) (1 - lambda)`` per layer, so compare within an image, not between models;
             heads can only be averaged, and nothing can be discarded, for a lowest share has no meaning there.
===========  ===================================================================================================
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffvit.attention.capture import Record
from diffvit.errors import ConfigError, suggestion
from diffvit.models.attention import AttentionMaps

FUSIONS = ("mean", "max", "min")
SIGNS = ("clamp", "positive", "abs", "signed")


def rollout(
    record: Record,
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    residual: float = 0.5,
    start: int | None = None,
    sign: str = "clamp",
) -> Float[Tensor, "batch rows columns"]:
    """The attention of the pooled token to each input patch through all layers, as (batch, rows, columns).

    The row of [CLS], or the mean over the patches' rows, without the tokens before the patches.

    Args:
        record: of consecutive layers.
        fusion: how heads become one map: ``mean``, ``max`` or ``min``.
        discard: share of each row's patch entries, the lowest, that are set to 0; from 0 to below 1.
        residual: weight of the identity, from 0 to below 1.
        start: the first block to follow; by default the record's first.
        sign: what a differential map stands for, see the module; of no effect for softmax attention.

    Raises:
        ConfigError: an unknown word, a number out of range, layers that are not consecutive, or a combination without
            a meaning.
    """
    matrix = rollout_matrix(record, fusion=fusion, discard=discard, residual=residual, start=start, sign=sign)
    return record.on_grid(record.pooled(matrix)[..., record.prefix :])


def rollout_matrix(
    record: Record,
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    residual: float = 0.5,
    start: int | None = None,
    sign: str = "clamp",
) -> Float[Tensor, "batch top bottom"]:
    """The whole product, (batch, token at the top, token at the bottom); arguments and errors as :func:`rollout`."""
    _check(fusion, discard, residual, sign, record.differential)
    product: Tensor | None = None
    for maps in record.layers[_first(record, start) :]:
        fused = _discard(_fuse(_heads(maps, sign), fusion), discard, record.prefix)
        identity = torch.eye(fused.shape[-1], dtype=fused.dtype)
        step = residual * identity + (1 - residual) * fused
        if sign != "signed":
            total = step.sum(dim=-1, keepdim=True)
            step = step / torch.where(total > 0, total, 1.0)
        product = step if product is None else step @ product
    assert product is not None
    return product


def _heads(maps: AttentionMaps, sign: str) -> Tensor:
    if sign == "positive":
        return maps.positive
    if sign == "clamp":
        return maps.effective.clamp_min(0)
    return maps.effective.abs() if sign == "abs" else maps.effective


def _fuse(heads: Tensor, fusion: str) -> Tensor:
    if fusion == "mean":
        return heads.mean(dim=1)
    return heads.amax(dim=1) if fusion == "max" else heads.amin(dim=1)


def _discard(fused: Tensor, share: float, prefix: int) -> Tensor:
    """Each row without its lowest entries; those of [CLS] and registers stay, whatever they are."""
    patches = fused[..., prefix:]
    count = int(share * patches.shape[-1])
    if not count:
        return fused
    lowest = patches.topk(count, dim=-1, largest=False).indices
    return torch.cat([fused[..., :prefix], patches.scatter(-1, lowest, 0.0)], dim=-1)


def _first(record: Record, start: int | None) -> int:
    """Index of the first layer to follow."""
    blocks = record.blocks
    if blocks != list(range(blocks[0], blocks[-1] + 1)):
        raise ConfigError("rollout", f"needs consecutive layers (found {', '.join(map(str, blocks))})")
    if start is None:
        return 0
    if start not in blocks:
        raise ConfigError("rollout start", f"no such layer (found {start} vs {blocks[0]} to {blocks[-1]})")
    return blocks.index(start)


def _check(fusion: str, discard: float, residual: float, sign: str, differential: bool) -> None:
    for what, found, allowed in (("fusion", fusion, FUSIONS), ("sign", sign, SIGNS)):
        if found not in allowed:
            why = f"no such {what} of rollout (found {found!r} vs {', '.join(allowed)})"
            raise ConfigError(what, why, suggestion(found, allowed))
    for what, found in (("discard", discard), ("residual", residual)):
        if not 0 <= found < 1:
            raise ConfigError(what, f"must be from 0 to below 1 (found {found:g})")
    if differential and sign == "signed" and (fusion != "mean" or discard):
        found = f"fusion {fusion}, discard {discard:g}"
        raise ConfigError("sign signed", f"goes with fusion mean and discard 0 alone (found {found})")
