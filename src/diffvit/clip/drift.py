"""How far a precision moves the embeddings, against strict float32 over the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffvit.clip.timebox import Box, admit

CLASSES, LOGIT_SCALE = 10, 100.0  # the scale that CLIP's training ends at (Radford et al. 2021, section 2.5)
_AT_A_TIME = 8


def classifier(dim: int, seed: int = 0) -> Tensor:
    """A zero-shot classifier of ten random unit vectors: float64 (10, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(CLASSES, dim, generator=generator, dtype=torch.float64), dim=1)


def figures(embedded: Tensor, reference: Tensor, weights: Tensor) -> dict[str, Any]:
    """Drift of embeddings.

    Args:
        embedded: (n, dim) in any precision.
        reference: (n, dim), of the same images in strict float32.
        weights: (classes, dim), unit vectors, float64.

    Returns:
        ``images``, ``cosine_min``, ``cosine_mean`` (embedding against reference), ``logit_difference`` (the largest;
        logits are 100 times the cosine with a class) and ``agreement`` (share of images with the same first class).
    """
    found, right = (F.normalize(each.double().cpu(), dim=1) for each in (embedded, reference))
    # From the distance of the unit vectors: 1 - d^2 / 2 keeps the digits that a product near 1 would lose.
    cosine = 1 - (found - right).square().sum(1) / 2
    ours, theirs = (LOGIT_SCALE * each @ weights.T for each in (found, right))
    return {
        "images": len(found),
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "logit_difference": float((ours - theirs).abs().max()),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
    }


def between(reference: Tensor, weights: Tensor) -> dict[str, Any]:
    """What the figures are to be read against: how alike different images are, and how many classes come first.

    Returns:
        ``cosine_between`` (mean over pairs of different images) and ``classes_found``.
    """
    units = F.normalize(reference.double().cpu(), dim=1)
    count = len(units)
    pairs = (float((units @ units.T).sum()) - count) / (count * (count - 1))
    return {"cosine_between": pairs, "classes_found": len((units @ weights.T).argmax(1).unique())}


def measure(
    runs: Mapping[str, Callable[[Tensor], Tensor]],
    strict: str,
    images: Tensor,
    expected: Mapping[str, float],
    box: Box,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Drift of every way to run the encoder, as far as the time allows; the reference comes first.

    Args:
        runs: name to embeddings of images.
        strict: the name of the reference.
        images: (n, 3, height, width), normalised.
        expected: seconds per image of each; the quick ones go first, one that would not end in time is left out.
        box: the time.

    Returns:
        Figures by name, of those that were measured; and those of :func:`between`.
    """
    reference = _embed(runs[strict], images)
    weights = classifier(reference.shape[1])
    others = {name: expected[name] * len(images) for name in runs if name != strict}
    found = {}
    for name in sorted(admit(others, box.left, 1), key=others.__getitem__):
        if others[name] <= box.left:
            found[name] = figures(_embed(runs[name], images), reference, weights)
    return found, between(reference, weights)


def _embed(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([run(part).float().cpu() for part in images.split(_AT_A_TIME)])
