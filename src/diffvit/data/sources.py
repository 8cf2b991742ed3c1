"""Data sources by name, the order in which CIFAR-10 is looked for, and the validation split."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from diffvit.data import cifar10, folder
from diffvit.data import shapes as shape_images
from diffvit.data.cifar10 import Container
from diffvit.data.download import fetch
from diffvit.data.images import Images, centred_box, fingerprint, sized, with_channels
from diffvit.data.random_draws import hash_words
from diffvit.data.shapes import HARD, Look
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Size, check_choice, sides
from diffvit.files import cache_folder
from diffvit.registry import SOURCES, function_of

Announce = Callable[[str], None]
_VALIDATION, _PART, _NOISE = 2000, 2001, 2002  # streams of the draws
# How long ``auto`` may try to fetch CIFAR-10 before it falls back, seconds: per answer, and in all.
_QUICK, _QUICK_IN_ALL = 3.0, 60.0


def load(
    source: str,
    split: str,
    *,
    data_dir: Path | None,
    image_size: Size,
    channels: int | None = None,
    shapes: Mapping[str, Any] | None = None,
    test_size: float = 0.2,
    bad_files: str = "refuse",
    announce: Announce | None = None,
) -> Images:
    """One split of a data source, at one image size.

    Args:
        source: a key of :data:`diffvit.registry.SOURCES`: auto (see :func:`resolve_auto`), cifar10, folder,
            shapes or shapes-hard.
        split: train or test.
        data_dir: where the data lies. ``cifar10`` is looked for in ``data_dir/cifar10`` and ``data_dir`` and nowhere
            else; without a ``data_dir`` where ``DIFFVIT_DATA`` points, in the same way; without either in the user's
            cache, and then fetched into it. ``folder`` must have one.
        image_size: side of the images, or height and width, pixels; others are resized.
        channels: 1 or 3, to have grey images as RGB or RGB images as grey; by default as they are.
        shapes: the settings of :func:`diffvit.data.shapes.generate`, with ``train`` and ``test`` for the counts.
        test_size: share of each class that is set apart for testing, in a ``folder`` without test images.
        bad_files: ``refuse`` a ``folder`` with files that cannot be read, or ``skip`` these.
        announce: called with lines of text: a download starts, files of a ``folder`` cannot be read, ...

    Raises:
        ConfigError: no such source, split or setting.
        InputError: the data is missing, damaged, hostile or incomplete.
        EnvironmentFault: it cannot be fetched, or the disk has no room.
    """
    check_choice("data source", source, SOURCES)
    check_choice("split", split, ("train", "test"))
    options = {"data_dir": data_dir, "image_size": image_size, "shapes": shapes or {}, "announce": announce}
    options |= {"channels": channels, "test_size": test_size, "bad_files": bad_files}
    return _fitting(function_of(SOURCES[source])(split, **options), image_size, channels)


def _fitting(images: Images, size: Size, channels: int | None) -> Images:
    """Images of this size and number of channels, their own validation images too."""
    images = resized(images, size)
    images = images if channels is None else replace(images, pixels=with_channels(images.pixels, channels))
    own = images.validation
    return images if own is None else replace(images, validation=_fitting(own, size, channels))


def resolve_auto(data_dir: Path | None, *, announce: Announce | None = None) -> Literal["cifar10", "shapes"]:
    """The source that ``auto`` selects on this machine: cifar10 where it is found or quickly fetched, else shapes.

    Looked for in this order: ``data_dir``, or else where ``DIFFVIT_DATA`` points (another folder may be there without
    CIFAR-10); the user's cache; the public files, for at most 3 seconds without an answer, or one minute in all.
    InputError where the folder that is named does not exist.
    """
    try:
        _find_cifar10(data_dir, announce, timeout=_QUICK, deadline=_QUICK_IN_ALL, strict=False)
    except EnvironmentFault:
        return "shapes"
    return "cifar10"


def place_of(source: str, data_dir: Path | None) -> Path | None:
    """The folder in which a source is looked for first: ``data_dir``, else for CIFAR-10 what ``DIFFVIT_DATA`` names.

    The variable does not apply to ``folder`` and ``shapes``. ``~`` is expanded.
    """
    named = data_dir or (os.environ.get("DIFFVIT_DATA") if source in ("auto", "cifar10") else None)
    # Path.expanduser refuses the ~name of a user who does not exist; this takes it as a folder's name.
    return Path(os.path.expanduser(named)) if named else None  # noqa: PTH111


def load_auto(split: str, *, data_dir: Path | None, announce: Announce | None, **more: Any) -> Images:
    """CIFAR-10 where :func:`resolve_auto` finds it, else shapes; arguments as :func:`load`."""
    if resolve_auto(data_dir, announce=announce) == "cifar10":
        return cifar10.load(_find_cifar10(data_dir, announce, strict=False), split)
    return load_shapes(split, **more)


def load_cifar10(split: str, *, data_dir: Path | None, announce: Announce | None, **_: Any) -> Images:
    """CIFAR-10, fetched where it is nowhere; arguments as :func:`load`."""
    return cifar10.load(_find_cifar10(data_dir, announce, strict=True), split)


def load_folder(split: str, *, data_dir: Path | None, shapes: object, **how: Any) -> Images:  # noqa: ARG001
    """A folder of images (:mod:`diffvit.data.folder`); arguments as :func:`load`."""
    if (place := place_of("folder", data_dir)) is None:
        raise InputError("data folder", "needs to know where the data lies", "Give --data-dir DIR.")
    return folder.load(place, split, **how)


def load_shapes(split: str, *, shapes: Mapping[str, Any], **_: Any) -> Images:
    """The built-in shapes; arguments as :func:`load`."""
    chosen = {"train": 10_000, "test": 2_000, **shapes}
    counts = {name: chosen.pop(name) for name in ("train", "test")}
    look = Look(**{dial.name: chosen.pop(dial.name) for dial in fields(Look) if dial.name in chosen})
    return shape_images.generate(split, counts[split], look=look, **chosen)


def load_hard_shapes(split: str, *, shapes: Mapping[str, Any], **_: Any) -> Images:
    """Shapes of the :data:`diffvit.data.shapes.HARD` look; arguments as :func:`load`, ConfigError for another look."""
    for name, value in asdict(Look()).items():
        if shapes.get(name, value) != value:
            raise ConfigError(f"shapes.{name}", "is fixed for shapes-hard", "Set it with the data source shapes.")
    return load_shapes(split, shapes={**shapes, **asdict(HARD)})


def _find_cifar10(data_dir: Path | None, announce: Announce | None, *, strict: bool, **limits: Any) -> Container:
    """Find CIFAR-10, or fetch it. ``strict``: a folder that is named and lacks it is an error."""
    place = place_of("cifar10", data_dir)
    if place is not None:
        if not place.is_dir():
            hint = "--data-dir and DIFFVIT_DATA name the folder that data lies in."
            raise InputError(str(place), "no such data folder", hint)
        if found := cifar10.find(place):
            return found
        if strict:
            why = f"holds no CIFAR-10 (looked for {cifar10.LOOKED_FOR}; in it and in its folder cifar10)"
            raise InputError(str(place), why, "Fetch it with: diffvit data fetch cifar10")
    if found := cifar10.find(cache_folder()):
        return found
    if announce:
        announce("CIFAR-10 is not on this machine: trying to fetch it (about 144 MB)")
    found = cifar10.find(fetch("cifar10", **limits))
    assert found is not None  # fetch gives these files or raises
    return found


def resized(images: Images, size: Size) -> Images:
    """Images and masks of another size, by :func:`diffvit.data.images.resize`."""
    if images.pixels.shape[-2:] == sides(size):
        return images
    pixels, masks = sized(images.pixels, size, None), images.masks
    if masks is not None:
        left, top, right, bottom = centred_box(masks.shape[1], masks.shape[2], size)
        part = masks[:, None, top:bottom, left:right].float()
        masks = torch.nn.functional.interpolate(part, sides(size), mode="area")[:, 0] >= 0.5
    content = fingerprint(pixels, images.labels, images.classes)
    return replace(images, pixels=pixels, fingerprint=content, masks=masks)


def validation_split(
    labels: Int64[Tensor, " n"], size: int, seed: int = 0
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Split a training set into training and validation indices, with the same number of validation images per class.

    Both are ascending, and hold together every image once. They depend on the labels' order, ``size`` (where it is no
    multiple of the number of classes, the first classes give one more) and ``seed`` alone. A class that has no more
    images than it should give gives half of them, so that some are left for training.
    """
    present = labels.unique().tolist()
    rank = hash_words(seed, 0, torch.arange(len(labels)), _VALIDATION, 1)[:, 0]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for place, label in enumerate(present):
        wanted = size // len(present) + (place < size % len(present))
        members = torch.nonzero(labels == label)[:, 0]
        wanted = wanted if wanted < len(members) else len(members) // 2
        held[members[torch.argsort(rank[members], stable=True)[:wanted]]] = True
    return torch.nonzero(~held)[:, 0], torch.nonzero(held)[:, 0]


