"""What becomes of an image before a model sees it; said in words beside every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from diffvit.data.images import to_array, to_picture
from diffvit.errors import InputError

_LARGEST = 25_000_000  # pixels of an enlarged picture
_SAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise: open_clip's and torchvision's evaluation transforms on RGB images.

    The shorter side is brought to ``resize`` pixels (``bicubic`` or ``bilinear``, antialiased by Pillow), and the
    centre of ``size`` pixels is what the model sees; where ``squash``, both sides are brought to ``size`` instead.
    ``mean`` and ``std`` are per channel, of pixels from 0 to 1.
    """

    size: int
    resize: int
    interpolation: str
    squash: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: UInt8[np.ndarray, "3 h w"]) -> Float32[Tensor, "3 s s"]:
        """One image, 0 to 255, as the model wants it."""
        return self.normalised(torch.from_numpy(self.square(pixels)))

    def normalised(self, squares: UInt8[Tensor, "*n 3 s s"]) -> Float32[Tensor, "*n 3 s s"]:
        """Squares, 0 to 255, as the model wants them."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (squares.float().div(255) - mean) / std

    def square(self, pixels: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 s s"]:
        """The part of the image that the model sees, before it is normalised."""
        pixels = self._shortened(pixels)
        _, height, width = pixels.shape
        image = to_picture(pixels)
        sides = (self.size, self.size)
        if not self.squash:
            short = min(height, width)
            sides = (self.resize * width // short, self.resize * height // short)
        scaled = image if image.size == sides else image.resize(sides, _SAMPLING[self.interpolation])
        left, top = (round((side - self.size) / 2.0) for side in scaled.size)
        cropped = scaled.crop((left, top, left + self.size, top + self.size))
        return to_array(cropped)

    def _shortened(self, pixels: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 h2 w2"]:
        """A strip so long that it would grow beyond an image's limit is cut around its centre first."""
        _, height, width = pixels.shape
        short, long = sorted((height, width))
        if self.squash or self.resize**2 * long // short <= _LARGEST:
            return pixels
        first = (long - 8 * short) // 2
        return pixels[:, first : first + 8 * short] if height > width else pixels[:, :, first : first + 8 * short]

    @property
    def words(self) -> str:
        """All of it on one line."""
        way = f"{self.interpolation}, antialiased"
        shape = f"both sides to {self.size} ({way})"
        if not self.squash:
            shape = f"shorter side to {self.resize} ({way}), centre crop {self.size}"
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{shape}, mean {mean}, std {std}"


def of_clip(settings: Mapping[str, Any], size: Any, mean: Any, std: Any) -> Preprocessing:
    """What open_clip does for weights with these settings (empty: as OpenAI's); ``mean`` and ``std`` where it has none.

    Raises:
        InputError: a kind of resizing or an image tower's ``size`` that is not supported.
    """
    sides = set(size) if isinstance(size, tuple | list) else {size}
    mode, way = settings.get("resize_mode", "shortest"), settings.get("interpolation", "bicubic")
    if len(sides) != 1 or mode not in ("shortest", "squash") or way not in _SAMPLING:
        raise InputError("preprocessing", f"is not supported (size {size}, resize {mode}, {way})")
    side = int(sides.pop())
    mean, std = settings.get("mean", mean), settings.get("std", std)
    return Preprocessing(side, side, way, mode == "squash", tuple(mean), tuple(std))


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """What timm, and so torchvision for its own weights, does when it evaluates a model with these settings."""
    size = int(config.get("test_input_size", config["input_size"])[-1])
    resize = int(size / config.get("test_crop_pct", config["crop_pct"]))  # timm rounds down too
    return Preprocessing(size, resize, config["interpolation"], False, tuple(config["mean"]), tuple(config["std"]))


def of_ours(size: int, meta: Mapping[str, Any]) -> Preprocessing:
    """What a model of ours wants: images of this side, with the ``mean`` and ``std`` of the data it was trained on."""
    return Preprocessing(size, size, "bilinear", False, tuple(meta["mean"]), tuple(meta["std"]))
