"""Augmentation of whole batches on the model's device; every draw is a hash of (seed, epoch, sample index).

In order: flip and crop, RandAugment (arXiv 1909.13719), TrivialAugment (arXiv 2103.10158) or a user's own, colour
jitter, random erasing, then mixup or CutMix. On a CPU only the images that drew a change are processed. On an
accelerator, reading how many these are forces a synchronisation that costs more than processing all: there ``every``
image is processed, and those that drew no change keep their values. Both give the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from diffvit.data import image_ops
from diffvit.data.batches import Channels, Device, normalise, send
from diffvit.data.image_ops import Pixels, affine, box_mask, crop_and_flip, fixed_point
from diffvit.data.random_draws import Stream, below, beta_quantiles, from_quantiles, hash_uniform, hash_words, uniform
from diffvit.errors import ConfigError
from diffvit.registry import AUGMENTATIONS

OWN_DRAWS = 16  # uniform numbers for each sample that a user's own augmentation is given
Indices = Int64[Tensor, " batch"]


@dataclass(frozen=True)
class Batch:
    """One training batch: normalised images, targets (distributions), own labels without mixing, and which samples."""

    images: Float32[Tensor, "batch ..."]
    targets: Float32[Tensor, "batch classes"]
    labels: Int64[Tensor, " batch"]
    indices: Int64[Tensor, " batch"]
    epoch: int


class Augment:
    """Turns sample indices and an epoch into a training batch.

    A sample's picture depends on (seed, epoch, index) and the settings alone: not on the batch it comes in, its place
    there, the number of workers, the device, or on having resumed.

    ``pixels``, uint8 (n, chans, height, width), are the training set and may lie in a memory-mapped file; ``mean``
    and ``std`` are those of each channel, in 0 .. 1; ``config`` is the run's (:class:`diffvit.config.Config`).
    ConfigError for a crop that reaches beyond one reflection of the image, or labels beyond the classes.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "n chans height width"],
        labels: Int64[Tensor, " n"],
        mean: Channels,
        std: Channels,
        config: Any,
        device: Device = "cpu",
    ) -> None:
        self.settings = chosen = config.augment
        self.device = torch.device(device)
        self.pixels, self.labels = _on_device(pixels, self.device), labels.to(self.device)
        self.size = (pixels.shape[2], pixels.shape[3])
        self.num_classes, self.seed, self.label_smoothing = (
            config.model.num_classes,
            config.seed,
            config.label_smoothing,
        )
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in (mean, std))
        _check(chosen.crop, self.size, labels, self.num_classes)
        every = self.device.type != "cpu"
        self._policy = self._erasing = self._mixing = None
        if own := AUGMENTATIONS[chosen.policy]:
            self._policy = lambda pixels, *draw: own(pixels, hash_uniform(*draw, stream=Stream.POLICY, count=OWN_DRAWS))
        elif chosen.policy != "none":
            fill = (self.mean * 255).round().to(torch.uint8)
            random = chosen.policy == "randaugment"
            space = randaugment_space(chosen.policy_magnitude, self.size[1]) if random else trivialaugment_space()
            self._policy = Policy(space, chosen.policy_ops if random else 1, self.size, fill, every=every)
        if chosen.erasing:
            self._erasing = Erasing(chosen.erasing, self.device, every=every)
        if (chosen.mixup or chosen.cutmix) and chosen.mix_probability:
            self._mixing = Mixing(chosen.mixup, chosen.cutmix, chosen.mix_probability, self.device, every=every)

    def __call__(self, indices: Indices, epoch: int) -> Batch:
        """The augmented batch of these samples in this epoch, on :attr:`device`."""
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

    def pictures(self, indices: Indices, epoch: int) -> Pixels:
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
            changes = (image_ops.brightness, image_ops.contrast, image_ops.saturation)
            factors = 1 + chosen.color_jitter * (2 * hash_uniform(*draw, Stream.JITTER, 3) - 1)
            for change, factor in zip(changes, factors.unbind(1), strict=True):
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


