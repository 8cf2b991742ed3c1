"""What is looked into, and at what: a model with all it takes to show it a picture, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from diffvit.attention.capture import Inside
from diffvit.data.images import Images, decode, resize
from diffvit.errors import ConfigError, InputError
from diffvit.training.environment import resolve_device
from diffvit.training.evaluate import config_of, images_of
from diffvit.training.load import load_with_meta

LARGEST = 480  # pixels of a picture's shorter side, unless asked otherwise: DINO's own size for looking


@dataclass(frozen=True)
class Subject:
    """A model to look into.

    Args:
        model: in evaluation mode, on its device.
        name: what to call it.
        mean: of each channel of its training data, 0 to 1.
        std: likewise.
        classes: names of its outputs; empty where it does not classify, or nobody knows.
        side: of its square input, pixels; None where it takes any multiple of its patch.
        source: where it came from, for a caption.
        folder: its run folder; None where it has none.
    """

    model: Inside
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]
    side: int | None
    source: str = ""
    folder: Path | None = None

    @property
    def patch(self) -> int:
        """Side of a patch, pixels."""
        return self.model.patch_embed.patch_size

    def normalised(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Pixels as the model was trained to see them."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class Picture:
    """One image to look at.

    Args:
        name: of its file, or its place in a set.
        pixels: as the model will see it, but for the normalisation.
        label: the true class, where known.
        mask: where the object is, where known.
    """

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    label: str = ""
    mask: Bool[Tensor, "h w"] | None = None


def of_run(reference: Path | str, *, device: str = "auto") -> Subject:
    """A trained model: a run folder, a weights file or a packaged name.

    Raises:
        InputError: no such model, or a damaged one.
    """
    model, meta = load_with_meta(reference, device=resolve_device(device))
    folder = Path(reference).resolve() if Path(reference).is_dir() else None
    name = folder.name if folder else Path(reference).stem
    side, source = model.settings["image_size"], f"trained on {meta['data']}"
    return Subject(model, name, meta["mean"], meta["std"], meta["classes"], side, source, folder)


def labelled_images(
    reference: Path | str, *, split: str = "test", data: str | None = None, data_dir: Path | None = None
) -> Images:
    """The images a run was, or could have been, scored on; see :func:`diffvit.evaluate`.

    Raises:
        ConfigError: the model does not say which data it is for.
        InputError: the data is missing, damaged, or not the model's.
    """
    model, meta = load_with_meta(reference)
    config = config_of(reference, meta)
    return images_of(reference, model.settings["image_size"], meta, config, (split, data, data_dir))


def from_set(images: Images, indices: Sequence[int]) -> list[Picture]:
    """Pictures of a set by their place in it.

    Raises:
        ConfigError: the set has no such image.
    """
    for index in indices:
        if not 0 <= index < len(images):
            raise ConfigError("--index", f"no such image (found {index} vs 0 to {len(images) - 1} of {images.name})")
    masks = images.masks
    return [
        Picture(
            f"{index}",
            images.pixels[index],
            images.classes[int(images.labels[index])],
            None if masks is None else masks[index],
        )
        for index in indices
    ]


def from_files(paths: Sequence[Path], subject: Subject, *, size: int | None = None) -> list[Picture]:
    """Pictures from image files, and from every file of folders, fitted to the model's input.

    A model of one size gets the centred square, resampled to it. Another keeps the picture's shape: its shorter side
    is brought to ``size``, if given, else to at most 480 pixels; then the edges are cropped, evenly, to whole patches.

    Raises:
        ConfigError: a ``size`` for a model that has one of its own, or smaller than a patch.
        InputError: no such file, nothing in a folder, or not an image that can be decoded.
    """
    if size is not None and subject.side is not None and size != subject.side:
        raise ConfigError("--size", f"{subject.name} takes one size alone (found {size} vs {subject.side})")
    if size is not None and size < subject.patch:
        raise ConfigError("--size", f"is smaller than a patch (found {size} vs at least {subject.patch})")
    files = [file for path in paths for file in _files(path)]
    return [Picture(file.name, torch.from_numpy(_fitted(file, subject, size))) for file in files]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not found:
        raise InputError(str(path), "is a folder without images", "Name image files, or a folder that holds some.")
    return found


def _fitted(file: Path, subject: Subject, size: int | None) -> UInt8[np.ndarray, "3 tall wide"]:
    return fit(decode(file, name=str(file)), subject, str(file), size=size)


def fit(
    pixels: UInt8[np.ndarray, "3 h w"], subject: Subject, name: str, *, size: int | None = None
) -> UInt8[np.ndarray, "3 tall wide"]:
    """A picture as a model takes it; see :func:`from_files`.

    Args:
        pixels: of the whole picture.
        subject: the model.
        name: what an error calls the picture.
        size: shorter side, pixels, for a model that takes any.

    Raises:
        InputError: it is smaller than a patch.
    """
    if subject.side is not None:
        return resize(pixels, subject.side)
    _, height, width = pixels.shape
    shorter = min(height, width)
    wanted = size or min(shorter, LARGEST)
    if wanted != shorter:
        scale = wanted / shorter
        shape = (max(wanted, round(width * scale)), max(wanted, round(height * scale)))
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        pixels = np.asarray(image.resize(shape, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return _cropped(pixels, subject.patch, name)


def _cropped(pixels: UInt8[np.ndarray, "3 h w"], patch: int, name: str) -> UInt8[np.ndarray, "3 tall wide"]:
    _, height, width = pixels.shape
    tall, wide = height // patch * patch, width // patch * patch
    if not tall or not wide:
        raise InputError(name, f"is smaller than a patch ({width} x {height} vs {patch} pixels a side)")
    top, left = (height - tall) // 2, (width - wide) // 2
    return np.ascontiguousarray(pixels[:, top : top + tall, left : left + wide])


def of_pretrained(name: str | None, weights: Path | None, *, device: str = "auto") -> Subject:
    """A pretrained model by timm's name, or from a weights file; see :mod:`diffvit.hub.pretrained`.

    Raises:
        ConfigError: no such model.
        InputError: weights that do not fit, or a part that is not supported.
        EnvironmentFault: no timm, or no network.
    """
    from diffvit.hub.pretrained import load_pretrained

    found = load_pretrained(name, weights)
    model = found.model.to(resolve_device(device))
    return Subject(model, found.name, found.mean, found.std, found.classes or [], None, found.source)
