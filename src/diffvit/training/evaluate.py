"""A trained model used: scored on labelled images (its own data, another source, or given in Python), or to predict.

Predictions are for files, folders of them, arrays or tensors, in batches of bounded memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor, nn

from diffvit.config import Config, parse, to_dict
from diffvit.data import sources
from diffvit.data.images import Images, sized
from diffvit.data.layout import named_files
from diffvit.data.memory import Preprocess, as_bytes, channels_first, from_data, samples
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Size, check_choice, few
from diffvit.files import Row, to_json, write_file
from diffvit.registry import MEMORY
from diffvit.training.environment import hardware, usable_cores
from diffvit.training.load import Meta, Reference, ready
from diffvit.training.run_dir import RunDir, config_faults
from diffvit.training.score import described, flops_per_image, logits_of, score

_AT_A_TIME = 250  # images whose pixels are in memory together
SPLITS = ("test", "validation", "train")


def evaluate(
    run: Reference | nn.Module,
    images: Any = None,
    labels: Any = None,
    *,
    split: str = "test",
    data: str | None = None,
    data_dir: Path | None = None,
    size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Score a trained model; on its own data, at its own size, the figures are also written into the run folder.

    The file is ``evaluation.json`` for the test set and ``evaluation-SPLIT.json`` for the others. Returned are the
    figures of :func:`score` with ``run``, ``split`` (``given`` for ``images``), ``data``, ``fingerprint``, ``classes``,
    ``parameters``, ``flops_per_image``, ``device``, ``hardware`` and ``precision``; on CIFAR-10 with some images from a
    JPEG copy also ``data_note``, and ``accuracy_exact`` on the other ``images_exact``; at another
    size than trained for also ``image_size``.

    Args:
        run: a run folder, a weights file, a packaged name, or what :func:`load` gave (then with ``images``).
        images: images to score on instead of a source's, with their ``labels`` (class indices or names); or a data set.
            Both as :func:`diffvit.data.memory.from_data` takes them; nothing is written then.
        labels: of these images.
        split: ``test``, ``validation`` (the images its training set kept apart) or ``train`` (those it learnt from,
            not augmented, with their true labels).
        data: another data source than the model's own; its classes must be the model's.
        data_dir: where the data lies; by default where the run had it, for CIFAR-10 else where it is always looked
            for (:func:`diffvit.data.sources.load`).
        size: another side of the images than trained for, or (height, width), pixels: the images are resized to it, the
            model's positions interpolated (:meth:`diffvit.VisionTransformer.set_input_size`).
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, or ``auto``: see :func:`diffvit.training.load.precision_of`.
        show: called with the figures before they are written.

    Raises:
        ConfigError: no such split, the patch does not divide the size, or the model does not say what data it is for.
        InputError: the model or the data is missing or damaged, or they do not fit each other.
        EnvironmentFault: the figures cannot be written.
    """
    check_choice("split", split, SPLITS)
    model, meta, where = ready(run, device, precision, size)
    config = config_of(run, meta) if meta else None
    if images is not None:
        how = {"image_size": model.settings["image_size"], "channels": model.settings["in_chans"]}
        pair = images if labels is None else (images, labels)
        found, whole, split = from_data(pair, **how, classes=model.classes, matched=True), "", "given"
    elif isinstance(run, nn.Module):
        raise ConfigError("evaluate", "a loaded model needs images and labels", "Or name its run folder instead.")
    else:
        found, whole = images_of(run, model.settings["image_size"], meta, split=split, data=data, data_dir=data_dir)
    figures = score(model, found, batch_size=max(500, config.batch_size if config else 0), **where)
    kind = torch.device(where["device"]).type
    facts = {
        "run": type(run).__name__ if isinstance(run, nn.Module) else str(run.path if isinstance(run, RunDir) else run),
        "split": split,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_image": flops_per_image(model),
        "device": kind,
        "hardware": hardware(kind),
        "precision": where["precision"],
    }
    figures, folder = {**facts, **described(found, figures)}, Path(facts["run"])
    if other := model.patch_embed.grid != model.grid:
        figures["image_size"] = model.settings["image_size"]
    if show:
        show(figures)
    if other or split not in SPLITS or data is not None or not folder.is_dir():
        return figures
    path = folder / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")
    same_name = found.name == meta["data"]
    known = RunDir(folder).environment.get("data", {}) if (folder / "environment.json").is_file() else {}
    recorded = known.get("test_fingerprint" if split == "test" else "fingerprint")
    if recorded == whole or (recorded is None and same_name):
        write_file(path, to_json(figures, indent=None), "The run folder is as it was; nothing else is missing.")
    elif same_name:
        kind = "test" if split == "test" else "training"
        why = f"{found.name} has other {kind} images than when the run was made; it may have been trained on some"
        warnings.warn(f"{why}. The run's {path.name} stays as it was.", stacklevel=2)
    return figures


