"""Rectangles and pairs: random erasing, mixup and CutMix, each image with its own draws.

Only the images that drew a change are worked on. On an accelerator their number would have to be waited for, which
costs more than the work: there, ``every`` image is worked on, and those that drew no change keep their values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from diffvit.data.geometry import box_mask
from diffvit.data.random_draws import Stream, below, beta_quantiles, from_quantiles, hash_words, uniform


class Erasing:
    """Random erasing (arXiv 1708.04896, section 3.2): a rectangle of random bytes.

    Its area is uniform in 2% .. 40% of the image, the logarithm of its height over its width uniform in
    log 0.3 .. -log 0.3. Where the paper draws again until the rectangle fits, this one takes the nearest shape of the
    same area that fits, so that every image takes the same number of draws.
    """

    AREA = (0.02, 0.4)
    ASPECT = 0.3

    def __init__(self, probability: float, device: torch.device | str = "cpu", *, every: bool = False) -> None:
        self.probability, self.every = probability, every
        aspects = np.geomspace(self.ASPECT, 1 / self.ASPECT, 1025)
        self._aspects = torch.tensor(aspects, dtype=torch.float32, device=device)

    def __call__(
        self, pixels: UInt8[Tensor, "batch chans height width"], seed: int, epoch: int, indices: Int64[Tensor, " batch"]
    ) -> UInt8[Tensor, "batch chans height width"]:
        """The images, some with a rectangle of noise."""
        words = hash_words(seed, epoch, indices, Stream.ERASING, 5)
        chosen = uniform(words[:, 0]) < self.probability
        if self.every:
            inside = self._inside(words, pixels) & chosen[:, None, None, None]
            return self._erased(pixels, inside, seed, epoch, indices)
        rows = chosen.nonzero()[:, 0]
        if not len(rows):
            return pixels
        kept = pixels.index_select(0, rows)
        erased = self._erased(kept, self._inside(words[rows], pixels), seed, epoch, indices[rows])
        return pixels.index_copy(0, rows, erased)

    @staticmethod
    def _erased(pixels: Tensor, inside: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        size = math.prod(pixels.shape[1:])
        noise = hash_words(seed, epoch, indices, Stream.ERASED_PIXELS, math.ceil(size / 8)).view(torch.uint8)
        noise = noise[:, :size].view(-1, *pixels.shape[1:])
        # Bits of the noise where inside, of the image outside; torch.where over bytes is slow on a CPU.
        return pixels ^ ((pixels ^ noise) & inside.view(torch.uint8).neg())

    def _inside(self, words: Tensor, pixels: Tensor) -> Bool[Tensor, "batch 1 height width"]:
        height, width = pixels.shape[2:]
        return box_mask(*self._box(words[:, 1:], height, width), (height, width))

    def _box(self, words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        area = (self.AREA[0] + (self.AREA[1] - self.AREA[0]) * uniform(words[:, 0])) * (height * width)
        rows = (area * from_quantiles(self._aspects, uniform(words[:, 1]))).sqrt()
        rows = rows.clamp(max=height).maximum(area / width)
        columns = (area / rows).round().to(torch.int64).clamp(1, width)
        rows = rows.round().to(torch.int64).clamp(1, height)
        top, left = below(words[:, 2], height - rows + 1), below(words[:, 3], width - columns + 1)
        return top, left, top + rows, left + columns


@dataclass(frozen=True)
class Mix:
    """What to mix: ``rows`` (places in the batch), ``partners`` (sample indices), and how much of the own image stays.

    ``weight`` (rows, 1, height, width), or (rows, 1, 1, 1), is the own image's weight at each pixel and ``share``
    (rows,) its weight in the target, float32 both; the partner has the rest.
    """

    rows: Tensor
    partners: Tensor
    weight: Tensor
    share: Tensor


class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) with partners drawn from the whole training set.

    The own image's part lambda is a draw of Beta(a, a). Mixup adds the two images with weights lambda and 1 - lambda.
    CutMix pastes the partner's pixels into a box of the image's shape, with sides sqrt(1 - lambda) of the image's and a
    centre anywhere; the box is cut at the edges, and the target's share is what was left in truth. With both on, each
    image draws one of the two.
    """

    def __init__(
        self,
        mixup: float,
        cutmix: float,
        probability: float,
        device: torch.device | str = "cpu",
        *,
        every: bool = False,
    ) -> None:
        self.mixup, self.cutmix, self.probability, self.every = mixup, cutmix, probability, every
        self._tables = [beta_quantiles(a).to(device) if a else None for a in (mixup, cutmix)]

    def draw(self, seed: int, epoch: int, indices: Int64[Tensor, " batch"], samples: int, size: tuple[int, int]) -> Mix:
        """Draw partners among ``samples`` images, lambdas and boxes for images of (height, width) ``size``."""
        words = hash_words(seed, epoch, indices, Stream.MIX, 6)
        chosen = uniform(words[:, 0]) < self.probability
        if not self.every:
            rows = chosen.nonzero()[:, 0]
            return Mix(rows, *self._mixes(words[rows], samples, size))
        partners, weight, share = self._mixes(words, samples, size)
        weight = torch.where(chosen[:, None, None, None], weight, 1.0)
        return Mix(torch.arange(len(indices), device=words.device), partners, weight, torch.where(chosen, share, 1.0))

    def _mixes(self, words: Tensor, samples: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Partners, weights and shares, as in :class:`Mix`, of images that are mixed."""
        partners, chance = below(words[:, 1], samples), uniform(words[:, 2])
        mixup, cutmix = (None if table is None else from_quantiles(table, chance) for table in self._tables)
        if cutmix is None:
            assert mixup is not None
            return partners, mixup[:, None, None, None], mixup
        outside = ~self._box(cutmix, words[:, 3:5], size)
        left = outside.sum((1, 2, 3)) / (size[0] * size[1])
        weight = outside.to(torch.float32)
        if mixup is not None:
            mixes = words[:, 5] < 0
            weight = torch.where(mixes[:, None, None, None], mixup[:, None, None, None], weight)
            left = torch.where(mixes, mixup, left)
        return partners, weight, left

    @staticmethod
    def _box(kept: Tensor, words: Tensor, size: tuple[int, int]) -> Bool[Tensor, "batch 1 height width"]:
        edges: list[Tensor] = []
        for axis, length in enumerate(size):
            side = (length * (1 - kept).sqrt()).round().to(torch.int64)
            first = below(words[:, axis], length) - side // 2
            edges += [first, first + side]
        top, bottom, left, right = edges
        return box_mask(top, left, bottom, right, size)