def training_part(labels: Int64[Tensor, " n"], share: float, seed: int) -> Int64[Tensor, " m"]:
    """Indices, ascending, of a share of the images of each class, at least one; they depend on ``seed``."""
    rank, kept = hash_words(seed, 0, torch.arange(len(labels)), _PART, 1)[:, 0], []
    for label in labels.unique():
        members = torch.nonzero(labels == label)[:, 0]
        kept.append(members[torch.argsort(rank[members], stable=True)[: max(1, round(share * len(members)))]])
    return torch.cat(kept).sort().values


def noisy_labels(labels: Int64[Tensor, " n"], classes: int, share: float, seed: int) -> Int64[Tensor, " n"]:
    """Labels of which a share, chosen at random, are others: each of the other classes with the same chance."""
    words = hash_words(seed, 0, torch.arange(len(labels)), _NOISE, 2)
    changed = torch.argsort(words[:, 0], stable=True)[: round(share * len(labels))]
    away = 1 + torch.remainder(words[changed, 1], classes - 1)
    return labels.index_copy(0, changed, (labels[changed] + away) % classes)


def usual_validation_size(labels: Int64[Tensor, " n"]) -> int:
    """A tenth of the images, at most 5,000, the same number of each class and at least one."""
    classes = len(labels.unique())
    return max(1, min(5000, len(labels) // 10) // classes) * classes


def check_validation_size(images: Images, size: int) -> None:
    """InputError where a class has too few images to give its part of ``size`` and leave some for training."""
    counts = images.labels.bincount(minlength=len(images.classes)).tolist()
    wanted = -(-size // max(1, sum(count > 0 for count in counts)))
    for name, count in zip(images.classes, counts, strict=True):
        if 0 < count <= wanted:
            why = f"leaves nothing to train on of class {name} (it has {count} images, {wanted} wanted)"
            raise InputError(f"validation_size {size}", why, "Give a smaller one, or leave it out.")
