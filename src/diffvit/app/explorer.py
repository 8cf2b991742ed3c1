"""The explorer without its web page: an image's forward pass through a model, and the maps selected from it.

A wrong request (an unknown model, an image that is gone) raises an InputError or ConfigError, which
:func:`diffvit.app.web.controls.handler` shows as a line.
"""

from __future__ import annotations

import gc
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffvit.app.images import ImageRef, TestImages, Uploads, shapes_image
from diffvit.app.limits import Cache, Limiter
from diffvit.app.models import Models
from diffvit.attention.attribute import METHODS, attribute
from diffvit.attention.capture import Record, capture_with_logits
from diffvit.attention.inputs import LoadedModel, Sample, fit, samples_of
from diffvit.attention.rollout import rollout
from diffvit.errors import DiffvitError, InputError, check_choice

WORKERS, WAITING = 2, 24  # requests that are worked on at a time, and that may wait
MAPS_BUDGET = 48 * 2**20  # bytes of maps that are kept
_FIGURES = 256  # figures that can be downloaded
_FIGURES_WAITING = 6  # figures are drawn one at a time by a worker of their own, so that sliders stay quick
_FIRST_IMAGE = 7  # index of the image that is shown first
# Models shown first if there is no run: the first pair whose test images are on this machine.
_PAIRS = (("cifar10-vit-cls", "cifar10-diffvit-cls"), ("shapes-vit", "shapes-diffvit"))
_LAMBDA, _MINUS = "\N{GREEK SMALL LETTER LAMDA}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class MapSelection:
    """Which attention map to show. Values beyond a model's layers, heads or patches mean its last one.

    Layer and head count from 0, head None is the mean over the heads; ``position`` is the query, a place in the image
    as (down, across) from 0 to below 1, None for the token or tokens that the model pools; ``rollout`` has arguments
    of :func:`diffvit.attention.rollout.rollout`. ``method``, of :data:`diffvit.attention.METHODS`, adds an attribution
    to the class ``target``, by name or index; None is the predicted one.
    """

    layer: int = 0
    head: int | None = None
    position: tuple[float, float] | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    target: str | None = None


class Shown(NamedTuple):
    """A map over the patches, and what each patch would have if all had the same (None where that has no meaning)."""

    name: str
    meaning: str
    values: Float[Tensor, "rows columns"]
    uniform: float | None = None


@dataclass(frozen=True)
class ForwardPass:
    """One image through one model: the image as the model saw it, the maps of every layer, and the logits.

    ``logits`` is None if the model does not classify.
    """

    model: LoadedModel
    image: Sample
    record: Record
    logits: Float[Tensor, " classes"] | None
    attributions: dict[tuple[str, int | None], Tensor] = field(default_factory=dict, repr=False)  # computed so far

    @cached_property
    def probabilities(self) -> list[tuple[str, float]]:
        """Classes and their probabilities, the largest first; empty if the model does not classify."""
        if self.logits is None:
            return []
        values, order = self.logits.softmax(dim=0).sort(descending=True, stable=True)
        names = list(self.model.classes) or [f"class {index}" for index in range(len(values))]
        return [(names[index], value) for index, value in zip(order.tolist(), values.tolist(), strict=True)]

    @property
    def likeliest(self) -> list[tuple[str, float]]:
        """The five likeliest classes with their probabilities, and the true class where it is not among them."""
        return self.probabilities[:5] + [each for each in self.probabilities[5:] if each[0] == self.image.label]

    @property
    def heads(self) -> int:
        """Number of heads of each layer; for differential attention, of differential heads."""
        return self.record.layers[0].positive.shape[1]

    def locate(self, selection: MapSelection) -> tuple[int, int | None, tuple[int, int] | None]:
        """Indices of the selected layer, head (None: their mean) and query patch (None: what the model pools)."""
        counts = (len(self.record.layers), self.heads, *self.record.grid)
        down, across = selection.position or (0, 0)
        wanted = (selection.layer, selection.head or 0, int(down * counts[2]), int(across * counts[3]))
        layer, head, row, column = (min(max(index, 0), count - 1) for index, count in zip(wanted, counts, strict=True))
        return layer, None if selection.head is None else head, None if selection.position is None else (row, column)

    def maps(self, selection: MapSelection) -> list[Shown]:
        """The selected map; for differential attention A1, lambda A2 and their difference."""
        layer, head, patch = self.locate(selection)
        uniform = self.record.uniform(layer, "positive")

        def select(kind: str) -> Tensor:
            heads = self.record.to_patches(layer, kind, patch)[0]
            return heads.mean(dim=0) if head is None else heads[head]

        if not self.record.differential:
            return [Shown("attention", "weights", select("effective"), uniform)]
        first, left = select("positive"), select("effective")
        return [
            Shown("A1", "weights", first, uniform),
            Shown(f"{_LAMBDA} A2", "subtracted", first - left, uniform - self.record.uniform(layer)),
            Shown(f"A1 {_MINUS} {_LAMBDA} A2", "effective", left, self.record.uniform(layer)),
        ]

    def followed(self, selection: MapSelection) -> list[Shown]:
        """Maps through all layers: rollout of the pooled token, and the attribution if one is selected.

        Raises:
            ConfigError: rollout's arguments do not go together, the model has no such class or classifies nothing, or
                the method cannot follow its attention.
        """
        signed = selection.rollout.get("sign") == "signed" and self.record.differential
        rolled = rollout(self.record, **selection.rollout)[0]
        uniform = None if signed else 1 / self.record.layers[0].positive.shape[-1]  # rollout's rows sum to 1
        found = [Shown("rollout", "through all layers", rolled, uniform)]
        method, target, meaning = selection.method, None, "of no class"
        if method is None:
            return found
        check_choice("method", method, METHODS)
        if METHODS[method].of_class and self.logits is not None:
            wanted = selection.target
            target = int(self.logits.argmax()) if wanted is None else self.model.class_index(wanted)
            meaning = f"for {self.model.classes[target] if self.model.classes else f'class {target}'}"
        if (method, target) not in self.attributions:
            images = self.model.normalised(self.image.pixels[None])
            self.attributions[method, target] = attribute(self.model.model, images, method, target)[0]
        return [*found, Shown(method, meaning, self.attributions[method, target])]

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        parts = [part for maps in self.record.layers for part in (maps.positive, maps.negative) if part is not None]
        return sum(part.nbytes for part in parts)


