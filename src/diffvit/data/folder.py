"""A folder of images, one folder per class: ``DIR/train/CLASS/...`` and ``DIR/test/CLASS/...``.

Every image is decoded and resized once, into one file in the user's cache that is then mapped into memory, so the set
may be larger than RAM. The file's name is a hash of the list of files (paths, sizes, times of change), so a changed
folder is decoded again.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffvit.data.images import Images, decode, fingerprint, mapped, resize
from diffvit.errors import EnvironmentFault, InputError
from diffvit.files import cache_folder, replacing

_DECODER = "2"  # of the cache: increase when the decoded pixels or the cache file change for the same images
_NO_IMAGES = {".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".ini", ".db", ".html"}
_AT_A_TIME = 256  # images decoded before their pixels are written


def load(folder: Path, split: str, *, image_size: int) -> Images:
    """Read one split, train or test (or, in its place, ``val``); images are ordered by class, then path.

    Every image is cropped to the centred square and resized to ``image_size`` pixels a side. InputError for no such
    folders, a class of test that train lacks, an empty class or an unreadable image; EnvironmentFault where the cache's
    disk has no room.
    """
    root = folder / split
    if split == "test" and not root.is_dir() and (folder / "val").is_dir():
        root = folder / "val"
    classes, found = _class_names(folder / "train"), _class_names(root)
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        if name not in classes:
            raise InputError(str(root / name), "is a class that train/ does not have")
        images = sorted(image_files(root / name))
        if not images:
            raise InputError(str(root / name), "holds no images")
        files.extend(images)
        labels.extend([classes.index(name)] * len(images))
    pixels, content = _decoded(root, files, torch.tensor(labels), classes, image_size)
    return Images(pixels, torch.tensor(labels), classes, f"folder {folder.resolve().name}", content)


def _class_names(root: Path) -> list[str]:
    names = class_folders(root) if root.is_dir() else []
    if not names:
        why = "has no folders of classes" if root.is_dir() else "no such folder"
        raise InputError(str(root), why, "A data folder has train/CLASS/ and test/CLASS/ with images.")
    return names


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out, sorted."""
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(str(root), f"cannot be listed ({error.strerror})") from None


def image_files(root: Path) -> Iterator[Path]:
    """Files at any depth that may be images, in no order: not hidden, and without a suffix that says otherwise."""
    for place, _, names in os.walk(root):  # does not follow links to folders: no loops
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() not in _NO_IMAGES:
                yield Path(place) / name


def _decoded(
    root: Path, files: list[Path], labels: Tensor, classes: list[str], size: int
) -> tuple[UInt8[Tensor, "n 3 s s"], str]:
    """The pixels of these files, mapped from the cache, and their fingerprint, the last bytes of the cache file."""
    path = cache_folder() / "folders" / f"{_key(root, files, size)}.pixels"
    shape = (len(files), 3, size, size)
    try:
        with path.open("rb") as file:
            file.seek(math.prod(shape))
            content = file.read().decode()
        if len(content) == 64:
            return mapped(path, shape), content
    except (OSError, ValueError):
        pass  # not there, or not what was written: decode
    try:
        _check_room(path.parent, math.prod(shape))
        with replacing(path) as temporary:
            with temporary.open("wb") as target, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                for first in range(0, len(files), _AT_A_TIME):
                    some = files[first : first + _AT_A_TIME]
                    for pixels in threads.map(lambda file: resize(decode(file, name=str(file)), size), some):
                        target.write(pixels.data)
            content = fingerprint(mapped(temporary, shape), labels, classes)
            with temporary.open("ab") as target:
                target.write(content.encode())
        return mapped(path, shape), content
    except OSError as error:
        hint = "The cache needs room for the decoded images."
        raise EnvironmentFault(str(path), f"cannot be written ({error.strerror})", hint) from None


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


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        hint = "XDG_CACHE_HOME names another place."
        raise EnvironmentFault(str(folder), f"has no room for the decoded images ({found})", hint)
