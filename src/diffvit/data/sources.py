"""From the name of a data source to :class:`Images`: the one door through which training gets its data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffvit.data import cifar10, folder
from diffvit.data import shapes as shape_images
from diffvit.data.download import fetch
from diffvit.data.images import Images, fingerprint, resize
from diffvit.data.random_draws import hash_words
from diffvit.errors import ConfigError, EnvironmentFault, InputError, did_you_mean
from diffvit.files import cache_folder

SOURCES = ("auto", "cifar10", "folder", "shapes")
SPLITS = ("train", "test")
Announce = Callable[[str], None]
_SHAPES_DEFAULTS = {"size": 32, "train": 10_000, "test": 2_000, "clutter": 0.3, "noise": 0.1, "seed": 0}
_VALIDATION = 2000  # stream of the draws
# How long ``auto`` may try to fetch CIFAR-10 before it falls back, seconds: per answer, and in all.
_QUICK, _QUICK_IN_ALL = 3.0, 60.0


def place_of(source: str, data_dir: Path | None) -> Path | None:
    """The folder in which a source is looked for first: ``data_dir``, else for CIFAR-10 what ``DIFFVIT_DATA`` names.

    The variable never speaks of a ``folder`` or ``shapes`` source. ``~`` is expanded.
    """
    named = data_dir or (os.environ.get("DIFFVIT_DATA") if source in ("auto", "cifar10") else None)
    if not named:
        return None
    with suppress(RuntimeError):  # of a user who is not there: then it is a folder's name
        return Path(named).expanduser()
    return Path(named)


def resolve_auto(data_dir: Path | None, *, announce: Announce | None = None) -> Literal["cifar10", "shapes"]:
    """What ``auto`` stands for on this machine: cifar10 where it is found or quickly fetched, else shapes.

    Looked at in turn: ``data_dir``, or else where ``DIFFVIT_DATA`` points; the user's cache; the public files (given up
    after 3 seconds without an answer, or one minute in all). A named folder without CIFAR-10 is no fault here, but one
    that does not exist is.

    Raises:
        InputError: the folder that is named does not exist.
    """
    try:
        _cifar10(data_dir, announce, timeout=_QUICK, deadline=_QUICK_IN_ALL, strict=False)
    except EnvironmentFault:
        return "shapes"
    return "cifar10"


def load(
    source: str,
    split: str,
    *,
    data_dir: Path | None,
    image_size: int,
    shapes: Mapping[str, Any] | None = None,
    announce: Announce | None = None,
) -> Images:
    """One split of a data source, at one image size.

    Args:
        source: auto (see :func:`resolve_auto`), cifar10, folder or shapes.
        split: train or test.
        data_dir: where the data lies. ``cifar10`` is looked for in ``data_dir/cifar10`` and ``data_dir`` and nowhere
            else; without a ``data_dir`` where ``DIFFVIT_DATA`` points, in the same way; without either in the user's
            cache, and then fetched into it. ``folder`` must have one.
        image_size: side of the images, pixels; others are resized.
        shapes: the dials of :func:`diffvit.data.shapes.generate`, with ``train`` and ``test`` for the counts.
        announce: told, in one line, when a download starts.

    Raises:
        ConfigError: no such source, split or dial.
        InputError: the data is missing, damaged, hostile or incomplete.
        EnvironmentFault: it cannot be fetched, or the disk has no room.
    """
    if source not in SOURCES:
        raise ConfigError(
            f"data {source!r}",
            f"no such source (have {', '.join(SOURCES)});{did_you_mean(source, SOURCES)}".rstrip(";"),
        )
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}", "no such split (have train, test)")
    chosen = resolve_auto(data_dir, announce=announce) if source == "auto" else source
    place = place_of(chosen, data_dir)
    if chosen == "shapes":
        return _resized(_shapes(split, shapes or {}), image_size)
    if chosen == "folder":
        if place is None:
            raise InputError("data folder", "needs to know where the data lies", "Give --data-dir DIR.")
        return folder.load(place, split, image_size=image_size)
    return _resized(cifar10.load(_cifar10(data_dir, announce, strict=source != "auto"), split), image_size)


def _cifar10(
    data_dir: Path | None,
    announce: Announce | None,
    *,
    timeout: float = 10.0,
    deadline: float | None = None,
    strict: bool,
) -> cifar10.Container:
    """Find CIFAR-10, or fetch it. ``strict``: a folder that is named and lacks it is an error."""
    place = place_of("cifar10", data_dir)
    if place is not None:
        if not place.is_dir():
            raise InputError(
                str(place), "no such data folder", "--data-dir and DIFFVIT_DATA name the folder that data lies in."
            )
        if found := cifar10.find(place):
            return found
        if strict:
            raise InputError(
                str(place),
                f"holds no CIFAR-10 (looked for {cifar10.LOOKED_FOR}; in it and in its folder cifar10)",
                "Fetch it with: diffvit data fetch cifar10",
            )
    if found := cifar10.find(cache_folder()):
        return found
    if announce:
        announce("CIFAR-10 is not on this machine: trying to fetch it (about 144 MB)")
    found = cifar10.find(fetch("cifar10", timeout=timeout, deadline=deadline))
    assert found is not None  # fetch gives these files or raises
    return found


def _shapes(split: str, dials: Mapping[str, Any]) -> Images:
    unknown = sorted(set(dials) - set(_SHAPES_DEFAULTS))
    if unknown:
        raise ConfigError(f"shapes.{unknown[0]}", f"no such dial (have {', '.join(_SHAPES_DEFAULTS)})")
    values: dict[str, Any] = {**_SHAPES_DEFAULTS, **dials}
    return shape_images.generate(
        split,
        int(values[split]),
        size=int(values["size"]),
        clutter=float(values["clutter"]),
        noise=float(values["noise"]),
        seed=int(values["seed"]),
    )


def _resized(images: Images, size: int) -> Images:
    if images.pixels.shape[-2:] == (size, size):
        return images
    pixels = torch.from_numpy(np.stack([resize(image, size) for image in images.pixels.numpy()]))
    masks = images.masks
    if masks is not None:
        masks = torch.nn.functional.interpolate(masks[:, None].float(), (size, size), mode="area")[:, 0] >= 0.5
    content = fingerprint(pixels, images.labels, images.classes)
    return replace(images, pixels=pixels, fingerprint=content, masks=masks)


def validation_split(
    labels: Int64[Tensor, " n"], size: int, seed: int = 0
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Split a training set into indices to train on and indices for choices, the same number of each class.

    Depends on the labels' order, ``size`` and ``seed`` only, never on a run's seed or a library's random generator.

    Args:
        labels: of the whole training set.
        size: validation images; where it is no multiple of the number of classes, the first classes give one more.
        seed: another split of the same size.

    Returns:
        Ascending indices, together every image once.

    Raises:
        InputError: a class has too few images to leave any for training.
    """
    counts = torch.bincount(labels)
    present = torch.nonzero(counts)[:, 0].tolist()
    rank = hash_words(seed, 0, torch.arange(len(labels)), _VALIDATION, 1)[:, 0]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for place, label in enumerate(present):
        wanted = size // len(present) + (place < size % len(present))
        members = torch.nonzero(labels == label)[:, 0]
        if wanted >= len(members):
            raise InputError(
                f"validation_size {size}",
                f"leaves nothing to train on of class {label} (it has {len(members)} images, {wanted} wanted)",
                "Give a smaller validation_size.",
            )
        held[members[torch.argsort(rank[members], stable=True)[:wanted]]] = True
    return torch.nonzero(~held)[:, 0], torch.nonzero(held)[:, 0]
