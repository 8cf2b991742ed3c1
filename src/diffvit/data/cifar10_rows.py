"""What every CIFAR-10 container is read into, and the checks they share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from diffvit.errors import InputError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_CLASS = {"train": 5_000, "test": 1_000}
SIZE = 32


@dataclass(frozen=True)
class Rows:
    """One split as its container holds it, in the container's order.

    Attributes:
        pixels: RGB, 0 to 255.
        labels: index into :data:`CLASSES`.
        exact: which images are the official pixels, where the container says that some are not; else None.
    """

    pixels: UInt8[np.ndarray, "n 3 32 32"]
    labels: Int64[np.ndarray, " n"]
    exact: Bool[np.ndarray, " n"] | None = None

    def sorted(self) -> Rows:
        """By SHA-256 of an image's pixels, then by label: the same content has the same order everywhere."""
        digests = [hashlib.sha256(row.data).digest() for row in np.ascontiguousarray(self.pixels)]
        order = sorted(range(len(digests)), key=lambda row: (digests[row], int(self.labels[row])))
        return Rows(self.pixels[order], self.labels[order], None if self.exact is None else self.exact[order])


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several files, one after the other."""
    pixels, labels = [part.pixels for part in parts], [part.labels for part in parts]
    return Rows(np.concatenate(pixels), np.concatenate(labels))


def check_labels(labels: Int64[np.ndarray, " n"], name: str) -> None:
    """Refuse labels that name no class.

    Raises:
        InputError: a label below 0 or above 9.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(wrong):
        raise InputError(name, f"holds a label that names no class (found {labels[wrong[0]]}, allowed 0 to 9)")


def check_complete(rows: Rows, per_class: int, name: str) -> None:
    """Refuse a split that is not whole: CIFAR-10 has the same number of images in each class.

    Raises:
        InputError: a class has too few or too many images.
    """
    counts = np.bincount(rows.labels, minlength=len(CLASSES))
    total = per_class * len(CLASSES)
    if len(rows.labels) != total:
        raise InputError(name, f"is not the whole split (found {len(rows.labels)} images vs {total})")
    uneven = np.flatnonzero(counts != per_class)
    if len(uneven):
        found = f"found {counts[uneven[0]]} of class {CLASSES[uneven[0]]} vs {per_class}"
        raise InputError(name, f"has the wrong number of images in a class ({found})")