class Explorer:
    """The state of the server: models, images, cached forward passes (``budget`` bytes of maps), and limits on work.

    ``data_dir`` is where data sets lie, see :class:`diffvit.app.images.TestImages`.
    """

    def __init__(
        self, models: Models, data_dir: Path | None = None, limiter: Limiter | None = None, budget: int = MAPS_BUDGET
    ) -> None:
        self.models = models
        self.test_images = TestImages(models, data_dir)
        self.uploads = Uploads()
        self.limiter = limiter or Limiter(WORKERS, WAITING)
        self.passes: Cache[ForwardPass] = Cache(budget, lambda result: result.nbytes, parallel=True)
        self._figure_limiter = Limiter(1, _FIGURES_WAITING)
        self._figures: Cache[Callable[[str], bytes]] = Cache(_FIGURES)

    @cached_property
    def start(self) -> tuple[ImageRef, str, str | None]:
        """The image, the model and the second model that are shown first: runs, else packaged models.

        If pretrained models are offered, the second model is the first of them.
        """
        pretrained = next((info.name for info in self.models.vits if info.pretrained), None)
        runs = [info.name for info in self.models.own_vits if info.folder is not None][:2]
        pairs = [(runs[0], runs[1] if len(runs) > 1 else None)] if runs else []
        for first, second in (*pairs, *_PAIRS):
            try:
                if len(self.test_images.images(first)) > _FIRST_IMAGE:
                    return ImageRef("test", _FIRST_IMAGE, first), first, pretrained or second
            except DiffvitError:
                continue  # its data is not on this machine
        return ImageRef("shapes", _FIRST_IMAGE), _PAIRS[-1][0], pretrained or _PAIRS[-1][1]

    def source(self, ref: ImageRef) -> Sample:
        """The image at its own size; errors as :meth:`run`."""
        if ref.kind == "upload":
            name, pixels = self.uploads.pixels(str(ref.key))
            return Sample(name, torch.from_numpy(pixels))
        if ref.kind == "test":
            images = self.test_images.images(ref.model)
            if not 0 <= int(ref.key) < len(images):
                raise InputError(f"image {ref.key}", f"is not in {images.name}", "Choose another.")
            return samples_of(images, [int(ref.key)])[0]
        return shapes_image(int(ref.key))

    def run(self, ref: ImageRef, name: str) -> ForwardPass:
        """The forward pass of an image through a model."""
        return self.forward(self.models.load(name), self.source(ref))

    def forward(self, model: LoadedModel, image: Sample) -> ForwardPass:
        """The forward pass, cached by the model's name and source and the image's pixels, name and class.

        The image is resized to the model's input.

        The mask is dropped where the image is resized.
        """
        pixels = torch.from_numpy(fit(image.pixels.numpy(), model, image.name))
        mask = image.mask if pixels.shape == image.pixels.shape else None
        fitted = Sample(image.name, pixels, image.label, mask)
        digest = hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()

        def compute() -> ForwardPass:
            record, logits = capture_with_logits(model.model, model.normalised(pixels[None]))
            return ForwardPass(model, fitted, record, None if logits is None else logits[0])

        key = (model.name, model.source, tuple(pixels.shape), digest, image.name, image.label)
        return self.passes.get_or_make(key, compute)

    def offer_figure(self, draw: Callable[[str], bytes]) -> str:
        """The address, without its ending, where a figure can be downloaded; it is drawn when that is asked for."""
        token = secrets.token_urlsafe(12)
        self._figures.put(token, draw)
        return f"figure/{token}"

    def figure(self, token: str, form: str) -> bytes:
        """An offered figure as a file of this form, see :data:`diffvit.app.panels.FORMATS`."""
        draw = self._figures.get(token)
        if draw is None:
            raise InputError("figure", "is no longer kept", "Ask for the picture again.")
        try:
            return self._figure_limiter.call(lambda: draw(form))
        finally:
            gc.collect()  # the many parts of a figure refer to each other
