"""Models with their preprocessing, and input images from files, folders or a run's own data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from diffvit.attention.capture import AnyModel, patch_size_of
from diffvit.data.images import Images, read_each, resize, to_array, to_picture, with_channels
from diffvit.errors import ConfigError, InputError, Size, few, suggestion
from diffvit.hub import adapters
from diffvit.models.vit import VisionTransformer
from diffvit.training.environment import resolve_device
from diffvit.training.evaluate import images_of
from diffvit.training.load import Meta, at_size, load_with_meta

LARGEST = 480  # pixels of an image's shorter side by default, as in DINO's figures


@dataclass(frozen=True)
class LoadedModel:
    """A model with what its input and output need.

    Args:
        model: in evaluation mode, on its device.
        name: shown in titles.
        mean: per channel of its training data, 0 to 1.
        std: per channel, likewise.
        classes: names of its outputs; empty if it does not classify or they are not known.
        image_size: side of its square input, or height and width, pixels; None if it takes any multiple of its patch.
        source: where it came from, for a caption.
        folder: its run folder, if it has one.
        reference: what :func:`diffvit.load` took; empty for a pretrained model.
        meta: what its file says of itself (:func:`diffvit.training.load.load_with_meta`).
    """

    model: AnyModel
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]
    image_size: Size | None
    source: str = ""
    folder: Path | None = None
    reference: str = ""
    meta: Meta = field(default_factory=dict)

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return patch_size_of(self.model)

    @property
    def resized(self) -> bool:
        """Whether it takes images of another size than it was trained for."""
        return isinstance(self.model, VisionTransformer) and self.model.patch_embed.grid != self.model.grid

    def normalised(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n chans h w"]:
        """Pixels normalised as in training."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (with_channels(pixels, len(self.mean)).float() / 255 - mean) / std

    def class_index(self, text: str) -> int:
        """The output of a class, from its name or its index as text.

        Raises:
            ConfigError: no such class.
        """
        count = int(self.model.settings["num_classes"])
        if text in self.classes:
            return list(self.classes).index(text)
        if not (text.isdecimal() and int(text) < count):
            have = few(self.classes, 20) or (f"0 to {count - 1}" if count else "none")
            hint = suggestion(text, self.classes)
            raise ConfigError("--target", f"no class {text!r} (have {have})", hint)
        return int(text)


@dataclass(frozen=True)
class Sample:
    """One image.

    Args:
        name: of its file (:func:`read_samples`), or its index in a data set.
        pixels: RGB, of the model's size, not normalised.
        label: the true class, if known.
        mask: the object's pixels, if known.
    """

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    label: str = ""
    mask: Bool[Tensor, "h w"] | None = None


def load_model(
    reference: Path | str | None = None,
    *,
    pretrained: str | None = None,
    weights: Path | None = None,
    size: Size | None = None,
    device: str = "auto",
) -> LoadedModel:
    """Load a model trained with diffvit, or a pretrained one.

    Args:
        reference: a run folder, a weights file of ours or a packaged name; None for a pretrained model.
        pretrained: name of a pretrained model; see :func:`diffvit.hub.adapters.load_model`.
        weights: a file with its weights.
        size: another side of the images than our model was trained for, or (height, width), pixels; its positions are
            interpolated. A pretrained model takes any size: see :func:`read_samples`.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: no such pretrained model, or the patch does not divide the size.
        InputError: no such model, damaged weights, or a part that is not supported.
        EnvironmentFault: a pretrained model without timm, or without network.
    """
    if reference is None:
        found = adapters.load_model(pretrained, weights)
        model = found.model.to(resolve_device(device))
        only = isinstance(model, adapters.AdaptedModel) and not model.adapter.any_size
        size = model.settings["image_size"] if only else None
        return LoadedModel(model, found.name, found.mean, found.std, found.classes or [], size, found.source)
    model, meta = load_with_meta(reference, device=resolve_device(device))
    model = at_size(model, size)
    folder = Path(reference).resolve() if Path(reference).is_dir() else None
    name, data, size = folder.name if folder else Path(reference).stem, meta["data"], model.settings["image_size"]
    facts = (meta["mean"], meta["std"], meta["classes"], size)
    return LoadedModel(model, name, *facts, f"trained on {data}", folder, str(reference), meta)


