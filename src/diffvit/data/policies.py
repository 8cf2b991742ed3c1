"""RandAugment (arXiv 1909.13719) and TrivialAugment (arXiv 2103.10158) over whole batches.

Every image draws its own operations, strengths and signs; images that drew the same kind of operation are changed
together. A policy's strengths are a short list of levels, so each operation's parameters are tables made once in plain
Python floats: no device's sine enters the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diffvit.data import color_ops
from diffvit.data.geometry import affine, fixed_point
from diffvit.data.random_draws import Stream, below, hash_words

MOVES = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
COLORS = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "auto-contrast", "equalize")
OPERATIONS = (*MOVES, *COLORS, "identity")

_KINDS = ("move", *COLORS, "identity")  # one gather serves all moves
_ENHANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": color_ops.brightness,
    "color": color_ops.saturation,
    "contrast": color_ops.contrast,
    "sharpness": color_ops.sharpness,
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "auto-contrast": color_ops.autocontrast,
    "equalize": color_ops.equalize,
    "identity": lambda pixels: pixels,
}


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
    """The affine map (output to input, see :func:`geometry.fixed_point`) of one of :data:`MOVES`.

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

    Args:
        space: strengths and ranges.
        rounds: operations in a row.
        size: (height, width) of the images.
        fill: uint8 (3,), the colour of places that a move uncovers.
        every: do every operation to every image and keep the one that was drawn. More work, but on an accelerator less
            time: how many images drew what would have to be waited for.
    """

    def __init__(
        self, space: Space, rounds: int, size: tuple[int, int], fill: UInt8[Tensor, " 3"], *, every: bool = False
    ) -> None:
        device = fill.device
        self.every = every
        self.rounds, self.fill, self.levels = rounds, fill, len(space.levels)
        full = {"rotate": space.rotate, "translate-x": space.translate, "translate-y": space.translate}
        signed = [sign * level for sign in (-1, 1) for level in space.levels]
        maps = [[fixed_point(matrix(move, full.get(move, space.shear) * s, size)) for s in signed] for move in MOVES]
        self._maps = torch.tensor(maps, device=device)
        self._factors = torch.tensor([1 + space.enhance * s for s in signed], dtype=torch.float32, device=device)
        bits = [8 - round(space.posterize * abs(s)) for s in signed]
        self._bits = torch.tensor(bits, dtype=torch.uint8, device=device)
        self._thresholds = torch.tensor([round(256 * (1 - abs(s))) for s in signed], device=device)

    def __call__(
        self, pixels: UInt8[Tensor, "batch 3 height width"], seed: int, epoch: int, indices: Int64[Tensor, " batch"]
    ) -> UInt8[Tensor, "batch 3 height width"]:
        """The images after their own draws of operations."""
        words = hash_words(seed, epoch, indices, Stream.POLICY, 2 * self.rounds)
        operations, strengths = below(words[:, 0::2], len(OPERATIONS)), below(words[:, 1::2], 2 * self.levels)
        for operation, strength in zip(operations.unbind(1), strengths.unbind(1), strict=True):
            pixels = self.apply(pixels, operation, strength)
        return pixels

    def apply(
        self,
        pixels: UInt8[Tensor, "batch 3 height width"],
        operation: Int64[Tensor, " batch"],
        strength: Int64[Tensor, " batch"],
    ) -> UInt8[Tensor, "batch 3 height width"]:
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
        if kind in _ENHANCE:
            return _ENHANCE[kind](pixels, self._factors[strength])
        if kind == "posterize":
            return color_ops.posterize(pixels, self._bits[strength])
        if kind == "solarize":
            return color_ops.solarize(pixels, self._thresholds[strength])
        return _PLAIN[kind](pixels)
