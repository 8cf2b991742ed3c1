"""Does a saliency map depend on what the model has learnt? Parameter randomisation, from the head down.

After arXiv 1810.03292, section 4.1 (the cascading model parameter randomisation test): the weights of a stage after the
other, head first, are replaced by untrained ones, and each new map is compared with the trained model's. A method whose
map stays the same shows the image, not the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffvit.attention.attribute import METHODS, attribute
from diffvit.attention.capture import classes_of
from diffvit.attention.metrics import rank_correlation
from diffvit.models.vit import VisionTransformer
from diffvit.training.score import evaluating


def stages(model: VisionTransformer) -> dict[str, tuple[str, ...]]:
    """Parts of a model from the head down: the beginnings of their parameters' names."""
    blocks = {f"block {index}": (f"blocks.{index}.",) for index in reversed(range(len(model.blocks)))}
    return {"head": ("head.",), "norm": ("norm.", "fc_norm."), **blocks, "tokens": ("",)}


def randomised(model: VisionTransformer, seed: int = 0) -> Iterator[tuple[str, VisionTransformer]]:
    """Copies of a model, each with one more stage, from the head down, as it would be before any training.

    Args:
        model: left as it is; its ``settings`` make the untrained one.
        seed: of the untrained weights.

    Yields:
        The stage that was replaced last, and one copy, which is changed further when the next is asked for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = dict(VisionTransformer(**model.settings).named_parameters())
    mixed, left = copy.deepcopy(model), dict(fresh)
    for stage, beginnings in stages(model).items():
        with torch.no_grad():
            for name, parameter in mixed.named_parameters():
                if name in left and name.startswith(beginnings):
                    parameter.copy_(left.pop(name))
        yield stage, mixed


def randomisation(
    model: VisionTransformer, images: Tensor, methods: Sequence[str] = tuple(METHODS), *, seed: int = 0
) -> list[dict[str, Any]]:
    """Rank correlation of each method's maps with its own after each stage of :func:`randomised`.

    The class is that which the trained model predicts.

    Args:
        model: a classifier.
        images: (batch, channels, height, width), normalised as in training.
        methods: names in :data:`diffvit.attention.METHODS`.
        seed: of the untrained weights.

    Returns:
        Rows of ``method``, ``stage`` (``trained``, then the stage that was replaced last), ``correlation`` (mean over
        the images, of the map with its sign) and ``correlation_abs`` (of its absolute value).
    """
    with evaluating(model):
        classes = classes_of(model, images.to(model.patch_embed.proj.weight), None).cpu()
    trained = {method: attribute(model, images, method, classes) for method in methods}
    rows = [{"method": method, "stage": "trained", "correlation": 1.0, "correlation_abs": 1.0} for method in methods]
    for stage, mixed in randomised(model, seed):
        for method, before in trained.items():
            after = attribute(mixed, images, method, classes)
            signed, absolute = rank_correlation(before, after), rank_correlation(before.abs(), after.abs())
            row = {"correlation": float(signed.mean()), "correlation_abs": float(absolute.mean())}
            rows.append({"method": method, "stage": stage, **row})
    return rows