def _check(crop: int, size: tuple[int, int], labels: Tensor, num_classes: int) -> None:
    if crop >= min(size):
        found = f"{crop} pixels at the edge of an image {min(size)} pixels wide"
        raise ConfigError("augment.crop", f"cannot reflect {found} (at most {min(size) - 1})")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if not 0 <= low <= high < num_classes:
        why = f"the labels reach from {low} to {high}, the classes from 0 to {num_classes - 1}"
        raise ConfigError("model.num_classes", why)


def _on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """The pixels, copied to an accelerator if they fill at most half of its free memory."""
    if device.type == "cpu" or (device.type == "cuda" and 2 * pixels.nbytes > torch.cuda.mem_get_info(device)[0]):
        return pixels
    return pixels.to(device)


MOVES = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
# Operations on colours, and which of a policy's tables holds their parameter, if they have one.
_COLORS: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "brightness": (image_ops.brightness, "factor"),
    "color": (image_ops.saturation, "factor"),
    "contrast": (image_ops.contrast, "factor"),
    "sharpness": (image_ops.sharpness, "factor"),
    "posterize": (image_ops.posterize, "bits"),
    "solarize": (image_ops.solarize, "threshold"),
    "auto-contrast": (image_ops.autocontrast, None),
    "equalize": (image_ops.equalize, None),
}
OPERATIONS = (*MOVES, *_COLORS, "identity")
_KINDS = ("move", *_COLORS, "identity")  # one gather serves all moves


@dataclass(frozen=True)
class Space:
    """How far each operation goes at full strength, and the strengths (0 .. 1) a policy draws from."""

    levels: tuple[float, ...]
    shear: float  # pixels sideways per pixel along
    translate: float  # pixels
    rotate: float  # degrees
    enhance: float  # factor 1 - this .. 1 + this
    posterize: int  # bits taken away


def randaugment_space(magnitude: float, width: int) -> Space:
    """RandAugment's one strength for all, ``magnitude`` of 10, over the ranges of AutoAugment (arXiv 1805.09501)."""
    return Space((magnitude / 10,), shear=0.3, translate=width * 150 / 331, rotate=30.0, enhance=0.9, posterize=4)


def trivialaugment_space() -> Space:
    """TrivialAugment's wide ranges, 31 equally likely strengths."""
    levels = tuple(level / 30 for level in range(31))
    return Space(levels, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)


def matrix(move: str, amount: float, size: tuple[int, int]) -> tuple[float, ...]:
    """The affine map (output to input, see :func:`~diffvit.data.image_ops.fixed_point`) of one of :data:`MOVES`.

    ``amount`` is in the units of :class:`Space`. Shears keep the top left corner, as the papers' code does; rotations,
    counterclockwise, keep the centre.
    """
    if move == "rotate":
        cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        x, y = size[1] / 2, size[0] / 2
        return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return {
        "shear-x": (1.0, amount, 0.0, 0.0, 1.0, 0.0),
        "shear-y": (1.0, 0.0, 0.0, amount, 1.0, 0.0),
        "translate-x": (1.0, 0.0, float(round(amount)), 0.0, 1.0, 0.0),
        "translate-y": (1.0, 0.0, 0.0, 0.0, 1.0, float(round(amount))),
    }[move]


