"""What every tab works with: models, pictures, looks, and the gate that all questions pass."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from diffvit.app.explorer import Explorer, Look
from diffvit.app.gate import Gate
from diffvit.app.kept import Kept
from diffvit.app.models import Models
from diffvit.app.test_sets import TestSets
from diffvit.app.uploads import Uploads
from diffvit.attention.subject import Picture, fit, from_set
from diffvit.data.shapes import CLASSES, generate_at
from diffvit.errors import DiffvitError, InputError

AT_ONCE, WAITING = 2, 24
_FIGURES_WAITING = 6  # figures are drawn one at a time, so that dials are answered meanwhile
_FIGURES = 256  # that can be fetched as a file
_SCENES = 100_000  # built-in pictures that can be asked for, of each class


@dataclass(frozen=True)
class Chosen:
    """Which picture is looked at.

    Args:
        kind: ``test`` (of a model's test set), ``upload`` or ``shapes`` (drawn on demand).
        key: its place, or its token.
        owner: the model whose test set it is from.
    """

    kind: str
    key: int | str
    owner: str = ""


# The pairs to start with where no run is there: the first whose pictures are on this machine.
_PAIRS = (("cifar10-vit", "cifar10-diffvit"), ("shapes-vit", "shapes-diffvit"))
_START = 7  # the test image that is shown first


class Desk:
    """Everything that outlives a question.

    Args:
        models: the offers.
        data_dir: where data sets lie.
        gate: how much is done at a time.
    """

    def __init__(self, models: Models, data_dir: Path | None, gate: Gate | None = None) -> None:
        self.models = models
        self.sets = TestSets(models, data_dir)
        self.uploads = Uploads()
        self.explorer = Explorer()
        self.gate = gate or Gate(AT_ONCE, WAITING)
        self._drawing = Gate(1, _FIGURES_WAITING)
        self._figures: Kept[Callable[[], bytes]] = Kept(_FIGURES)

    @cached_property
    def start(self) -> tuple[Chosen, str, str | None]:
        """The picture and the models that are shown first: named or found runs, else packaged models.

        The second is a pretrained model where there is one: whoever names one wants to see it.
        """
        foreign = next((offer.name for offer in self.models.lookers if offer.pretrained), None)
        own = [offer.name for offer in self.models.classifiers if offer.folder is not None][:2]
        pairs = [(own[0], own[1] if len(own) > 1 else None)] if own else []
        for first, second in (*pairs, *_PAIRS):
            try:
                if len(self.sets.images(first)) > _START:
                    return Chosen("test", _START, first), first, foreign or second
            except DiffvitError:
                continue  # its pictures are not here
        return Chosen("shapes", _START), _PAIRS[-1][0], foreign or _PAIRS[-1][1]

    def look(self, chosen: Chosen, name: str) -> Look:
        """What a model makes of the chosen picture.

        Args:
            chosen: which picture.
            name: of the model.

        Raises:
            InputError: no such model or picture.
        """
        return self.explorer.look(self.models.subject(name), self.picture(chosen, name))

    def picture(self, chosen: Chosen, name: str) -> Picture:
        """The chosen picture as a model takes it; arguments and errors as :meth:`look`."""
        whole = self.whole(chosen)
        fitted = torch.from_numpy(fit(whole.pixels.numpy(), self.models.subject(name), whole.name))
        mask = whole.mask if fitted.shape == whole.pixels.shape else None
        return Picture(whole.name, fitted, whole.label, mask)

    def whole(self, chosen: Chosen) -> Picture:
        """The chosen picture as it came; arguments and errors as :meth:`look`."""
        if chosen.kind == "upload":
            name, pixels = self.uploads.pixels(str(chosen.key))
            return Picture(name, torch.from_numpy(pixels))
        if chosen.kind == "test":
            images = self.sets.images(chosen.owner)
            if not 0 <= int(chosen.key) < len(images):
                raise InputError(f"image {chosen.key}", f"is not in {images.name}", "Choose another.")
            return from_set(images, [int(chosen.key)])[0]
        return scene(int(chosen.key))

    def offer_figure(self, draw: Callable[[], bytes]) -> str:
        """Where a figure can be fetched; it is drawn when it is."""
        token = secrets.token_urlsafe(12)
        self._figures.keep(token, draw)
        return f"figure/{token}.png"

    def figure(self, token: str) -> bytes:
        """A figure that was offered, as PNG.

        Raises:
            InputError: it is no longer offered.
            Busy: too much is asked for.
        """
        draw = self._figures.find(token)
        if draw is None:
            raise InputError("figure", "is no longer kept", "Ask for the picture again.")
        try:
            return self._drawing.call(draw)
        finally:
            gc.collect()  # a figure's parts refer to each other, and are many


def scene(index: int, *, size: int = 32, clutter: float = 0.3, noise: float = 0.1) -> Picture:
    """A built-in picture: shapes, one object among clutter, with its mask.

    Raises:
        ConfigError: a dial out of range.
    """
    index = min(max(index, 0), _SCENES * len(CLASSES) - 1)
    images = generate_at("test", torch.tensor([index]), size=size, clutter=clutter, noise=noise)
    assert images.masks is not None
    return Picture(f"shapes {index}", images.pixels[0], images.classes[int(images.labels[0])], images.masks[0])
