"""Augmentation of a whole batch on the model's device, every draw per sample and stateless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from diffvit.data.batches import normalise, send
from diffvit.data.color_ops import brightness, contrast, saturation
from diffvit.data.geometry import crop_and_flip
from diffvit.data.mixing import Erasing, Mixing
from diffvit.data.policies import Policy, randaugment_space, trivialaugment_space
from diffvit.data.random_draws import Stream, below, hash_uniform, hash_words
from diffvit.errors import ConfigError

POLICIES = ("none", "randaugment", "trivialaugment")


@dataclass(frozen=True)
class Settings:
    """The strengths of the augmentation, all off by default; ``config.AugmentConfig`` says what each means."""

    flip: bool = False
    crop: int = 0
    color_jitter: float = 0.0
    policy: str = "none"
    policy_ops: int = 2
    policy_magnitude: float = 9.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    ``images`` float32 (batch, chans, height, width), normalised; ``targets`` float32 (batch, classes), each row a
    distribution; ``labels`` int64 (batch,), each image's own class whatever was mixed into it; ``indices`` int64
    (batch,) and ``epoch`` say which samples these are, for further draws.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int


class Augment:
    """Turns sample indices and an epoch into a training batch.

    A sample's picture depends on (seed, epoch, index) and the settings alone: not on the batch it comes in, its place
    there, the number of workers, the device, or on having resumed.

    Args:
        pixels: uint8 (n, 3, height, width), the whole training set; may lie in a memory-mapped file.
        labels: int64 (n,).
        mean, std: of each channel, in 0 .. 1.
        settings: the fields of :class:`Settings`; those left out are off.
        device: where batches are made.

    Raises:
        ConfigError: a crop that reaches beyond one reflection of the image, an unknown policy, labels beyond the
            classes.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "n chans height width"],
        labels: Int64[Tensor, " n"],
        *,
        num_classes: int,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        seed: int,
        label_smoothing: float = 0.0,
        settings: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = Settings(**(settings or {}))
        self.device = torch.device(device)
        self.pixels, self.labels = _near(pixels, self.device), labels.to(self.device)
        self.size = (pixels.shape[2], pixels.shape[3])
        self.num_classes, self.seed, self.label_smoothing = num_classes, seed, label_smoothing
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in (mean, std))
        self._check(labels)
        chosen = self.settings
        # The work of one batch is queued while an accelerator is at the batch before: nothing here may wait for it.
        every = self.device.type != "cpu"
        self._policy = self._make_policy(every) if chosen.policy != "none" else None
        self._erasing = Erasing(chosen.erasing, self.device, every=every) if chosen.erasing else None
        mixes = (chosen.mixup or chosen.cutmix) and chosen.mix_probability
        strengths = (chosen.mixup, chosen.cutmix, chosen.mix_probability)
        self._mixing = Mixing(*strengths, self.device, every=every) if mixes else None

    def __call__(self, indices: Int64[Tensor, " batch"], epoch: int) -> Batch:
        """The batch of these samples as they look in this epoch, on :attr:`device`."""
        given, indices = indices, send(indices, self.device)
        labels = self.labels[indices]
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        if self._mixing is None:
            images = normalise(self.pictures(given, epoch), self.mean, self.std)
        else:
            images, targets = self._mixed(self._mixing, indices, targets, epoch)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return Batch(images, targets, labels, indices, epoch)

    def pictures(self, indices: Int64[Tensor, " batch"], epoch: int) -> UInt8[Tensor, "batch chans height width"]:
        """The samples' own pictures in this epoch: all but the mixing and the normalisation, on :attr:`device`."""
        chosen = self.settings
        pixels = send(self.pixels.index_select(0, send(indices, self.pixels.device)), self.device)
        indices = send(indices, self.device)
        draw = (self.seed, epoch, indices)
        if chosen.flip or chosen.crop:
            shift = below(hash_words(*draw, Stream.CROP, 2), 2 * chosen.crop + 1) - chosen.crop
            mirror = (hash_words(*draw, Stream.FLIP, 1)[:, 0] < 0) & chosen.flip
            pixels = crop_and_flip(pixels, shift, mirror)
        if self._policy is not None:
            pixels = self._policy(pixels, *draw)
        if chosen.color_jitter:
            factors = 1 + chosen.color_jitter * (2 * hash_uniform(*draw, Stream.JITTER, 3) - 1)
            for change, factor in zip((brightness, contrast, saturation), factors.unbind(1), strict=True):
                pixels = change(pixels, factor)
        return pixels if self._erasing is None else self._erasing(pixels, *draw)

    def _mixed(self, mixing: Mixing, indices: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        mix = mixing.draw(self.seed, epoch, indices, len(self.pixels), self.size)
        both = normalise(self.pictures(torch.cat([indices, mix.partners]), epoch), self.mean, self.std)
        images, others = both.split([len(indices), len(mix.partners)])
        other_targets = F.one_hot(self.labels[mix.partners], self.num_classes).to(torch.float32)
        mixed = images.index_select(0, mix.rows).mul_(mix.weight).add_(others.mul_(1 - mix.weight))
        share = mix.share[:, None]
        mixed_targets = targets.index_select(0, mix.rows) * share + other_targets * (1 - share)
        return images.index_copy_(0, mix.rows, mixed), targets.index_copy_(0, mix.rows, mixed_targets)

    def _make_policy(self, every: bool) -> Policy:
        chosen = self.settings
        fill = (self.mean * 255).round().to(torch.uint8)
        if chosen.policy == "randaugment":
            space = randaugment_space(chosen.policy_magnitude, self.size[1])
            return Policy(space, chosen.policy_ops, self.size, fill, every=every)
        return Policy(trivialaugment_space(), 1, self.size, fill, every=every)

    def _check(self, labels: Tensor) -> None:
        smaller = min(self.size)
        if self.settings.crop >= smaller:
            raise ConfigError(
                "augment.crop",
                f"cannot reflect {self.settings.crop} pixels at the edge of an image {smaller} pixels wide "
                f"(at most {smaller - 1})",
            )
        if self.settings.policy not in POLICIES:
            raise ConfigError("augment.policy", f"no policy {self.settings.policy!r} (have {', '.join(POLICIES)})")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ConfigError(
                "model.num_classes",
                f"the labels reach from {int(labels.min())} to {int(labels.max())}, the classes from 0 to "
                f"{self.num_classes - 1}",
            )


def _near(pixels: Tensor, device: torch.device) -> Tensor:
    """The pixels on an accelerator where they fill at most half of its free memory; else where they are."""
    if device.type == "cpu" or (device.type == "cuda" and 2 * pixels.nbytes > torch.cuda.mem_get_info(device)[0]):
        return pixels
    return pixels.to(device)
