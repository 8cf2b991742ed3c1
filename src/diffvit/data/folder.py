"""A folder of images as a data source: every file read once, into one memory-mapped file in the user's cache.

The files and their classes are those of :func:`diffvit.data.layout.find_layout`. One pass reads all of them before
anything starts: it decodes and resizes each image, and notes what cannot be read, so that all faults are reported
together. The pass is kept in the cache while it goes on: one that was killed is taken up where it stopped. The cache's
file name is a hash of the folder and one of the list of files (paths, sizes, times of change), so a changed folder is
read again; then its earlier copies are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffvit.data.images import Images, fingerprint, mapped, read_image, resized_picture, set_apart, with_channels
from diffvit.data.layout import TEST, TRAIN, VALIDATION, Layout, find_layout
from diffvit.errors import EnvironmentFault, InputError, Size, sides
from diffvit.files import cache_folder, disk_faults, flush, replacing

_DECODER = "3"  # of the cache: increase when the decoded pixels or the cache's files change for the same images
_AT_A_TIME = 1024  # images read before their pixels and what is known of them are written
_SHOWN_EVERY = 5.0  # seconds
_TWICE_SHOWN = 10  # pictures that are there twice
_LARGE = 16_000_000  # bytes of a file; such files are decoded one at a time, for the memory
_one_large = threading.Lock()
# What is known of each file: the hash of its pixels, its size, whether it is grey, and why it could not be read.
_RECORD = np.dtype([("hash", "V16"), ("width", "<u4"), ("height", "<u4"), ("grey", "?"), ("fault", "S190")])
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Scan:
    """All files of a data folder as they were read.

    ``pixels``, uint8 (files, 3, h, w), are zero where a file could not be read; ``records`` has what is known of each
    file: ``hash`` (of the decoded pixels), ``width``, ``height``, ``grey``, ``fault`` (empty where it was read).
    ``cache`` is the file that holds the pixels.
    """

    layout: Layout
    pixels: UInt8[Tensor, "files 3 h w"]
    records: np.ndarray
    cache: Path

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Path and reason of every file that could not be read."""
        bad = np.flatnonzero(self.records["fault"] != b"")
        return [(self.layout.files[n], self.records["fault"][n].decode(errors="replace")) for n in bad.tolist()]

    @cached_property
    def grey(self) -> bool:
        """Whether every image is stored as grey levels."""
        read = self.records[self.records["fault"] == b""]
        return len(read) > 0 and bool(read["grey"].all())

    def rows(self, test_size: float) -> dict[str, list[int]]:
        """For train, validation and test the numbers of the files that could be read, in the layout's order.

        A folder without test images gives this share of each class, by :func:`diffvit.data.images.set_apart`.
        """
        read = np.flatnonzero(self.records["fault"] == b"").tolist()
        splits, labels = self.layout.splits, self.layout.labels
        rows = {split: [n for n in read if splits[n] == split] for split in (TRAIN, VALIDATION, TEST)}
        if TEST in splits or not test_size:
            return rows
        train, hashes = rows[TRAIN], self.records["hash"]
        apart = set_apart([labels[n] for n in train], [hashes[n].tobytes() for n in train], test_size)
        taken = {train[place] for place in apart}
        return {TRAIN: [n for n in train if n not in taken], VALIDATION: [], TEST: sorted(taken)}

    def repeated(self, rows: dict[str, list[int]]) -> list[str]:
        """A line for each picture that is in more than one split, or under more than one class, with both paths."""
        split_of = {n: split for split, numbers in rows.items() for n in numbers}
        first: dict[bytes, int] = {}
        lines = []
        for n in split_of:
            one = first.setdefault(self.records["hash"][n].tobytes(), n)
            classes = [self.layout.classes[self.layout.labels[each]] for each in (one, n)]
            where = "two classes" if classes[0] != classes[1] else f"{split_of[one]} and {split_of[n]}"
            if classes[0] != classes[1] or split_of[one] != split_of[n]:
                lines.append(f"the same picture is in {where}: {self.layout.files[one]} and {self.layout.files[n]}")
        return lines


