"""Statistics of a model: entropy, distance and shares of each head's attention, and similarity of its positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.attention.capture import Record, capture, own
from diffvit.attention.inputs import labelled_images, load_model
from diffvit.files import Row
from diffvit.models import pos_embed
from diffvit.models.pos_embed import Rope2d
from diffvit.models.vit import VisionTransformer
from diffvit.training.run_dir import RunDir

_IMAGES = 200  # of a study


@dataclass(frozen=True)
class HeadStatistics:
    """One head of one layer, averaged over images and query patches.

    The weights of differential attention are taken as ``|A1 - lambda A2|``.

    Args:
        block: the layer, counted from 0.
        head: counted from 0.
        entropy: nats, of a query's weights made to sum to 1: ln(tokens) for uniform attention, 0 for a single key.
        distance: mean distance between query and key patch, in patches (arXiv 2010.11929, section 4.5); [CLS] and
            registers left out.
        prefix_share: share of the weight on the tokens before the patches ([CLS], registers).
        negative_share: share of the weight that is negative; 0 for softmax attention.
        lam: lambda of the layer; None for softmax attention, and where each token has its own.
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
        queries = maps.effective[:, :, record.prefix :]  # of the patches
        weight = queries.abs()
        shares = weight / weight.sum(dim=-1, keepdim=True)
        patches = weight[..., record.prefix :]
        reach = (patches * apart.to(patches.dtype)).sum(dim=-1) / patches.sum(dim=-1)
        numbers = {
            "entropy": _entropy(shares),
            "distance": reach,
            "prefix_share": shares[..., : record.prefix].sum(dim=-1),
            "negative_share": (shares * (queries < 0)).sum(dim=-1),
        }
        if maps.negative is not None:
            for name, each in (("positive", maps.positive), ("negative", maps.negative)):
                size = each[:, :, record.prefix :].abs()
                numbers[f"entropy_{name}"] = _entropy(size / size.sum(dim=-1, keepdim=True))
        lam = None if maps.lam is None or maps.lam.ndim else float(maps.lam)
        per_head = {name: values.mean(dim=(0, 2)).tolist() for name, values in numbers.items()}
        for head in range(weight.shape[1]):
            found.append(HeadStatistics(block, head, lam=lam, **{name: v[head] for name, v in per_head.items()}))
    return found


def averaged(parts: Sequence[Sequence[HeadStatistics]]) -> list[HeadStatistics]:
    """The mean of statistics over several records of one model, each with the same weight."""
    names = [each.name for each in fields(HeadStatistics) if each.name not in ("block", "head")]
    found = []
    for same in zip(*parts, strict=True):
        columns = {name: [getattr(each, name) for each in same] for name in names}
        means = {name: None if None in column else sum(column) / len(column) for name, column in columns.items()}
        found.append(HeadStatistics(same[0].block, same[0].head, **means))  # pyright: ignore[reportArgumentType]
    return found


def distances(grid: tuple[int, int]) -> Float[Tensor, "patches patches"]:
    """Distance between each pair of patches, in patches; patches row by row of the grid."""
    down, across = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    places = torch.stack([down.flatten(), across.flatten()], dim=1)
    return (places[:, None] - places[None]).norm(dim=2)


def _entropy(shares: Float[Tensor, "*lead keys"]) -> Float[Tensor, "*lead"]:
    return torch.special.entr(shares).sum(dim=-1)


@torch.no_grad()
def position_similarity(model: nn.Module) -> dict[str, Float[Tensor, "rows cols rows cols"]]:
    """Similarity of the positions of each pair of patches, by kind of position; empty where none are known.

    ``added``: cosine of the two patches' embeddings (arXiv 2010.11929, figure 7). ``rotary``: mean cosine of the angle
    between them over a head's planes, which is what the rotation leaves of the product of two equal vectors.
    """
    if not isinstance(model, VisionTransformer):
        return {}
    grid, found = model.patch_embed.grid, {}
    patches = grid[0] * grid[1]
    table = pos_embed.table(model)
    if table is not None:
        table = pos_embed.resample(table, model.grid, grid)
        rows = F.normalize(table[0, -patches:].float(), dim=1)
        found["added"] = (rows @ rows.mT).unflatten(1, grid).unflatten(0, grid)
    rope = next((module for module in model.modules() if isinstance(module, Rope2d)), None)
    if rope is not None:
        angles = rope.angles[-patches:].float()
        found["rotary"] = (angles[:, None] - angles[None]).cos().mean(dim=2).unflatten(1, grid).unflatten(0, grid)
    return {name: similarity.cpu() for name, similarity in found.items()}


