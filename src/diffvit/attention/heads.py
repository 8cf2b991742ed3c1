"""What each head does, in four numbers, averaged over images and over the patches that ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from diffvit.attention.capture import Record


@dataclass(frozen=True)
class HeadStatistics:
    """One head of one layer; for differential attention a map's weight is its size, ``|A1 - lambda A2|``.

    Args:
        block: the layer, counted from 0.
        head: counted from 0.
        entropy: nats, of the row's weights made to sum to 1; ln(tokens) where a head reads all alike, 0 where one.
        distance: mean distance between the patch that asks and those it reads, in patches (arXiv 2010.11929, section
            4.5), tokens before the patches left out.
        prefix_share: share of the weight on the tokens before the patches ([CLS], registers).
        negative_share: share of the weight that is negative; 0 for softmax attention.
        lam: lambda of the layer; None for softmax attention.
        entropy_positive: of A1 alone, of differential attention; else None.
        entropy_negative: of A2 alone, likewise.
    """

    block: int
    head: int
    entropy: float
    distance: float
    prefix_share: float
    negative_share: float
    lam: float | None = None
    entropy_positive: float | None = None
    entropy_negative: float | None = None


def head_statistics(record: Record) -> list[HeadStatistics]:
    """Every captured layer's heads, layer by layer."""
    apart = distances(record.grid)
    found = []
    for block, maps in zip(record.blocks, record.layers, strict=True):
        asked = maps.effective[:, :, record.prefix :]  # rows of the patches
        weight = asked.abs()
        shares = weight / weight.sum(dim=-1, keepdim=True)
        patches = weight[..., record.prefix :]
        reach = (patches * apart.to(patches.dtype)).sum(dim=-1) / patches.sum(dim=-1)
        numbers = {
            "entropy": _entropy(shares),
            "distance": reach,
            "prefix_share": shares[..., : record.prefix].sum(dim=-1),
            "negative_share": (shares * (asked < 0)).sum(dim=-1),
        }
        if maps.negative is not None:
            numbers["entropy_positive"] = _entropy(maps.positive[:, :, record.prefix :])
            numbers["entropy_negative"] = _entropy(maps.negative[:, :, record.prefix :])
        lam = None if maps.lam is None else float(maps.lam)
        per_head = {name: values.mean(dim=(0, 2)).tolist() for name, values in numbers.items()}
        for head in range(weight.shape[1]):
            found.append(HeadStatistics(block, head, lam=lam, **{name: v[head] for name, v in per_head.items()}))
    return found


def averaged(parts: Sequence[Sequence[HeadStatistics]]) -> list[HeadStatistics]:
    """The mean of statistics of several records of one model, each weighing the same."""
    names = [each.name for each in fields(HeadStatistics) if each.name not in ("block", "head")]
    found = []
    for same in zip(*parts, strict=True):
        columns = {name: [getattr(each, name) for each in same] for name in names}
        means = {name: None if None in column else sum(column) / len(column) for name, column in columns.items()}
        found.append(HeadStatistics(same[0].block, same[0].head, **means))  # pyright: ignore[reportArgumentType]
    return found


def distances(grid: tuple[int, int]) -> Float[Tensor, "patches patches"]:
    """How far apart patches stand, in patches, row by row of the grid."""
    down, across = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    places = torch.stack([down.flatten(), across.flatten()], dim=1)
    return (places[:, None] - places[None]).norm(dim=2)


def _entropy(shares: Float[Tensor, "*lead keys"]) -> Float[Tensor, "*lead"]:
    return torch.special.entr(shares).sum(dim=-1)
