"""CIFAR-10 (Krizhevsky 2009), from whichever container it lies in.

Parquet files in the schema of ``uoft-cs/cifar10``, the official python and binary archives (packed or unpacked), or an
image folder. Images are sorted by their content's hash on loading, so the container does not matter: one content has
one order, one fingerprint, one validation split and one name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffvit.data import cifar10_archives as archives
from diffvit.data.cifar10_encoded import parquet_files, read_folder, read_parquet
from diffvit.data.cifar10_rows import CLASSES, PER_CLASS, Rows, check_complete
from diffvit.data.images import Images, fingerprint
from diffvit.files import cache_folder, replacing

_DECODER = "2"  # raise when what is kept of a decoded split changes for the same bytes
_MOSTLY_OFFICIAL = "117 of 60,000 images from a JPEG copy"
# Name and footnote of the contents that are known, by fingerprint: both splits of the copy whose images went through
# JPEG, and of the official pixels but for 92 training and 25 test images.
_KNOWN = {
    "9681542611ea63c8f79ac42db4e84c14c215a46fda54e1be672a13907cb352a3": ("CIFAR-10 (JPEG)", ""),
    "55e4577ce5095c71cfbd7dd27d7ddbf7231ae0e47ac374f3ceb576d062e1e903": ("CIFAR-10 (JPEG)", ""),
    "b38f90b6f6b218775ec15f5382846d8ab8699d8f405630b7cdfe8315f985f827": ("CIFAR-10", _MOSTLY_OFFICIAL),
    "ad95aeea245c7f3953bd9976f3e0ead37a5d1ede787639566e0dc94516d37900": ("CIFAR-10", _MOSTLY_OFFICIAL),
}
# Fingerprints of the official splits without horses and ships. Those 117 images are horses and ships, so that this much
# of the official files is known exactly, and tells them from any other copy.
_OFFICIAL = {
    "8f56654d9735191362c8dbf63f37161e1cf39497a4005b2af1372341e2696ee3",
    "bf685a0d7460acbcd8904e8b645bb4fad0dfcbe277b44c7944beb71f1e41bff4",
}
_HORSE_SHIP = (CLASSES.index("horse"), CLASSES.index("ship"))
UNKNOWN = "CIFAR-10 (unknown copy)"


@dataclass(frozen=True)
class Container:
    """Where CIFAR-10 was found, and as what (a key of :data:`READERS`)."""

    kind: str
    path: Path


def _has_parquet(folder: Path) -> Path | None:
    return folder if parquet_files(folder, "train") or parquet_files(folder, "test") else None


def _has_python(folder: Path) -> Path | None:
    return _first(folder, "cifar-10-batches-py", archives.python_members, "cifar-10-python.tar.gz")


def _has_binary(folder: Path) -> Path | None:
    return _first(folder, "cifar-10-batches-bin", archives.binary_members, "cifar-10-binary.tar.gz")


def _first(folder: Path, unpacked: str, members: Callable[[str], list[str]], packed: str) -> Path | None:
    inside = [name.rpartition("/")[2] for split in PER_CLASS for name in members(split)]
    for place in (folder / unpacked, folder):
        if any((place / name).is_file() for name in inside):
            return place
    return folder / packed if (folder / packed).is_file() else None


def _has_class_folders(folder: Path) -> Path | None:
    return folder if (folder / "train" / CLASSES[0]).is_dir() or (folder / "test" / CLASSES[0]).is_dir() else None


FINDERS: dict[str, Callable[[Path], Path | None]] = {
    "parquet": _has_parquet,
    "python": _has_python,
    "binary": _has_binary,
    "folder": _has_class_folders,
}
READERS: dict[str, Callable[[Path, str], Rows]] = {
    "parquet": read_parquet,
    "python": archives.read_python,
    "binary": archives.read_binary,
    "folder": read_folder,
}
LOOKED_FOR = (
    "train-*.parquet, cifar-10-python.tar.gz, cifar-10-binary.tar.gz, cifar-10-batches-py/, cifar-10-batches-bin/, "
    "train/airplane/"
)


def find(directory: Path) -> Container | None:
    """The first container in ``directory/cifar10``, then in ``directory`` itself; ``None`` when there is none."""
    for place in (directory / "cifar10", directory):
        for kind, finder in FINDERS.items():
            path = finder(place)
            if path is not None:
                return Container(kind, path)
    return None


def load(container: Container, split: str, *, per_class: int | None = None) -> Images:
    """Read one split, check that it is whole, and sort it by content.

    Args:
        container: from :func:`find`.
        split: train (50,000 images) or test (10,000).
        per_class: images of each class in a whole split, where that is not CIFAR-10's own number.

    Raises:
        InputError: the container is damaged, hostile, of another kind, or not complete.
    """
    files = parquet_files(container.path, split) if container.kind == "parquet" else []
    kept = cache_folder() / "decoded" / f"{_content_key(files, split)}.safetensors" if files else None
    images = _recall(kept) if kept else None
    if images is None:
        rows = READERS[container.kind](container.path, split)
        check_complete(rows, per_class or PER_CLASS[split], f"CIFAR-10 {split} split in {container.path}")
        rows = rows.sorted()
        pixels, labels = torch.from_numpy(rows.pixels), torch.from_numpy(rows.labels)
        exact = None if rows.exact is None else torch.from_numpy(rows.exact)
        images = _named(pixels, labels, exact, fingerprint(pixels, labels, CLASSES))
        if kept:
            _keep(images, kept)
    elif per_class or len(images) != PER_CLASS[split] * len(CLASSES):
        check_complete(
            Rows(images.pixels.numpy(), images.labels.numpy()), per_class or PER_CLASS[split], str(container.path)
        )
    return images


def _named(pixels: Tensor, labels: Tensor, exact: Tensor | None, content: str) -> Images:
    """A sorted split with the name and footnote of its content, whose fingerprint this is."""
    name, note = _KNOWN.get(content, (UNKNOWN, ""))
    if name == UNKNOWN and exact is None:
        rest = ~torch.isin(labels, torch.tensor(_HORSE_SHIP))
        name = "CIFAR-10" if fingerprint(pixels[rest], labels[rest], CLASSES) in _OFFICIAL else UNKNOWN
    return Images(pixels, labels, CLASSES, name, content, exact=exact, note=note)


def _content_key(files: list[Path], split: str) -> str:
    digest = hashlib.sha256(f"{_DECODER} {PIL.__version__} {split}".encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _recall(path: Path) -> Images | None:
    """What :func:`_keep` wrote, if it is still what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            pixels, labels, exact = (file.get_tensor(name) for name in ("pixels", "labels", "exact"))
            about = file.metadata()
        content = fingerprint(pixels, labels, CLASSES)
        if _checksum(content, exact) == about["checksum"]:
            return _named(pixels, labels, None if exact.all() else exact, content)
    except (OSError, SafetensorError, KeyError, TypeError):
        pass
    return None


def _checksum(content: str, exact: Tensor) -> str:
    return hashlib.sha256(content.encode() + exact.numpy().tobytes()).hexdigest()


def _keep(images: Images, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            exact = torch.ones(len(images), dtype=torch.bool) if images.exact is None else images.exact
            about = {"checksum": _checksum(images.fingerprint, exact)}
            save_file({"pixels": images.pixels, "labels": images.labels, "exact": exact}, temporary, about)
    except (OSError, SafetensorError):  # a full or read-only cache costs seconds, nothing else
        pass