def labelled_images(
    model: LoadedModel, *, split: str = "test", data: str | None = None, data_dir: Path | None = None
) -> Images:
    """The images a model of ours is evaluated on; arguments as :func:`diffvit.evaluate`.

    Raises:
        ConfigError: the model does not say which data it is for.
        InputError: the data is missing, damaged, or not the model's.
    """
    size = model.model.settings["image_size"]
    return images_of(model.reference, size, model.meta, split=split, data=data, data_dir=data_dir)[0]


def samples_of(images: Images, indices: Sequence[int]) -> list[Sample]:
    """Samples of a data set by index.

    Raises:
        ConfigError: no such index.
    """
    for index in indices:
        if not 0 <= index < len(images):
            raise ConfigError("--index", f"no such image (found {index} vs 0 to {len(images) - 1} of {images.name})")
    masks = images.masks
    labels = [images.classes[int(images.labels[index])] for index in indices]
    pixels = with_channels(images.pixels[list(indices)], 3)
    return [
        Sample(f"{index}", pixels[place], label, None if masks is None else masks[index])
        for place, (index, label) in enumerate(zip(indices, labels, strict=True))
    ]


def read_samples(
    paths: Sequence[Path | str], model: LoadedModel, *, size: int | None = None
) -> tuple[list[Sample], list[InputError]]:
    """Samples from image files, folders and patterns, resized to the model's input, and the files that cannot be read.

    A model of one size gets the centred square, resampled to it. For others the image keeps its shape: its shorter side
    becomes ``size``, if given, else at most 480 pixels; then the edges are cropped, evenly, to whole patches. A sample
    has the name of its file, with as many folders before it as tell it from the others.

    Raises:
        ConfigError: a ``size`` for a model of one size, or smaller than a patch.
    """
    if size is not None and model.image_size is not None and size != model.image_size:
        why = f"{model.name} takes one size alone (found {size} vs {model.image_size})"
        raise ConfigError("--size", why, "Load it for another: load_model(reference, size=).")
    if size is not None and size < model.patch_size:
        raise ConfigError("--size", f"is smaller than a patch (found {size} vs at least {model.patch_size})")
    found, bad = read_each(paths, lambda pixels, name: torch.from_numpy(fit(pixels, model, name, size=size)))
    names = shortest_names([file for file, _ in found])
    return [Sample(name, pixels) for name, (_, pixels) in zip(names, found, strict=True)], bad


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path that no other path has: ``7.png``, or ``cat/7.png`` beside ``dog/7.png``."""
    ends = {path: [path.parts[at:] for at in reversed(range(len(path.parts)))] for path in paths}
    counts = Counter(end for some in ends.values() for end in some)
    return [str(Path(*next((end for end in ends[path] if counts[end] == 1), path.parts))) for path in paths]


def fit(
    pixels: UInt8[np.ndarray, "3 h w"], model: LoadedModel, name: str, *, size: int | None = None
) -> UInt8[np.ndarray, "3 tall wide"]:
    """Resize and crop an image to the model's input; see :func:`read_samples`.

    Args:
        pixels: of the whole image.
        model: the model.
        name: of the image, for errors.
        size: shorter side, pixels, for a model that takes any.

    Raises:
        InputError: it is smaller than a patch.
    """
    if model.image_size is not None:
        return resize(pixels, model.image_size)
    _, height, width = pixels.shape
    shorter = min(height, width)
    wanted = size or min(shorter, LARGEST)
    if wanted != shorter:
        scale = wanted / shorter
        shape = (max(wanted, round(width * scale)), max(wanted, round(height * scale)))
        pixels = to_array(to_picture(pixels).resize(shape, Image.Resampling.BICUBIC))
        _, height, width = pixels.shape
    patch = model.patch_size
    tall, wide = height // patch * patch, width // patch * patch
    if not tall or not wide:
        raise InputError(name, f"is smaller than a patch ({width} x {height} vs {patch} pixels a side)")
    top, left = (height - tall) // 2, (width - wide) // 2
    return np.ascontiguousarray(pixels[:, top : top + tall, left : left + wide])
