"""Images given in Python: tensors, arrays, Pillow's pictures, and data sets of torch, torchvision or Hugging Face.

All become uint8 pixels of the model's size, as :class:`diffvit.data.images.Images` has them. Values in floating point
must lie in 0 to 1: they are multiplied by 255 and rounded.
"""

from __future__ import annotations

import hashlib
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from diffvit.data.batches import normalise
from diffvit.data.images import Images, decode, fingerprint, is_grey, set_apart, sized, to_rgb, with_channels
from diffvit.errors import InputError, Size, few

NAME = "images given in Python"
_LAYOUTS = "(n, c, h, w), (n, h, w, c) or (n, h, w), with 1 or 3 channels"
_MOST_CLASSES = 1_000_000  # where only indices are given
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")  # columns of a data set


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into a model's input: float32 (chans, height, width) on the CPU, resized and normalised.

    Called with a path, a Pillow picture, or an array or tensor: uint8 or floating point in 0 to 1, (chans, height,
    width), (height, width, chans) or (height, width). :func:`diffvit.data.images.resize` brings it to ``image_size``;
    ``mean`` and ``std`` are those of each channel of the training images, in 0 to 1. InputError for anything else.
    """

    image_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Any) -> Float32[Tensor, "chans tall wide"]:
        """The model's input."""
        return normalise(self.pixels(image)[None], self.mean, self.std)[0]

    def pixels(self, image: Any, name: str = "image") -> UInt8[Tensor, "chans tall wide"]:
        """As a call gives it, not normalised."""
        return sized(one_image(image, name)[None], self.image_size, len(self.mean))[0]


def one_image(image: Any, name: str = "image") -> UInt8[Tensor, "chans h w"]:
    """A path, a Pillow picture, an array or a tensor as uint8 pixels with 1 or 3 channels; else InputError."""
    if isinstance(image, str | Path):
        return torch.from_numpy(decode(Path(image), name=str(image)))
    if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):  # a Hugging Face column of encoded images
        return torch.from_numpy(decode(image["bytes"], name=name))
    if isinstance(image, Image.Image):
        try:
            pixels = torch.from_numpy(np.array(to_rgb(image.copy()))).permute(2, 0, 1)
        except Exception as error:  # what Pillow raises when it reads the file of a damaged picture
            raise InputError(name, f"cannot be decoded as an image ({' '.join(str(error).split())[:120]})") from None
        return pixels[:1] if is_grey(image) else pixels
    if not isinstance(image, Tensor | np.ndarray):
        raise InputError(name, f"is no image (found {type(image).__name__} vs a path, a picture, an array, a tensor)")
    return as_bytes(channels_first(image[None, None] if image.ndim == 2 else image[None], name), name)[0]


def channels_first(images: Tensor | np.ndarray, name: str = "images", channels: int | None = None) -> Tensor:
    """Images as a tensor (n, c, h, w) of the type they have; (n, c, h, w), (n, h, w, c) and (n, h, w) are taken.

    Where both the second and the last dimension could be the channels, the second is. InputError for another shape; for
    three dimensions also where ``channels`` is 3 and one of them is 3, which may be a single image.
    """
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uif":
            raise InputError(name, f"has another type than images have (found {images.dtype} vs uint8, floating point)")
        images = np.ascontiguousarray(images)
        images = images if images.flags.writeable else images.copy()  # of others torch warns
    values = torch.as_tensor(images).detach()
    shape, hint = tuple(values.shape), ""
    if values.ndim == 3:
        single = channels == 3 in (shape[0], shape[2]) or shape[2] == 1
        values, hint = (values, "For one image give image[None].") if single else (values[:, None], "")
    elif values.ndim == 4 and shape[1] not in (1, 3):
        values = values.permute(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3) or not min(values.shape[2:]):
        raise InputError(name, f"has another shape than images have (found {shape} vs {_LAYOUTS})", hint)
    return values


def as_bytes(values: Tensor, name: str = "images") -> UInt8[Tensor, "*shape"]:
    """Pixels as uint8 on the CPU; floating point is multiplied by 255 and rounded.

    InputError for another type, and for floating point that leaves 0 to 1, with the range found.
    """
    if values.dtype == torch.uint8:
        return values.cpu()
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise InputError(name, f"has another type than images have (found {kind} vs uint8, or floating point 0 to 1)")
    if values.numel():
        low, high = (float(value) for value in values.aminmax())
        if not (low >= 0 and high <= 1):
            hint = "Scale the values, or give uint8; normalising is done later."
            raise InputError(name, f"floating point must lie in 0 to 1 (found {low:g} to {high:g})", hint)
    return values.cpu().float().mul(255).round_().to(torch.uint8)


