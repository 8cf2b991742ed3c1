"""How far a classifier's accuracy holds under image corruptions and under adversarial perturbations.

For ``diffvit evaluate RUN --robustness``, and the score ``robustness`` of a study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.data.images import Images, sized
from diffvit.data.shifts import CORRUPTIONS, Shift, shifts
from diffvit.data.sources import validation_split
from diffvit.errors import ConfigError, InputError
from diffvit.files import Row
from diffvit.training.evaluate import images_of
from diffvit.training.load import Reference, ready
from diffvit.training.run_dir import RunDir
from diffvit.training.score import evaluating, logits_of

EPSILONS = (0.5, 1.0, 2.0, 4.0)  # largest change of a value, of 255
ATTACKS: dict[str, dict[str, Any]] = {"pgd-10": {"steps": 10}, "margin-30": {"steps": 30, "margin": True}}
_AT_A_TIME = 125  # images
Logits = Callable[[Tensor], Tensor]  # from images in 0 .. 1 (n, 3, height, width) to logits (n, classes)


def survivors(
    logits: Logits,
    images: Float32[Tensor, "n chans height width"],
    labels: Int64[Tensor, " n"],
    epsilon: float,
    *,
    steps: int,
    margin: bool = False,
    seed: int = 0,
) -> Bool[Tensor, " n"]:
    """Which images a classifier gets right, unchanged and at every point of a projected gradient descent.

    Each step moves every value by ``2.5 epsilon / steps`` along the sign of the loss's gradient, and back to at most
    ``epsilon`` from the image and to 0 .. 1; the start is random (Madry et al., arXiv 1706.06083, section 2.1). The
    loss is the cross-entropy, or with ``margin`` the largest other logit less the true class's (Carlini and Wagner,
    arXiv 1608.04644), whose gradient does not vanish where the classifier is sure. ``images`` and ``epsilon``, the
    largest change of a value, are in 0 to 1; ``seed`` is that of the start.
    """
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    lowest, highest = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    moved = (images + epsilon * (2 * start - 1)).clamp(lowest, highest)
    with torch.no_grad():
        right = logits(images).argmax(1) == labels
    left = right.nonzero()[:, 0]  # one that was got wrong once is not moved further
    moved, labels, lowest, highest = (each[left] for each in (moved, labels, lowest, highest))
    for number in range(steps + 1):
        if not len(left):
            break
        moved.requires_grad_()
        found = logits(moved).float()
        if margin:
            others = found.scatter(1, labels[:, None], -torch.inf).amax(1)
            loss = (others - found.gather(1, labels[:, None])[:, 0]).sum()
        else:
            loss = F.cross_entropy(found, labels, reduction="sum")
        still = found.argmax(1) == labels
        if number < steps:
            (slope,) = torch.autograd.grad(loss, moved)
            moved = (moved.detach() + 2.5 * epsilon / steps * slope.sign()).clamp(lowest, highest)
        left, moved, labels, lowest, highest = (each[still] for each in (left, moved, labels, lowest, highest))
    return torch.zeros_like(right).index_fill(0, left, True)


def robustness(
    run: Reference,
    *,
    images: int = 1000,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy of a trained model on test images that are corrupted, and under attack.

    Four corruptions (:data:`diffvit.data.shifts.CORRUPTIONS`) in five severities; on every second image, in float32,
    :func:`survivors` with ten steps on the cross-entropy, and as a check of these with thirty on the margin.

    Args:
        run: a run folder, a weights file or a packaged name.
        images: number of test images, the same of each class.
        data_dir: where the data lies, as for :func:`diffvit.evaluate`.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the corrupted images, as for :func:`diffvit.evaluate`.
        progress: called with (parts done, parts in all).

    Returns:
        ``images``, ``accuracy`` (as they are) and ``corruption_error``, the mean error over corruptions and severities
        (not divided by another model's); the mean accuracy for each corruption; the accuracy under each attack, as
        ``pgd-10 1/255``. Tables: ``corruptions`` (``corruption``, ``severity``, ``words``, ``accuracy``) and
        ``attacks`` (``attack``, ``epsilon`` of 255, ``images``, ``accuracy``).

    Raises:
        ConfigError: fewer than one image.
        InputError: the model or the data is missing or damaged, or its images are not RGB.
    """
    if images < 1:
        raise ConfigError("images", f"must be at least 1 (found {images})")
    model, meta, where = ready(run, device, precision)
    found, _ = images_of(run, model.settings["image_size"], meta, data_dir=data_dir)
    if found.pixels.shape[1] != 3:
        raise InputError(found.name, f"its images are not RGB ({found.pixels.shape[1]} vs 3 channels)")
    if images < len(found):
        found = found.select(validation_split(found.labels, images)[1])
    kinds, done = shifts(CORRUPTIONS), 0
    parts = len(kinds) + len(ATTACKS) * len(EPSILONS)

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, parts)

    def accuracy(pixels: UInt8[Tensor, "n 3 height width"]) -> float:
        return float((logits_of(model, pixels, **where).argmax(1) == found.labels).double().mean())

    corruptions: list[Row] = []
    for shift in kinds:
        known: Row = {"corruption": shift.name, "severity": shift.severity, "words": shift.words}
        corruptions.append(known | {"accuracy": accuracy(_shifted(found.pixels, shift))})
        step()
    attacks: list[Row] = []
    some = found.select(torch.arange(0, len(found), 2))
    for name, how in ATTACKS.items():
        for epsilon in EPSILONS:
            right = _attacked(model, some, where, epsilon / 255, **how)
            attacks.append({"attack": name, "epsilon": epsilon, "images": len(some), "accuracy": right})
            step()
    means = {
        name: float(np.mean([row["accuracy"] for row in corruptions if row["corruption"] == name]))
        for name in CORRUPTIONS
    }
    return {
        "images": len(found),
        "accuracy": accuracy(found.pixels),
        "corruption_error": 1 - float(np.mean(list(means.values()))),
        **means,
        **{f"{row['attack']} {row['epsilon']:g}/255": row["accuracy"] for row in attacks},
        "corruptions": corruptions,
        "attacks": attacks,
    }


def robustness_scores(run: RunDir) -> dict[str, Any]:
    """:func:`robustness` of a finished run of a study, without the number of images."""
    return {name: value for name, value in robustness(run).items() if name != "images"}


def _shifted(pixels: UInt8[Tensor, "n 3 height width"], shift: Shift) -> UInt8[Tensor, "n 3 height width"]:
    """At the size that the images have: a shift is of at most 256 pixels on the shorter side."""
    shifted = np.stack([shift.apply(each, number) for number, each in enumerate(pixels.numpy())])
    return sized(torch.from_numpy(shifted), (pixels.shape[2], pixels.shape[3]), 3)


def _attacked(model: nn.Module, images: Images, where: Mapping[str, Any], epsilon: float, **how: Any) -> float:
    device = torch.device(where["device"])
    mean, std = (torch.as_tensor(where[name], device=device).view(1, -1, 1, 1) for name in ("mean", "std"))
    right = 0
    with evaluating(model):
        for seed, places in enumerate(torch.arange(len(images)).split(_AT_A_TIME)):
            pixels = images.pixels[places].to(device).float() / 255
            labels = images.labels[places].to(device).long()
            kept = survivors(lambda x: model((x - mean) / std), pixels, labels, epsilon, seed=seed, **how)
            right += int(kept.sum())
    return right / len(images)
