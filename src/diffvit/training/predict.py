"""What a trained model predicts for images: files, folders of them, arrays or tensors, in batches of bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor, nn

from diffvit.data.layout import named_files
from diffvit.data.memory import Preprocess, as_bytes, channels_first, samples, sized
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Size
from diffvit.files import Row
from diffvit.training.environment import usable_cores
from diffvit.training.load import Reference, ready
from diffvit.training.score import logits_of

_AT_A_TIME = 250  # images whose pixels are in memory together


@dataclass(frozen=True)
class Predictions:
    """Probabilities of a model's classes for some images.

    Args:
        probabilities: (n, classes), float32, on the CPU; rows sum to 1.
        classes: names of the model's classes.
        paths: of the images, where they are files.
        bad: the files that could not be read, and why; these are not among ``paths``.
    """

    probabilities: Float32[Tensor, "n classes"]
    classes: list[str]
    paths: list[str] | None = None
    bad: list[InputError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Index of each image's most probable class."""
        return self.probabilities.argmax(1)

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The ``k`` most probable classes of each image, or all where there are fewer, with their probabilities."""
        if k < 1:
            raise ConfigError("k", f"must be at least 1 (found {k})")
        values, places = self.probabilities.topk(min(k, len(self.classes)), dim=1)
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        return [[(self.classes[at], value) for value, at in zip(*row, strict=True)] for row in pairs]

    def rows(self, k: int = 5) -> list[Row]:
        """A dict for each image: ``image`` (path, or index), ``class_1``, ``probability_1``, ``class_2``, ..."""
        rows: list[Row] = []
        for name, best in zip(self.paths or range(len(self)), self.top(k), strict=True):
            row: Row = {"image": name}
            for rank, (label, probability) in enumerate(best, 1):
                row |= {f"class_{rank}": label, f"probability_{rank}": probability}
            rows.append(row)
        return rows

    def to_pandas(self, k: int = 5) -> Any:
        """The rows of :meth:`rows` as a pandas DataFrame; EnvironmentFault where pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise EnvironmentFault("pandas", "is not installed", "Install it with: pip install pandas") from None
        return pandas.DataFrame(self.rows(k))


def predict(
    model: Reference | nn.Module,
    images: Any,
    *,
    size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Classify images: the centred square of each, scaled to the model's input.

    Args:
        model: a run folder, a weights file, a packaged name, or what :func:`diffvit.load` gave.
        images: a path or many: files, folders (searched at any depth) and patterns as ``photos/*.jpg``; or an array or
            tensor (n, c, h, w), (n, h, w, c) or (n, h, w), uint8 or floating point in 0 to 1; or a Pillow picture, or a
            sequence of pictures, arrays or tensors of any sizes; or a data set of such, as torch's and Hugging Face's,
            of which a sample may be ``(image, label)``, or a dict with ``image`` or ``img``: labels are left out.
        size: another side of the input than trained for, or (height, width), pixels; positions are interpolated.
        device: ``auto``, ``cpu`` or ``cuda``; a loaded model stays where it is.
        precision: ``fp32``, ``bf16``, or ``auto``: as its run was scored, of a loaded model fp32.
        skip_bad: leave out files that cannot be read, which :attr:`Predictions.bad` then has.
        progress: called now and then with how many of how many images have been read.

    Raises:
        ConfigError: a model that :func:`diffvit.load` did not give, or the patch does not divide the size.
        InputError: a model or an image that is missing, damaged, over a limit, or of a wrong type or range.
    """
    module, _, where = ready(model, device, precision, size)
    preprocess: Preprocess = module.preprocess
    logits: list[Tensor] = []
    names: list[str] = []
    bad: list[InputError] = []

    def read(item: tuple[str, Any]) -> Tensor | InputError:
        name, image = item
        try:
            return image if isinstance(image, InputError) else preprocess.pixels(image, name)
        except InputError as error:
            return error

    if isinstance(images, Tensor | np.ndarray):
        channels = len(preprocess.mean)
        for part in channels_first(images, channels=channels).split(_AT_A_TIME):
            if len(part):
                part = sized(as_bytes(part), preprocess.image_size, channels)
                logits.append(logits_of(module, part, **where))
    else:
        given = [images] if isinstance(images, str | Path | Image.Image) else images
        items = chain.from_iterable(
            named_files([each]) if isinstance(each, str | Path) else [(name, each)] for name, each in samples(given)
        )
        items = list(items) if isinstance(given, list) else items
        count, items = max(length_hint(items), length_hint(given)), iter(items)
        with ThreadPoolExecutor(min(8, usable_cores())) as threads:
            while some := list(islice(items, _AT_A_TIME)):
                batch: list[Tensor] = []
                for (name, _), found in zip(some, threads.map(read, some), strict=True):
                    if isinstance(found, Tensor):
                        names.append(name)
                        batch.append(found)
                    elif skip_bad:
                        bad.append(found)
                    else:
                        raise found
                if batch:
                    logits.append(logits_of(module, torch.stack(batch), **where))
                if progress:
                    progress(len(names) + len(bad), count)
    probabilities = torch.cat(logits).softmax(1) if logits else torch.empty(0, len(module.classes))
    return Predictions(probabilities, list(module.classes), names or None, bad)
