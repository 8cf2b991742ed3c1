"""Test images to choose from, by class and by who mistakes them; read from this machine alone, nothing is fetched."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from diffvit.app.kept import Kept
from diffvit.app.models import Models
from diffvit.attention.subject import labelled_images
from diffvit.cache import cache_folder
from diffvit.data import cifar10
from diffvit.data.images import Images
from diffvit.data.sources import place_of
from diffvit.errors import InputError
from diffvit.training.environment import resolve_precision
from diffvit.training.score import logits_of

ALL = "every image"
WRONG, ONLY_FIRST, ONLY_SECOND, BOTH_WRONG = (
    "the first model mistakes it",
    "only the first model is right",
    "only the second model is right",
    "both models mistake it",
)
FILTERS = (ALL, WRONG, ONLY_FIRST, ONLY_SECOND, BOTH_WRONG)


class TestSets:
    """The test sets of the offered models.

    Args:
        models: the offers.
        data_dir: where the data lies, if not where each run has its own; CIFAR-10 is looked for there, else where
            ``DIFFVIT_DATA`` points, then in the user's cache folder.
    """

    __test__ = False  # for pytest: no test

    def __init__(self, models: Models, data_dir: Path | None) -> None:
        self._models, self._data_dir = models, data_dir
        self._images: Kept[Images] = Kept(4)
        self._answers: Kept[Tensor] = Kept(32)
        self._reading = threading.Lock()

    def images(self, name: str) -> Images:
        """The test images of a model.

        Raises:
            InputError: no such model, its data is not on this machine, or it is pretrained and has none.
        """
        offer = self._models.offer(name)
        if offer.pretrained:
            hint = "Bring a picture of your own, or choose one of another model's and come back."
            raise InputError(name, "is pretrained and has no test images here", hint)
        size = self._models.subject(name).side
        place = self._local_cifar10() if offer.data.startswith("CIFAR-10") else self._data_dir
        with self._reading:
            return self._images.get(
                (offer.data, size, tuple(self._models.subject(name).classes)),
                lambda: labelled_images(offer.reference, data_dir=place),
            )

    def _local_cifar10(self) -> Path:
        for place in (place_of("cifar10", self._data_dir), cache_folder()):
            if place is not None and place.is_dir() and cifar10.find(place):
                return place
        hint = "Fetch it with: diffvit data fetch cifar10, and start again; or bring a picture of your own."
        raise InputError("CIFAR-10", "is not on this machine", hint)

    def answers(self, name: str) -> Int64[Tensor, " n"]:
        """The class that a model gives each of its test images.

        Raises:
            InputError: as :meth:`images`.
        """
        images, subject = self.images(name), self._models.subject(name)

        def answer() -> Tensor:
            device = next(iter(subject.model.blocks.parameters())).device
            assert isinstance(subject.model, torch.nn.Module)
            return logits_of(
                subject.model,
                images.pixels,
                mean=subject.mean,
                std=subject.std,
                precision=resolve_precision("auto", device.type),
                device=device,
            ).argmax(dim=1)

        return self._answers.get(name, answer)

    def choose(self, first: str, second: str | None, label: str | None, which: str) -> list[int]:
        """Places of the first model's test images that meet the wishes.

        Args:
            first: a model.
            second: another on the same images, where ``which`` compares.
            label: a class; None for all.
            which: one of :data:`FILTERS`.

        Raises:
            InputError: no such model, class or filter; or the two models have other test images.
        """
        images = self.images(first)
        wanted = torch.ones(len(images), dtype=torch.bool)
        if label is not None:
            if label not in images.classes:
                raise InputError("class", f"is none of {images.name}'s")
            wanted &= images.labels == images.classes.index(label)
        if which not in FILTERS:
            raise InputError("filter", "is none of those that are offered")
        if which != ALL:
            wanted &= self._where(which, first, second)
        return wanted.nonzero()[:, 0].tolist()

    def _where(self, which: str, first: str, second: str | None) -> Tensor:
        ours = self._right(first)
        if which == WRONG:
            return ~ours
        if second is None:
            raise InputError("filter", "compares two models", "Choose a second one.")
        if self.images(second).fingerprint != self.images(first).fingerprint:
            raise InputError(second, f"has other test images than {first}", "Choose two models of the same data.")
        theirs = self._right(second)
        return {ONLY_FIRST: ours & ~theirs, ONLY_SECOND: theirs & ~ours, BOTH_WRONG: ~ours & ~theirs}[which]

    def _right(self, name: str) -> Tensor:
        return self.answers(name) == self.images(name).labels