def from_data(
    data: Any,
    *,
    image_size: Size,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    matched: bool = False,
) -> Images:
    """Labelled images given in Python, all read and resized.

    Args:
        data: ``(images, labels)``; or a map-style data set of ``(image, label)`` samples, or of dicts with ``image``
            (or ``img``) and ``label`` (or ``fine_label``), as Hugging Face's. ``images`` are what
            :func:`channels_first` takes, or a sequence of what :func:`one_image` takes; labels are class indices or
            class names.
        image_size: side of the images, or height and width, pixels; others are resized.
        channels: 1 or 3; by default the images', RGB where only some are grey.
        classes: names of the classes; by default the data set's own, else the labels themselves.
        matched: the classes are a model's: where the data set has names of its own, labels are matched by name.

    Raises:
        InputError: the data is none of these, or a sample of it cannot be read: its index is named.
    """
    if isinstance(data, tuple) and len(data) == 2 and not hasattr(data, "column_names"):
        images, labels, own = *data, None
        if not isinstance(images, Tensor | np.ndarray):
            images = _read(lambda place: one_image(images[place], f"image {place}"), len(images), image_size, channels)
        else:
            images = sized(as_bytes(channels_first(images)), image_size, channels)
        labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    else:
        sample, own, labels = _samples(data), _names_in(data), []

        def image(place: int) -> Tensor:
            picture, label = sample(place)
            labels.append(label)
            return one_image(picture, f"sample {place}")

        images = _read(image, len(data), image_size, channels)
    if len(images) != len(labels):
        raise InputError("data", f"has another number of labels than of images ({len(labels)} vs {len(images)})")
    if not labels:
        raise InputError("data", "holds no images")
    names, numbers = _numbered(labels, own, classes, matched)
    return Images(images, numbers, names, NAME, fingerprint(images, numbers, names))


def samples(data: Any) -> Iterator[tuple[str, Any]]:
    """A name (``image 0``) and the image of each sample of a data set, or of anything to iterate over; no labels.

    A data set's are read when they are asked for; what cannot be read gives an InputError in the place of an image.
    InputError where there is nothing to iterate over.
    """
    indexed = hasattr(data, "__len__") and (hasattr(data, "column_names") or not hasattr(data, "__iter__"))
    if isinstance(data, dict) or not (indexed or hasattr(data, "__iter__")):
        raise InputError("images", f"are none (found {type(data).__name__} vs paths, pictures, an array, a data set)")
    for place, each in enumerate(range(len(data)) if indexed else data):
        try:
            sample = data[each] if indexed else each
        except Exception as error:
            sample = InputError(f"image {place}", f"cannot be read ({type(error).__name__}: {str(error)[:200]})")
        if isinstance(sample, dict):
            sample = next((sample[name] for name in _IMAGES if name in sample), sample)
        yield f"image {place}", sample[0] if isinstance(sample, tuple) and sample else sample


def _samples(data: Any) -> Callable[[int], tuple[Any, Any]]:
    """From an index to the image and the label of a data set's sample."""
    if isinstance(data, dict):
        why = f"is a dict of {', '.join(map(str, data))}, not one data set"
        raise InputError("data", why, "Pass one as data=, another as test=.")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str | Tensor | np.ndarray):
        why = f"is neither (images, labels) nor a data set with a length (found {type(data).__name__})"
        raise InputError("data", why, "A data set that is only iterated over has to be read into a list first.")

    def sample(place: int) -> tuple[Any, Any]:
        found = data[place]
        if not isinstance(found, dict):
            image, label = found
            return image, label
        keys = [next((name for name in names if name in found), None) for names in (_IMAGES, _LABELS)]
        if None in keys:
            raise ValueError(f"columns {', '.join(found)} vs image and label")
        return found[keys[0]], found[keys[1]]

    return sample