def load(
    place: Path,
    split: str,
    *,
    image_size: Size,
    channels: int | None = None,
    test_size: float = 0.2,
    bad_files: str = "refuse",
    announce: Announce | None = None,
) -> Images:
    """Read one split, its images ordered by class, then path; arguments as :func:`diffvit.data.sources.load`.

    Where all are stored as grey levels they have one channel, unless ``channels`` says otherwise. ``announce`` gets a
    line for each bad file and for each picture that is there twice, and how far the reading is.

    Raises:
        InputError: as :func:`diffvit.data.layout.find_layout`; a file that cannot be read; no test images.
        EnvironmentFault: the cache's disk has no room.
    """
    say = announce or (lambda _: None)
    scan = read(place, image_size, say)
    faults, rows = scan.faults, scan.rows(test_size)
    if split == TRAIN:
        apart = "" if TEST in scan.layout.splits else f"; {test_size:.0%} of each class are set apart as test images"
        say(f"{place}: {scan.layout.words}{apart}")
        twice = scan.repeated(rows)
        more = [f"{len(twice) - _TWICE_SHOWN:,} more pictures are there twice"] if len(twice) > _TWICE_SHOWN else []
        unread = [f"{path} {why}" for path, why in faults]
        for line in [*unread, *twice[:_TWICE_SHOWN], *more]:
            say(f"warning: {line}")
    if faults and bad_files != "skip":
        few = ", ".join(f"{path} {why}" for path, why in faults[:3])
        few += f", and {len(faults) - 3:,} more" if len(faults) > 3 else ""
        why = f"{len(faults):,} of {len(scan.layout.files):,} files cannot be read: {few}"
        hint = f"See all of them with: diffvit data info {place}. --bad-files skip leaves them out."
        raise InputError(str(place), why, hint)
    labels, classes = torch.tensor(scan.layout.labels), scan.layout.classes
    trained = set(labels[rows[TRAIN]].tolist())
    if lost := [name for label, name in enumerate(classes) if label not in trained]:
        why = f"no training image of class {lost[0]} can be read"
        raise InputError(str(place), why, "Mend some, or take the class away.")
    if not rows[split]:
        why, hint = f"has too few images to {split}", "Give each class more, or another test_size."
        if TEST in scan.layout.splits:
            why, hint = f"no {split} image can be read", "Mend some, or take the folder of test images away."
        raise InputError(str(place), why, hint)
    count = channels or (1 if scan.grey else 3)
    pixels = scan.pixels[:, :1] if count == 1 and scan.grey else scan.pixels
    whole = Images(pixels, labels, classes, f"folder {scan.layout.root.resolve().name}", "", skipped=tuple(faults))

    def images(numbers: list[int]) -> Images:
        found = whole.select(numbers)
        found = replace(found, pixels=with_channels(found.pixels, count))
        return replace(found, fingerprint=_fingerprint(scan.cache, found, numbers))

    own = images(rows[VALIDATION]) if split == TRAIN and rows[VALIDATION] else None
    return replace(images(rows[split]), validation=own, own_test=TEST in scan.layout.splits)


