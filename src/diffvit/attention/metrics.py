"""Scores of saliency maps: against the object's true mask, and by removing the patches they mark.

A saliency map is (n, rows, columns), one number per patch, of any scale; the mass of a signed map is its positive part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.training.score import evaluating

HIT = 0.5  # share of a patch that the object must cover for a pointer at it to hit
STEPS = 16  # into which deletion and insertion divide an image
# The eight neighbours of a pixel, rows down and columns across, with their weights in ROAD's imputation.
_NEIGHBOURS = [(*step, 1 / 12 if all(step) else 1 / 6) for step in product((-1, 0, 1), repeat=2) if any(step)]


def coverage(
    masks: Bool[Tensor, "n height width"] | Float[Tensor, "n height width"], grid: tuple[int, int]
) -> Float[Tensor, "n rows columns"]:
    """Share of each patch that the object covers: masks (n, height, width) to (n, rows, columns); of values, means."""
    rows, columns = grid
    tall, wide = masks.shape[1] // rows, masks.shape[2] // columns
    return masks.float().unflatten(2, (columns, wide)).unflatten(1, (rows, tall)).mean(dim=(2, 4))


def pointing_game(
    saliency: Float[Tensor, "n rows columns"], cover: Float[Tensor, "n rows columns"]
) -> Float[Tensor, " n"]:
    """Whether the map's highest patch lies on the object: (n,), 1 or 0.

    After the pointing game of Zhang et al. 2016 (arXiv 1608.00507, section 5.1), by patch: a hit is a patch at least
    half of which the object covers. Where several patches share the maximum, the share of them that hit.
    """
    flat = saliency.flatten(1)
    top = flat == flat.amax(dim=1, keepdim=True)
    return ((cover.flatten(1) >= HIT) & top).sum(dim=1) / top.sum(dim=1)


def mass_on_object(
    saliency: Float[Tensor, "n rows columns"], cover: Float[Tensor, "n rows columns"]
) -> Float[Tensor, " n"]:
    """Share of the positive mass that falls on the object: (n,), 0 to 1; 0 where there is no mass.

    A patch's mass is taken as spread evenly over it. A uniform map scores the object's share of the image.
    """
    mass = saliency.clamp_min(0).flatten(1)
    return (mass * cover.flatten(1)).sum(dim=1) / mass.sum(dim=1).clamp_min(torch.finfo(mass.dtype).tiny)


def mass_mask(saliency: Float[Tensor, "*lead rows columns"], share: float) -> Bool[Tensor, "*lead rows columns"]:
    """The fewest patches that together hold at least ``share`` of the positive mass: bool, of the map's shape.

    DINO's way to draw a map (arXiv 2104.14294, figure 3, with 0.6). Leading dimensions may be any.

    Raises:
        ConfigError: ``share`` is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise ConfigError("mass", f"must be above 0 and at most 1 (found {share:g})")
    mass = saliency.clamp_min(0).flatten(-2).double()
    ordered, order = mass.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered  # mass of the patches that come first
    wanted = (before < share * ordered.sum(dim=-1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(wanted).scatter(-1, order, wanted).unflatten(-1, saliency.shape[-2:])


def overlap(
    saliency: Float[Tensor, "n rows columns"], cover: Float[Tensor, "n rows columns"], share: float = 0.5
) -> Float[Tensor, " n"]:
    """Intersection over union of :func:`mass_mask` and the object, counted in pixels: (n,), 0 to 1."""
    kept = mass_mask(saliency, share).flatten(1).float()
    cover = cover.flatten(1)
    both = (kept * cover).sum(dim=1)
    return both / (kept.sum(dim=1) + cover.sum(dim=1) - both)


def roc_auc(saliency: Float[Tensor, "n rows columns"], cover: Float[Tensor, "n rows columns"]) -> Float[Tensor, " n"]:
    """Chance that a random pixel of the object has a larger value than one off it, ties half: (n,).

    The area under the ROC curve of the map's values as a score of "this pixel is on the object"; NaN for an image
    without object pixels, or without others.
    """
    order = saliency.flatten(1).argsort(dim=1)
    values, on = (each.flatten(1).gather(1, order).double() for each in (saliency, cover))
    off = 1 - on
    before = off.cumsum(dim=1)
    first, last = (torch.searchsorted(values, values, right=right) for right in (False, True))  # of equal values
    padded = torch.cat([torch.zeros_like(before[:, :1]), before], dim=1)
    below, up_to = padded.gather(1, first), padded.gather(1, last)
    return ((on * (below + up_to) / 2).sum(dim=1) / (on.sum(dim=1) * off.sum(dim=1))).float()


def rank_correlation(
    one: Float[Tensor, "n rows columns"], other: Float[Tensor, "n rows columns"]
) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of two maps of each image, equal values sharing their mean rank: (n,), -1 to 1.

    0 where a map has the same value everywhere.
    """
    ranks = []
    for each in (one, other):
        values = each.flatten(1).double()
        ordered = values.sort(dim=1).values.contiguous()
        low, high = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
        rank = (low + high).double()
        ranks.append(rank - rank.mean(dim=1, keepdim=True))
    norms = ranks[0].norm(dim=1) * ranks[1].norm(dim=1)
    return torch.where(norms > 0, (ranks[0] * ranks[1]).sum(dim=1) / norms.clamp_min(1e-300), 0.0).float()


def saco(
    model: nn.Module,
    images: Float[Tensor, "n chans height width"],
    saliency: Float[Tensor, "n rows columns"],
    *,
    groups: int = 10,
) -> Float[Tensor, " n"]:
    """Salience-guided faithfulness coefficient (arXiv 2404.01415, algorithm 1), by patch: (n,), -1 to 1.

    Patches are ranked and cut into groups of equal number, as nearly as they divide. Each group alone is shown in the
    image's mean colour; of any two groups the more salient one should lower the predicted class's probability more.
    Every pair counts by the difference of its saliency, for or against. 0 where all groups have the same saliency.

    Args:
        model: a classifier.
        images: (n, channels, height, width), normalised as in training.
        saliency: (n, rows, columns), of any sign.
        groups: number of groups, at most one for each patch.
    """
    saliency = saliency.cpu()
    n, rows, columns = saliency.shape
    groups = min(groups, rows * columns)
    rank = saliency.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    group = (rank * groups // (rows * columns)).unflatten(1, (rows, columns))
    weight = next(model.parameters())
    drops, sums = [], []
    with evaluating(model), torch.no_grad():
        whole = images.to(weight.device, weight.dtype)
        mean = whole.mean(dim=(2, 3), keepdim=True)
        probability = model(whole).double().softmax(dim=1)
        chosen = probability.argmax(dim=1, keepdim=True)
        for each in range(groups):
            shown = torch.where(_pixels((group == each).to(weight.device), whole), mean, whole)
            fallen = probability - model(shown).double().softmax(dim=1)
            drops.append(fallen.gather(1, chosen)[:, 0].cpu())
            sums.append((saliency.double() * (group == each)).sum(dim=(1, 2)))
    found, total = torch.zeros(2, n, dtype=torch.float64)
    for more in range(groups):
        for less in range(more + 1, groups):
            gap = sums[more] - sums[less]
            found += torch.where(drops[more] >= drops[less], gap, -gap)
            total += gap.abs()
    return torch.where(total > 0, found / total.clamp_min(1e-300), 0.0).float()


@dataclass(frozen=True)
class Removal:
    """Deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421, section 3.3), by patch.

    Args:
        shares: (steps + 1,), share of the patches deleted, or inserted.
        deletion: (n, steps + 1), probability of the class predicted for the whole image; most salient deleted first.
        insertion: (n, steps + 1), the same; most salient inserted first, into an empty image.
    """

    shares: Float[Tensor, " steps"]
    deletion: Float[Tensor, "n steps"]
    insertion: Float[Tensor, "n steps"]

    @property
    def deletion_area(self) -> Tensor:
        """(n,), mean height of the deletion curve; lower is better."""
        return torch.trapezoid(self.deletion, self.shares, dim=1)

    @property
    def insertion_area(self) -> Tensor:
        """(n,), mean height of the insertion curve; higher is better."""
        return torch.trapezoid(self.insertion, self.shares, dim=1)


def removal(
    model: nn.Module,
    images: Float[Tensor, "n chans height width"],
    saliency: Float[Tensor, "n rows columns"],
    *,
    steps: int = STEPS,
    batch_size: int = 500,
) -> Removal:
    """Probability of the predicted class while patches are deleted, or inserted, most salient first.

    A deleted patch shows the data's mean colour, which is 0 after normalisation. Of equal patches the first in reading
    order goes first.

    Args:
        model: a classifier.
        images: (n, channels, height, width), normalised as in training.
        saliency: (n, rows, columns); negative values go last.
        steps: points of each curve after the first.
        batch_size: images per forward pass.
    """
    n, rows, columns = saliency.shape
    patches = rows * columns
    rank = saliency.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).unflatten(1, (rows, columns))
    taken = [round(step * patches / steps) for step in range(steps + 1)]
    curves = torch.empty(2, n, steps + 1)
    weight = next(model.parameters())
    with evaluating(model), torch.no_grad():
        for first in range(0, n, batch_size):
            part = slice(first, first + batch_size)
            whole = images[part].to(weight.device, weight.dtype)
            order = rank[part].to(weight.device)
            chosen = model(whole).argmax(dim=1, keepdim=True)
            for step, count in enumerate(taken):
                early = _pixels(order < count, whole)
                for curve, kept in enumerate((~early, early)):
                    probability = model(whole * kept).float().softmax(dim=1).gather(1, chosen)
                    curves[curve, part, step] = probability[:, 0].cpu()
    return Removal(torch.tensor(taken) / patches, curves[0], curves[1])


@dataclass(frozen=True)
class Road:
    """Remove and debias (ROAD, arXiv 2202.00449): probability of the class predicted for the whole image.

    Args:
        shares: (steps,), share of the patches removed.
        most: (n, steps), the most salient removed first; lower is better.
        least: (n, steps), the least salient removed first; higher is better.
    """

    shares: Float[Tensor, " steps"]
    most: Float[Tensor, "n steps"]
    least: Float[Tensor, "n steps"]

    @property
    def score(self) -> Tensor:
        """(n,), half the mean difference of the two; -0.5 to 0.5, higher is better."""
        return (self.least - self.most).mean(dim=1) / 2


def road(
    model: nn.Module,
    images: Float[Tensor, "n chans height width"],
    saliency: Float[Tensor, "n rows columns"],
    *,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 500,
) -> Road:
    """Probability of the predicted class with patches removed so that what is left does not tell where they were.

    A removed pixel is what :func:`imputed` makes of its neighbours, plus normal noise. Where a patch simply took the
    mean colour (:func:`removal`), its outline alone could give the class away.

    Args:
        model: a classifier.
        images: (n, channels, height, width), normalised as in training.
        saliency: (n, rows, columns), of any sign; of equal patches the first in reading order counts as more salient.
        shares: of the patches, each above 0 and below 1; rounded to whole patches.
        noise: standard deviation of the noise.
        seed: of the noise, which is the same for both orders.
        batch_size: images per forward pass.

    Raises:
        ConfigError: a share that is not between 0 and 1, or leaves no patch.
    """
    saliency = saliency.cpu()
    n, rows, columns = saliency.shape
    patches = rows * columns
    counts = [round(share * patches) for share in shares]
    if not counts or min(counts) < 1 or max(counts) >= patches:
        raise ConfigError("shares", f"must remove 1 to {patches - 1} patches each (found {counts} of {patches})")
    rank = saliency.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).unflatten(1, (rows, columns))
    generator, weight = torch.Generator().manual_seed(seed), next(model.parameters())
    drawn = noise * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    found = torch.empty(2, n, len(counts))
    with evaluating(model), torch.no_grad():
        chosen = torch.cat([model(part.to(weight)).argmax(1, keepdim=True) for part in images.split(batch_size)])
        for step, count in enumerate(counts):
            for order, removed in enumerate((rank < count, rank >= patches - count)):
                gone = _pixels(removed, images)
                filled = torch.stack([imputed(*pair) for pair in zip(images.double().cpu(), gone[:, 0], strict=True)])
                shown = torch.where(gone, filled + drawn, images.cpu()).split(batch_size)
                logits = torch.cat([model(part.to(weight)) for part in shown])
                found[order, :, step] = logits.float().softmax(dim=1).gather(1, chosen)[:, 0].cpu()
    return Road(torch.tensor(counts) / patches, found[0], found[1])


def imputed(
    image: Float[Tensor, "chans height width"], removed: Bool[Tensor, "height width"]
) -> Float[Tensor, "chans height width"]:
    """An image whose removed pixels are the weighted means of their neighbours (arXiv 2202.00449, section 4).

    All removed pixels together solve one linear system: each is the mean of its eight neighbours, removed or not,
    those beside it weighted twice those at its corners.

    Args:
        image: on the CPU; computed in float64.
        removed: not all of its pixels.
    """
    height, width = removed.shape
    pixels, gone = image.double().flatten(1).numpy(), removed.flatten().numpy()
    places = np.flatnonzero(gone)
    equation = np.cumsum(gone) - 1  # of each removed pixel
    row, column = np.divmod(places, width)
    weights, known = np.zeros(len(places)), np.zeros((len(places), len(pixels)))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for down, across, weight in _NEIGHBOURS:
        inside = np.flatnonzero(
            (row + down >= 0) & (row + down < height) & (column + across >= 0) & (column + across < width)
        )
        neighbour = places[inside] + down * width + across
        weights[inside] += weight
        hidden = gone[neighbour]
        known[inside[~hidden]] += weight * pixels[:, neighbour[~hidden]].T
        entries.append((np.full(int(hidden.sum()), -weight), inside[hidden], equation[neighbour[hidden]]))
    values, down, across = (np.concatenate(each) for each in zip(*entries, strict=True))
    system = csc_array((values, (down, across)), shape=(len(places), len(places))) + diags_array(weights)
    filled = pixels.copy()
    # The order for symmetric systems leaves half the fill, and takes half the time, of the default one.
    symmetric: dict[str, Any] = {"permc_spec": "MMD_AT_PLUS_A", "options": {"SymmetricMode": True}}
    filled[:, places] = splu(csc_array(system), diag_pivot_thresh=0.0, **symmetric).solve(known).T
    return torch.from_numpy(filled).unflatten(1, (height, width)).to(image.dtype)


def _pixels(patches: Tensor, images: Tensor) -> Tensor:
    """(n, rows, columns) of bool as (n, 1, height, width)."""
    tall, wide = images.shape[2] // patches.shape[1], images.shape[3] // patches.shape[2]
    return patches.repeat_interleave(tall, dim=1).repeat_interleave(wide, dim=2)[:, None]