def _names_in(data: Any) -> list[str] | None:
    """A data set's own names of its classes: torchvision's ``.classes``, also of a Subset; Hugging Face's features."""
    features = getattr(data, "features", None)
    if isinstance(features, dict):
        label: Any = next((features[name] for name in _LABELS if name in features), None)
        names = getattr(label, "names", None)
        return None if names is None else list(names)
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    return None if getattr(data, "classes", None) is None else [str(name) for name in data.classes]


def _read(image: Callable[[int], Tensor], count: int, size: Size, channels: int | None) -> Tensor:
    """Every image, resized as soon as it is read; an exception becomes an InputError that names its place."""
    images: list[Tensor] = []
    for place in range(count):
        try:
            images.append(sized(image(place)[None], size, channels)[0])
        except InputError as error:
            raise InputError(f"sample {place} of the data", error.why, error.hint) from error
        except Exception as error:
            why = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            raise InputError(f"sample {place} of the data", why, "Mend that sample, or leave it out.") from error
    most = max((len(pixels) for pixels in images), default=channels or 1)
    return torch.stack([with_channels(pixels[None], most)[0] for pixels in images]) if images else torch.empty(0)


def _numbered(
    labels: Sequence[Any], own: Sequence[str] | None, classes: Sequence[str] | None, matched: bool
) -> tuple[list[str], Int64[Tensor, " n"]]:
    """The names of the classes, and the place of each label in them."""
    if classes and len(set(classes)) < len(classes):
        raise InputError("classes", f"names a class twice (found {', '.join(map(str, classes[:10]))})")
    if all(isinstance(label, str) for label in labels):
        names = list(classes or own or sorted(set(labels)))
    else:
        numbers = [_index(label, place) for place, label in enumerate(labels)]
        if not (classes or own) and (most := max(numbers)) >= _MOST_CLASSES:
            where = f"label {numbers.index(most)}"
            raise InputError(where, f"is too large for the index of a class ({most} vs under {_MOST_CLASSES:,})")
        names = list(classes or own or map(str, range(max(numbers) + 1)))
        if not (matched and own and classes):
            found = torch.tensor(_checked(numbers, names))
            if not (classes or own) and (empty := sorted({*range(len(names))}.difference(numbers))):
                why = f"labels: {len(empty)} of {len(names)} classes have no images (indices {few(empty)})"
                warnings.warn(f"{why}. Number the labels without gaps, or pass classes=.", stacklevel=2)
            return names, found
        labels = [own[number] for number in _checked(numbers, own)]
    places = {name: place for place, name in enumerate(names)}
    if unknown := sorted({label for label in labels if label not in places}):
        raise InputError("labels", f"have a class that is not among the classes ({unknown[0]} vs {few(names)})")
    return names, torch.tensor([places[label] for label in labels])


def _index(label: Any, place: int) -> int:
    try:
        number: Any = label.item() if isinstance(label, Tensor | np.ndarray) else label
        return operator.index(number)
    except (TypeError, ValueError):
        why = f"is no class (found {str(label)[:40]!r} vs an index or a name)"
        raise InputError(f"label {place}", why) from None


def _checked(numbers: list[int], names: Sequence[str]) -> list[int]:
    for place, number in enumerate(numbers):
        if not 0 <= number < len(names):
            raise InputError(f"label {place}", f"is outside the classes ({number} vs 0 to {len(names) - 1})")
    return numbers


def splits(
    data: Any,
    test: Any = None,
    *,
    image_size: Size,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    test_size: float = 0.2,
) -> dict[str, Images]:
    """``train`` and ``test`` images of :func:`from_data`; without ``test`` a share of ``data`` is set apart.

    See :func:`diffvit.data.images.set_apart`. InputError where there are too few images for both.
    """
    train = from_data(data, image_size=image_size, channels=channels, classes=classes)
    if test is not None:
        how = {"image_size": image_size, "channels": train.pixels.shape[1], "classes": train.classes}
        try:
            return {"train": replace(train, own_test=True), "test": from_data(test, **how, matched=True)}
        except InputError as error:
            raise InputError(f"test: {error.what}", error.why, error.hint) from error
    hashes = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in train.pixels]
    held = torch.zeros(len(train), dtype=torch.bool)
    held[set_apart(train.labels.tolist(), hashes, test_size)] = True
    if not held.any():
        raise InputError("data", "has too few images to set some apart for the test", "Pass test=.")
    return {name: train.select(torch.nonzero(mask)[:, 0]) for name, mask in (("train", ~held), ("test", held))}
