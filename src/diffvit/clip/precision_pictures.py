"""Pictures for the encoder: CIFAR-10, a folder of images, or the built-in shapes; resized as CLIP does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffvit.cache import cache_folder
from diffvit.clip.encoder import IMAGE_SIZE, MEAN, STD
from diffvit.data import cifar10, shapes, sources
from diffvit.data.images import decode
from diffvit.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}


@dataclass(frozen=True)
class Pictures:
    """Normalised pixels, float32 (n, 3, 224, 224), and what to call them."""

    pixels: Tensor
    name: str

    def batch(self, size: int) -> Tensor:
        """The first ``size`` pictures, from the start again where there are fewer."""
        return self.pixels[torch.arange(size) % len(self.pixels)].contiguous()


def pictures(data_dir: Path | None, count: int, *, size: int = IMAGE_SIZE) -> Pictures:
    """Real images where there are any; nothing is downloaded.

    Args:
        data_dir: holds CIFAR-10 (see :func:`diffvit.data.sources.load`), or images in it and in folders below it.
            Without it: CIFAR-10 where ``DIFFVIT_DATA`` points, else in the user's cache; else the built-in shapes.
        count: images wanted; a folder may have fewer.
        size: side of the square they are resized to, pixels, bicubic.

    Raises:
        InputError: no such folder, nothing in it, or a damaged image.
    """
    place = sources.place_of("cifar10", data_dir)
    if place is not None and not place.is_dir():
        raise InputError(str(place), "no such folder", "--data-dir and DIFFVIT_DATA name the folder that data lies in.")
    if found := cifar10.find(place or cache_folder()):
        images = cifar10.load(found, "test")
        chosen = images.pixels[:count].numpy()
        return Pictures(_prepared(list(chosen), size), f"{images.name}, test, enlarged to {size} pixels")
    if data_dir is None:
        drawn = shapes.generate("test", count, size=size)
        return Pictures(_prepared(list(drawn.pixels.numpy()), size), f"{drawn.name}, drawn at {size} pixels")
    files = sorted(path for path in data_dir.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise InputError(str(data_dir), "holds neither CIFAR-10 nor images", "Leave --data-dir out for shapes.")
    count = min(count, len(files))
    spread = [files[place * len(files) // count] for place in range(count)]  # over all folders, not the first alone
    decoded = [decode(path, name=str(path)) for path in spread]
    return Pictures(_prepared(decoded, size), f"folder {data_dir.resolve().name}")


def _prepared(images: list[np.ndarray], size: int) -> Tensor:
    """Centred squares, bicubic, with CLIP's mean and deviation taken out."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    squares = torch.from_numpy(np.stack([bicubic(image, size) for image in images]))
    return (squares.float() / 255 - mean) / std


def bicubic(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of uint8 (3, height, width), bicubic (antialiased) to (3, size, size)."""
    _, height, width = pixels.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))