def read(place: Path, size: Size, say: Announce) -> Scan:
    """Every file of a data folder, read now or known from before; ``say`` is told every few seconds how far it is."""
    layout = find_layout(place)
    path = cache_folder() / "folders" / f"{_key(place, layout, size)}.pixels"
    known, count, slot = path.with_suffix(".records"), len(layout.files), 3 * math.prod(sides(size))
    parts = [file.with_name(f"{file.name}.part") for file in (known, path)]

    def kept() -> Scan | None:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # which lasts as long as the mapping
            if path.stat().st_size == count * slot and known.stat().st_size == count * _RECORD.itemsize:
                return Scan(layout, mapped(file, (count, 3, *sides(size))), np.fromfile(known, _RECORD), path)
        return None

    if found := kept():
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name.partition('-')[0]}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that reads the same folder is waited for
            if found := kept():
                return found
            with parts[0].open("ab") as records, parts[1].open("ab") as pixels:
                done = min(records.tell() // _RECORD.itemsize, pixels.tell() // slot)
                records.truncate(done * _RECORD.itemsize)
                pixels.truncate(done * slot)
                _check_room(path.parent, (count - done) * slot)
                if done or count > _AT_A_TIME:
                    say(f"reading {count:,} files" + (f", {done:,} of them were read before" if done else ""))
                shown = time.monotonic()
                with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                    for first in range(done, count, _AT_A_TIME):
                        names = layout.files[first : first + _AT_A_TIME]
                        found = list(threads.map(lambda name: _read_file(layout.root / name, size), names))
                        pixels.write(b"".join(each for each, _ in found))
                        pixels.flush()
                        flush(parts[1])  # before the records, which say that the pixels are there
                        records.write(np.array([record for _, record in found], _RECORD).tobytes())
                        records.flush()
                        if time.monotonic() - shown > _SHOWN_EVERY:
                            shown = time.monotonic()
                            say(f"read {first + len(names):,} of {count:,} files")
                flush(parts[0])
            parts[1].replace(path)
            parts[0].replace(known)
            flush(path.parent)
            _remove_earlier(path)
            made = kept()
    except OSError as error:
        hint = "It is the cache of decoded images; XDG_CACHE_HOME names another place for it."
        raise EnvironmentFault(str(path), f"cannot be written ({error.strerror})", hint) from None
    except KeyboardInterrupt:
        say("interrupted: what was read is kept, the same command goes on with it")
        raise
    assert made is not None  # this process has just written it
    return made


def _remove_earlier(path: Path) -> None:
    """Remove the other copies of the same folder, complete or not, but those that are mapped, and so locked.

    (On one machine those could be unlinked too, as Linux keeps their content for whoever has mapped it; on a shared
    file system it would be lost to the others.) The caller holds the folder's lock.
    """
    same = path.parent.glob(f"{path.name.partition('-')[0]}-*")
    for stem in {file.name.partition(".")[0] for file in same} - {path.stem}:
        with suppress(OSError), path.with_name(f"{stem}.pixels").open("ab") as pixels:
            fcntl.flock(pixels, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for file in path.parent.glob(f"{stem}.*"):
                file.unlink()


def _fingerprint(cache: Path, images: Images, numbers: list[int]) -> str:
    """The images' fingerprint, computed once for each selection of a folder's files, as all their pixels are read."""
    asked = hashlib.sha256(repr((images.pixels.shape[1], images.classes, images.labels.tolist(), numbers)).encode())
    path = cache.with_suffix(f".{asked.hexdigest()[:16]}.sha256")
    with suppress(OSError):
        if len(known := path.read_text(encoding="utf-8", errors="replace")) == 64:
            return known
    found = fingerprint(images.pixels, images.labels, images.classes)
    with disk_faults(path, "The cache needs room for it."), replacing(path) as temporary:
        temporary.write_text(found, encoding="utf-8")
    return found


def summary(place: Path, size: Size) -> dict[str, Any]:
    """What :func:`read` knows of a data folder, in words: its ``layout``, and the ``sizes`` of its images."""
    scan = read(place, size, lambda _: None)
    records = scan.records[scan.records["fault"] == b""]
    sides = [sorted(records[side].tolist()) for side in ("width", "height")]
    low, middle, high = (" x ".join(str(side[at]) for side in sides) for at in (0, len(records) // 2, -1))
    kind = "grey" if scan.grey else "colour"
    return {"layout": scan.layout.words, "sizes": f"{len(records):,} {kind}, {low} to {high}, median {middle} pixels"}


def _read_file(file: Path, size: Size) -> tuple[bytes, tuple[Any, ...]]:
    """The resized pixels of a file, and its record."""
    try:
        with _one_large if file.stat().st_size > _LARGE else nullcontext():
            picture, grey = read_image(file, name="")
            digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
            digest.update(np.asarray(picture).data)
            pixels = np.asarray(resized_picture(picture, size)).transpose(2, 0, 1).tobytes()
            return pixels, (digest.digest(), *picture.size, grey, b"")
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except InputError as error:
        fault = error.why
    return bytes(3 * math.prod(sides(size))), (bytes(16), 0, 0, False, fault.encode()[:190])


def _key(place: Path, layout: Layout, size: Size) -> str:
    """Hashes of the place and size, and of the list of files: their content is taken to be that of sizes and times."""
    root = os.path.realpath(place if place.is_file() else layout.root)
    same = hashlib.sha256(f"{size} {root}".encode(errors="surrogateescape")).hexdigest()[:16]
    version = f"{_DECODER} {PIL.__version__} {find_spec('pillow_heif') is not None}"  # HEIC is read only with it
    digest = hashlib.sha256(version.encode())
    for name in layout.files:
        state: Any = None
        with suppress(OSError):
            state = os.stat(f"{layout.root}/{name}")  # noqa: PTH116  (a fifth of the time of Path.stat)
        listed = f"{name}\0{state and state.st_size}\0{state and state.st_mtime_ns}\0"
        digest.update(listed.encode(errors="surrogateescape"))
    return f"{same}-{digest.hexdigest()[:32]}"


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        hint = "XDG_CACHE_HOME names another place."
        raise EnvironmentFault(str(folder), f"has no room for the decoded images ({found})", hint)