def block_statistics(
    model: VisionTransformer, images: Float[Tensor, "n chans height width"], labels: Int64[Tensor, " n"]
) -> list[Row]:
    """What each block's attention does and learns, a row for each block, over these normalised images.

    ``entropy``, ``entropy_positive``, ``entropy_negative``: means over the heads of :class:`HeadStatistics`. Of two
    maps, over the patches as queries: ``overlap``, the mass that both put on the same keys (0 to 1, weights made to sum
    to 1); ``angle`` between them as vectors over the keys (degrees). ``lam``: the weight of the second. ``rank_head``
    and ``rank_layer``: effective rank (Roy and Vetterli 2007, "The effective rank", equation 4) of what a head, and all
    heads together, give for the tokens of an image. ``gradient`` and ``gradient_mlp``: norm of the mean cross-entropy's
    gradient in the parameters of the attention and of the MLP. None for what there is not.
    """
    model = copy.deepcopy(model).requires_grad_(True)  # the caller's keeps its hooks and its gradients
    blocks: list[Any] = list(model.blocks)
    given: dict[int, Tensor] = {}
    hooks = [
        block.attn.proj.register_forward_pre_hook(lambda _, inputs, at=at: given.update({at: inputs[0].detach()}))
        for at, block in enumerate(blocks)
    ]
    loss = F.cross_entropy(model(images).float(), labels)
    for hook in hooks:  # what follows runs the model again, on parts of the images
        hook.remove()
    record = capture(model, images)
    heads: dict[int, list[HeadStatistics]] = {}
    for each in head_statistics(record):
        heads.setdefault(each.block, []).append(each)
    rows: list[Row] = []
    for at, block in enumerate(blocks):
        maps, mine = record.layers[at], heads[at]
        row: Row = {"block": at, **dict.fromkeys(("overlap", "angle"))}
        if maps.negative is not None:
            first, second = maps.positive[:, :, record.prefix :], maps.negative[:, :, record.prefix :]
            shares = [each.abs() / each.abs().sum(dim=-1, keepdim=True) for each in (first, second)]
            row["overlap"] = float(torch.minimum(*shares).sum(dim=-1).mean())
            cosine = F.cosine_similarity(first.double(), second.double(), dim=-1).clamp(-1, 1)
            row["angle"] = float(cosine.arccos().rad2deg().mean())
        for name in ("entropy", "entropy_positive", "entropy_negative"):
            values = [getattr(each, name) for each in mine]
            row[name] = None if None in values else sum(values) / len(values)
        row["lam"] = None if maps.lam is None else float(maps.lam.mean())
        read = given[at].double()
        row["rank_head"] = float(_effective_rank(read.unflatten(2, (len(mine), -1)).transpose(1, 2)).mean())
        row["rank_layer"] = float(_effective_rank(read).mean())
        for name, part in (("gradient", block.attn), ("gradient_mlp", block.mlp)):
            slopes = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
            row[name] = float(torch.stack([slope.norm() for slope in slopes]).norm())
        rows.append(row)
    return rows


def _effective_rank(matrices: Float[Tensor, "*lead rows columns"]) -> Float[Tensor, "*lead"]:
    sizes = torch.linalg.svdvals(matrices)
    return _entropy(sizes / sizes.sum(dim=-1, keepdim=True)).exp()


def maps_scores(run: RunDir) -> dict[str, Any]:
    """What a study with ``score: maps`` measures: the table ``blocks``, and the means over the blocks.

    It is :func:`block_statistics` over 200 test images.

    Raises:
        InputError: the data is missing or damaged.
    """
    model = load_model(run.path)
    images = labelled_images(model)
    chosen = images.select(range(min(_IMAGES, len(images))))
    device = next(model.model.parameters()).device
    pixels, labels = model.normalised(chosen.pixels).to(device), chosen.labels.long().to(device)
    rows = block_statistics(own(model.model), pixels, labels)
    names = [name for name in rows[0] if name != "block" and rows[0][name] is not None]
    return {**{name: sum(row[name] for row in rows) / len(rows) for name in names}, "blocks": rows}
