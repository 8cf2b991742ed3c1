"""Input images of the explorer: test images chosen by class and by error, uploads kept in memory, drawn shapes.

Data sets are read from this machine and never fetched; uploads are never written to a disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from diffvit.app.limits import Cache
from diffvit.app.models import Models
from diffvit.attention.inputs import Sample, labelled_images
from diffvit.data import cifar10
from diffvit.data.images import Images, decode
from diffvit.data.shapes import CLASSES, generate
from diffvit.data.sources import place_of, resized
from diffvit.errors import InputError, Size, sides
from diffvit.files import cache_folder
from diffvit.training.environment import resolve_precision
from diffvit.training.evaluate import source_name
from diffvit.training.score import logits_of

ALL = "all images"
WRONG, ONLY_FIRST, ONLY_SECOND, BOTH_WRONG = (
    "the first model is wrong",
    "only the first model is right",
    "only the second model is right",
    "both models are wrong",
)
FILTERS = (ALL, WRONG, ONLY_FIRST, ONLY_SECOND, BOTH_WRONG)
MAX_BYTES = 8 * 2**20  # of an uploaded file
MAX_PIXELS = 25_000_000  # of an uploaded picture
MIN_SIDE = 8  # pixels of an upload
LIFETIME = 3600.0  # seconds that an upload is kept
UPLOAD_BUDGET = 32 * 2**20  # bytes of all uploads
_NAME_LENGTH = 40  # of an upload, as shown
_SHAPES_PER_CLASS = 100_000  # drawn images that can be asked for


@dataclass(frozen=True)
class ImageRef:
    """Which image: of a ``test`` set of a model, an ``upload`` or ``shapes``; its index there or the upload's token."""

    kind: str
    key: int | str
    model: str = ""


class TestImages:
    """The test images of the offered models, and which of them a model classifies correctly.

    ``data_dir`` is where the data lies, if not where each run found its own; CIFAR-10 is looked for there, else where
    ``DIFFVIT_DATA`` points, then in the user's cache folder.
    """

    __test__ = False  # not a test class for pytest

    def __init__(self, models: Models, data_dir: Path | None) -> None:
        self._models, self._data_dir = models, data_dir
        self._images: Cache[Images] = Cache(4)
        self._predictions: Cache[Tensor] = Cache(32)

    def images(self, name: str) -> Images:
        """The test images of a model."""
        info = self._models.info(name)
        if info.pretrained:
            hint = "Upload a picture, or choose a test image of another model first."
            raise InputError(name, "is pretrained and has no test images here", hint)
        model = self._models.load(name)
        own_folder = info.data.startswith("folder ")  # which the run itself names
        place = None if own_folder else self._data_dir
        place = self._local_cifar10() if source_name(info.data) == "CIFAR-10" else place
        facts = (info.data, model.meta.get("fingerprint"), model.image_size, tuple(model.classes))
        key = (*facts, model.reference if own_folder else "")
        return self._images.get_or_make(key, lambda: labelled_images(model, data_dir=place))

    def _local_cifar10(self) -> Path:
        for place in (place_of("cifar10", self._data_dir), cache_folder()):
            if place is not None and place.is_dir() and cifar10.find(place):
                return place
        hint = "Fetch it with: diffvit data fetch cifar10, and restart diffvit app; or upload a picture."
        raise InputError("CIFAR-10", "is not on this machine", hint)

    def predictions(self, name: str) -> Int64[Tensor, " n"]:
        """The class that a model predicts for each of its test images; errors as :meth:`images`."""
        images, model = self.images(name), self._models.load(name)

        def predict() -> Tensor:
            device = next(model.model.parameters()).device
            options = {"mean": model.mean, "std": model.std, "precision": resolve_precision("auto", device.type)}
            return logits_of(model.model, images.pixels, device=device, **options).argmax(dim=1)

        return self._predictions.get_or_make(name, predict)

    def select(self, first: str, second: str | None, label: str | None, which: str) -> list[int]:
        """Indices of the first model's test images of a class (None: all) that pass one of :data:`FILTERS`."""
        images = self.images(first)
        selected = torch.ones(len(images), dtype=torch.bool)
        if label is not None:
            if label not in images.classes:
                raise InputError("class", f"is not a class of {images.name}")
            selected &= images.labels == images.classes.index(label)
        if which not in FILTERS:
            raise InputError("filter", "is none of those that are offered")
        if which != ALL:
            selected &= self._by_error(which, first, second)
        return selected.nonzero()[:, 0].tolist()

    def _by_error(self, which: str, first: str, second: str | None) -> Bool[Tensor, " n"]:
        if which != WRONG and second is None:
            raise InputError("filter", "compares two models", "Choose a second one.")
        images = self.images(first)
        if second is not None and which != WRONG and self.images(second).fingerprint != images.fingerprint:
            raise InputError(second, f"has other test images than {first}", "Choose two models of the same data.")
        right = self.predictions(first) == images.labels
        if which == WRONG or second is None:
            return ~right
        second_right = self.predictions(second) == self.images(second).labels
        masks = {ONLY_FIRST: right & ~second_right, ONLY_SECOND: second_right & ~right}
        return masks.get(which, ~right & ~second_right)


class Uploads:
    """Uploaded pictures by a random token, checked and decoded by our own decoder; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # By token: harmless name, encoded bytes, and when they came (monotonic seconds).
        self._files: Cache[tuple[str, bytes, float]] = Cache(UPLOAD_BUDGET, lambda upload: len(upload[1]))
        self._clock = clock

    def __len__(self) -> int:
        return len(self._files)

    def add(self, data: bytes, name: str) -> str:
        """Check a picture and keep its file; returns its token."""
        name = safe_name(name)
        if len(data) > MAX_BYTES:
            raise InputError(name, f"is too large (over {MAX_BYTES >> 20} MiB)")
        _, height, width = decode(data, name=name, most=MAX_PIXELS).shape
        if min(height, width) < MIN_SIDE:
            raise InputError(name, f"is too small ({width} x {height} vs at least {MIN_SIDE} pixels a side)")
        token = secrets.token_urlsafe(16)
        self._files.put(token, (name, data, self._clock()))
        return token

    def pixels(self, token: str) -> tuple[str, UInt8[np.ndarray, "3 h w"]]:
        """A picture's name and its pixels, decoded anew."""
        found = self._files.get(token)
        if found is None or self._clock() - found[2] > LIFETIME:
            raise InputError("the picture", "is no longer kept", "Choose it again.")
        return found[0], decode(found[1], name=found[0], most=MAX_PIXELS)


def safe_name(name: str) -> str:
    """A file's name without folders and without characters that do not print, at most 40 characters long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter for letter in last if letter.isprintable()).strip(". ")
    return shown[:_NAME_LENGTH] or "picture"


def shapes_image(index: int, *, size: Size = 32, clutter: float = 0.3, noise: float = 0.1) -> Sample:
    """A drawn image: one object among clutter, with its mask; its class is ``index`` modulo the number of classes."""
    index = min(max(index, 0), _SHAPES_PER_CLASS * len(CLASSES) - 1)
    images = generate("test", torch.tensor([index]), size=max(sides(size)), clutter=clutter, noise=noise)
    images = resized(images, size)
    assert images.masks is not None
    return Sample(f"shapes {index}", images.pixels[0], images.classes[int(images.labels[0])], images.masks[0])