class Policy:
    """Applies ``rounds`` operations, drawn from :data:`OPERATIONS` with replacement, to every image.

    Every operation's parameters are tables over the few levels of the space, made once in plain Python floats: no
    device's sine enters the result. ``size`` is the images' (height, width), ``fill`` the colour of places that a move
    uncovers; with ``every``, every operation is done to every image and the one that was drawn is kept.
    """

    def __init__(
        self, space: Space, rounds: int, size: tuple[int, int], fill: UInt8[Tensor, " chans"], *, every: bool = False
    ) -> None:
        self.rounds, self.fill, self.every, self.levels = rounds, fill, every, len(space.levels)
        full = {"rotate": space.rotate, "translate-x": space.translate, "translate-y": space.translate}
        signed = [sign * level for sign in (-1, 1) for level in space.levels]
        maps = [[fixed_point(matrix(move, full.get(move, space.shear) * s, size)) for s in signed] for move in MOVES]
        self._maps = torch.tensor(maps, device=fill.device)
        tables = {
            "factor": torch.tensor([1 + space.enhance * s for s in signed], dtype=torch.float32),
            "bits": torch.tensor([8 - round(space.posterize * abs(s)) for s in signed], dtype=torch.uint8),
            "threshold": torch.tensor([round(256 * (1 - abs(s))) for s in signed]),
        }
        self._tables = {name: table.to(fill.device) for name, table in tables.items()}

    def __call__(self, pixels: Pixels, seed: int, epoch: int, indices: Indices) -> Pixels:
        """The images after their own draws of operations."""
        words = hash_words(seed, epoch, indices, Stream.POLICY, 2 * self.rounds)
        operations, strengths = below(words[:, 0::2], len(OPERATIONS)), below(words[:, 1::2], 2 * self.levels)
        for operation, strength in zip(operations.unbind(1), strengths.unbind(1), strict=True):
            pixels = self.apply(pixels, operation, strength)
        return pixels

    def apply(self, pixels: Pixels, operation: Indices, strength: Indices) -> Pixels:
        """One operation for each image: its place in :data:`OPERATIONS`, and which strength.

        Strengths ``0 .. levels - 1`` are the space's levels with a negative sign, the next ``levels`` those with a
        positive one; operations without a sign do the same for both.
        """
        kind = (operation - (len(MOVES) - 1)).clamp(min=0)
        if self.every:
            changed = pixels
            for place, name in enumerate(_KINDS[:-1]):  # the last leaves the image as it is
                drawn = (kind == place)[:, None, None, None]
                changed = torch.where(drawn, self._change(name, pixels, operation, strength), changed)
            return changed
        order = kind.argsort(stable=True)
        counts = kind.bincount(minlength=len(_KINDS)).tolist()
        sorted_ = (t.index_select(0, order).split(counts) for t in (pixels, operation, strength))
        groups = zip(_KINDS, *sorted_, strict=True)
        changed = torch.cat([self._change(*group) if len(group[1]) else group[1] for group in groups])
        return changed.index_select(0, order.argsort())  # whole rows at a time: quicker than assigning to places

    def _change(self, kind: str, pixels: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
        if kind == "move":
            return affine(pixels, self._maps[operation.clamp(max=len(MOVES) - 1), strength], self.fill)
        if kind == "identity":
            return pixels
        change, table = _COLORS[kind]
        return change(pixels, self._tables[table][strength]) if table else change(pixels)


class Erasing:
    """Random erasing (arXiv 1708.04896, section 3.2): a rectangle of random bytes.

    Its area is uniform in 2% .. 40% of the image, the logarithm of its height over its width uniform in
    log 0.3 .. -log 0.3. Where the paper draws again until the rectangle fits, this one takes the nearest shape of the
    same area that fits, so that every image takes the same number of draws.
    """

    AREA = (0.02, 0.4)
    ASPECT = 0.3

    def __init__(self, probability: float, device: Device = "cpu", *, every: bool = False) -> None:
        self.probability, self.every = probability, every
        aspects = np.geomspace(self.ASPECT, 1 / self.ASPECT, 1025)
        self._aspects = torch.tensor(aspects, dtype=torch.float32, device=device)

    def __call__(self, pixels: Pixels, seed: int, epoch: int, indices: Indices) -> Pixels:
        """The images, some with a rectangle of noise."""
        words = hash_words(seed, epoch, indices, Stream.ERASING, 5)
        chosen = uniform(words[:, 0]) < self.probability
        rows = _rows(chosen, self.every)
        before, size = pixels.index_select(0, rows), math.prod(pixels.shape[1:])
        noise = hash_words(seed, epoch, indices[rows], Stream.ERASED_PIXELS, math.ceil(size / 8)).view(torch.uint8)
        noise = noise[:, :size].view(before.shape)
        inside = self._boxes(words[rows, 1:], *pixels.shape[2:]) & chosen[rows, None, None, None]
        # Bits of the noise where inside, of the image outside; torch.where over bytes is slow on a CPU.
        erased = before ^ ((before ^ noise) & inside.view(torch.uint8).neg())
        return pixels.index_copy(0, rows, erased)

    def _boxes(self, words: Tensor, height: int, width: int) -> Bool[Tensor, "rows 1 height width"]:
        area = (self.AREA[0] + (self.AREA[1] - self.AREA[0]) * uniform(words[:, 0])) * (height * width)
        rows = (area * from_quantiles(self._aspects, uniform(words[:, 1]))).sqrt()
        rows = rows.clamp(max=height).maximum(area / width)
        columns = (area / rows).round().to(torch.int64).clamp(1, width)
        rows = rows.round().to(torch.int64).clamp(1, height)
        top, left = below(words[:, 2], height - rows + 1), below(words[:, 3], width - columns + 1)
        return box_mask(top, left, top + rows, left + columns, (height, width))


def _rows(chosen: Bool[Tensor, " batch"], every: bool) -> Int64[Tensor, " rows"]:
    """Positions of the images to process: those chosen, or all."""
    return torch.arange(len(chosen), device=chosen.device) if every else chosen.nonzero()[:, 0]


@dataclass(frozen=True)
class Mix:
    """What to mix: ``rows`` (places in the batch), ``partners`` (sample indices), and how much of the own image stays.

    ``weight``, (rows, 1, height, width) or (rows, 1, 1, 1), is the own image's weight at each pixel and ``share`` its
    weight in the target; the partner has the rest.
    """

    rows: Int64[Tensor, " rows"]
    partners: Int64[Tensor, " rows"]
    weight: Float32[Tensor, "rows 1 _ _"]
    share: Float32[Tensor, " rows"]


class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) with partners drawn from the whole training set.

    The own image's part lambda is a draw of Beta(a, a). Mixup adds the two images with weights lambda and 1 - lambda.
    CutMix pastes the partner's pixels into a box of the image's shape, with sides sqrt(1 - lambda) of the image's and a
    centre anywhere; the box is cut at the edges, and the target's share is the area left of the own image. With both
    on, each image draws one of the two.
    """

    def __init__(
        self, mixup: float, cutmix: float, probability: float, device: Device = "cpu", *, every: bool = False
    ) -> None:
        self.probability, self.every = probability, every
        self._tables = [beta_quantiles(a).to(device) if a else None for a in (mixup, cutmix)]

    def draw(self, seed: int, epoch: int, indices: Indices, samples: int, size: tuple[int, int]) -> Mix:
        """Draw partners among ``samples`` images, lambdas and boxes for images of (height, width) ``size``."""
        words = hash_words(seed, epoch, indices, Stream.MIX, 6)
        chosen = uniform(words[:, 0]) < self.probability
        rows = _rows(chosen, self.every)
        words, chosen = words[rows], chosen[rows]
        quantile = uniform(words[:, 2])
        mixup, cutmix = (None if table is None else from_quantiles(table, quantile) for table in self._tables)
        if cutmix is not None:
            outside = ~self._boxes(cutmix, words[:, 3:5], size)
            weight, share = outside.to(torch.float32), outside.sum((1, 2, 3)) / (size[0] * size[1])
            if mixup is not None:
                mixes = words[:, 5] < 0
                weight = torch.where(mixes[:, None, None, None], mixup[:, None, None, None], weight)
                share = torch.where(mixes, mixup, share)
        else:
            assert mixup is not None
            weight, share = mixup[:, None, None, None], mixup
        weight, share = torch.where(chosen[:, None, None, None], weight, 1.0), torch.where(chosen, share, 1.0)
        return Mix(rows, below(words[:, 1], samples), weight, share)

    @staticmethod
    def _boxes(kept: Tensor, words: Tensor, size: tuple[int, int]) -> Bool[Tensor, "batch 1 height width"]:
        edges: list[Tensor] = []
        for axis, length in enumerate(size):
            side = (length * (1 - kept).sqrt()).round().to(torch.int64)
            first = below(words[:, axis], length) - side // 2
            edges += [first, first + side]
        top, bottom, left, right = edges
        return box_mask(top, left, bottom, right, size)