def source_name(data: str) -> str:
    """The name of a data set without its settings and what it was tested on: "shapes" of "shapes (clutter 0.3)"."""
    return data.partition(",")[0].partition(" (")[0]


def config_of(run: object, meta: Meta) -> Config | None:
    """The run's config from its model's metadata; None where it has none; InputError where it is damaged."""
    with config_faults():
        return None if meta["config"] is None else parse(meta["config"], str(run))


def images_of(
    run: object,
    image_size: Size,
    meta: Meta,
    *,
    split: str = "test",
    data: str | None = None,
    data_dir: Path | None = None,
) -> tuple[Images, str]:
    """The images to score on, their classes checked against the model's, and the fingerprint of the set they are from.

    ``data`` and ``data_dir`` are given where these are others than the run's.
    """
    config = config_of(run, meta)
    source = data or (config.data if config else "auto")
    if source == "auto" and data is None:
        # A run of data auto may have found CIFAR-10 elsewhere than in the folder that it names: cifar10 would not.
        known = {"CIFAR-10": "auto" if config else "cifar10", "shapes": "shapes" if config else ""}
        source = known.get(source_name(meta["data"]), "")
    if source == MEMORY:
        why = "was trained on images given in Python, which its folder does not hold"
        name = str(run.path if isinstance(run, RunDir) else run)
        raise InputError(name, why, "Pass them: diffvit.evaluate(run, images, labels).")
    if not source:
        raise ConfigError(str(run), f"does not say where its data ({meta['data']}) comes from", "Name it with --data.")
    size = config.validation_size if config else 0
    if split == "validation" and not size:
        why = "has no validation split: it was trained on every training image"
        raise InputError(str(run), why, "Take --split test or --split train.")
    if data_dir is None and config and data in (None, config.data):
        data_dir = sources.place_of(source, None) or config.data_dir  # the variable stands above a run's config.yaml
        if source != "folder" and data_dir and not data_dir.is_dir():
            data_dir = None  # as on another machine: CIFAR-10 is the same wherever it is found
    part, shapes = "test" if split == "test" else "train", to_dict(config.shapes) if config else None
    how = {"test_size": config.test_size, "bad_files": config.bad_files} if config else {}
    how |= {"image_size": image_size, "channels": len(meta["mean"]), "shapes": shapes}
    images = sources.load(source, part, data_dir=data_dir, **how)
    own, whole = images.validation, images.fingerprint
    images = own if own is not None and split == "validation" else images
    if sorted(images.classes) != sorted(meta["classes"]):
        found, known = (f"{len(names)}: {few(names)}" for names in (images.classes, meta["classes"]))
        why = f"has other classes than the model ({found} vs {known})"
        raise InputError(images.name, why, "Take the data the model was trained on.")
    # Labels counted in the model's order of the classes.
    place = torch.tensor([meta["classes"].index(name) for name in images.classes])
    images = replace(images, labels=place[images.labels], classes=list(meta["classes"]))
    if split == "test":
        return images, whole
    if own is None:
        ours, held = sources.validation_split(images.labels, size)
        if split == "validation" and not len(held):
            raise InputError(str(run), "has no validation images: every class has too few", "Take --split test.")
        images = images.select(held if split == "validation" else ours)
    if split == "train" and config and config.train_share < 1:
        images = images.select(sources.training_part(images.labels, config.train_share, config.seed))
    return images, whole


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
