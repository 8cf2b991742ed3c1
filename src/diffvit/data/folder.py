"""A folder of images, one folder per class: ``DIR/train/CLASS/...`` and ``DIR/test/CLASS/...``.

Every image is decoded and resized once, into one file in the user's cache that is then mapped into memory, so the set
may be larger than RAM. The file's name is a hash of the list of files (paths, sizes, times of change), so a changed
folder is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffvit.data.images import Images, decode, fingerprint, resize
from diffvit.data.mapped import mapped
from diffvit.errors import EnvironmentFault, InputError
from diffvit.files import cache_folder, replacing

_DECODER = "1"  # raise when decoded pixels change for the same bytes
_NO_IMAGES = {".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".ini", ".db", ".html"}
_AT_A_TIME = 256  # images decoded before their pixels are written


def load(folder: Path, split: str, *, image_size: int) -> Images:
    """Read one split; images are ordered by class, then path.

    Args:
        folder: holds ``train`` and ``test`` (or, in its place, ``val``).
        split: train or test.
        image_size: side of the square every image is cropped (centred) and resized to, pixels.

    Raises:
        InputError: no such folders, a class of test that train lacks, an empty class, an unreadable image.
        EnvironmentFault: the cache's disk has no room.
    """
    classes = _class_names(folder / "train")
    root = folder / split
    if split == "test" and not root.is_dir() and (folder / "val").is_dir():
        root = folder / "val"
    found = _class_names(root)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise InputError(str(root / unknown[0]), "is a class that train/ does not have")
    files, labels = [], []
    for name in found:
        mine = sorted(image_files(root / name))
        if not mine:
            raise InputError(str(root / name), "holds no images")
        files.extend(mine)
        labels.extend([classes.index(name)] * len(mine))
    names = torch.tensor(labels, dtype=torch.int64)
    pixels, content = _decoded(root, files, names, classes, image_size)
    return Images(pixels, names, classes, f"folder {folder.resolve().name}", content)


def _class_names(root: Path) -> list[str]:
    if not root.is_dir():
        raise InputError(str(root), "no such folder", "A data folder has train/CLASS/ and test/CLASS/ with images.")
    names = class_folders(root)
    if not names:
        raise InputError(str(root), "has no folders of classes", "A data folder has train/CLASS/ and test/CLASS/.")
    return names


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out, sorted.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(str(root), f"cannot be listed ({error.strerror})") from None


def image_files(root: Path) -> Iterator[Path]:
    """What may be an image at any depth, in no order: not hidden, and no suffix that says otherwise."""
    for place, _, names in os.walk(root):  # does not follow links to folders: no loops
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() not in _NO_IMAGES:
                yield Path(place) / name


def _decoded(
    root: Path, files: list[Path], labels: Tensor, classes: list[str], size: int
) -> tuple[UInt8[Tensor, "n 3 s s"], str]:
    """The pixels of these files, mapped from the cache, and their fingerprint."""
    kept = cache_folder() / "folders" / _key(root, files, size)
    pixels_file, about_file = kept.with_suffix(".pixels"), kept.with_suffix(".json")
    shape = (len(files), 3, size, size)
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        if pixels_file.stat().st_size == about["bytes"] == np.prod(shape, dtype=np.int64):
            return mapped(pixels_file, shape), str(about["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not what was written: decode
    try:
        _write_pixels(files, size, pixels_file)
        pixels = mapped(pixels_file, shape)
        content = fingerprint(pixels, labels, classes)
        with replacing(about_file) as temporary:
            temporary.write_text(json.dumps({"bytes": pixels.numel(), "fingerprint": content}), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(
            str(pixels_file), f"cannot be written ({error.strerror})", "The cache needs room for the decoded images."
        ) from None
    return pixels, content


def _key(root: Path, files: list[Path], size: int) -> str:
    digest = hashlib.sha256(f"{_DECODER} {PIL.__version__} {size} {root.resolve()}\0".encode(errors="surrogateescape"))
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(str(path), f"cannot be read ({error.strerror})") from None
        listed = f"{path.relative_to(root).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\0"
        digest.update(listed.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _write_pixels(files: list[Path], size: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = len(files) * 3 * size * size, shutil.disk_usage(path.parent).free
    if needed > free:
        found = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        raise EnvironmentFault(
            str(path.parent), f"has no room for the decoded images ({found})", "XDG_CACHE_HOME names another place."
        )
    with (
        replacing(path) as temporary,
        temporary.open("wb") as target,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        for first in range(0, len(files), _AT_A_TIME):
            some = files[first : first + _AT_A_TIME]
            for pixels in pool.map(lambda file: resize(decode(file, name=str(file)), size), some):
                target.write(pixels.data)
