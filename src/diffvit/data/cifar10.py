"""CIFAR-10 (Krizhevsky 2009), read from any of its file formats.

Parquet files in the schema of ``uoft-cs/cifar10``, the official python and binary archives (packed or unpacked), or an
image folder. Images are sorted by their content's hash on loading, so the container does not matter: one content has
one order, one fingerprint, one validation split and one name.

Files are untrusted input. Archives are never extracted to disk, only their expected members are read, and unpickling
a batch of the python version runs none of the code that the pickle names.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import operator
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffvit.data.images import Images, decode, fingerprint
from diffvit.errors import InputError
from diffvit.files import cache_folder, replacing, sha256_of

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_CLASS = {"train": 5_000, "test": 1_000}
SIZE = 32
UNKNOWN = "CIFAR-10 (unknown copy)"
MAX_UNPACKED = 256 * 2**20  # bytes; the whole archive has 186 MB, the largest member 31 MB
MAX_ROWS = 100_000  # of a Parquet file
NOT_EXACT = ".from-jpeg.png"  # ending of the path of a Parquet row whose image was taken from a JPEG copy
_PIXELS = 3 * SIZE * SIZE
_AGAIN = "Fetch it again with: diffvit data fetch cifar10"

_DECODER = "3"  # of the cache: increase when the decoded split changes for the same files
_MOSTLY_OFFICIAL = "117 of 60,000 images from a JPEG copy"
# Name and footnote by fingerprint: both splits of the copy whose images went through JPEG, and of the official pixels
# but for 92 training and 25 test images.
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


@dataclass(frozen=True)
class Container:
    """Where CIFAR-10 was found, and in which format (a key of :data:`READERS`)."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Rows:
    """One split in the files' order: pixels, labels, and which images have the original pixels where that is known."""

    pixels: UInt8[np.ndarray, "n 3 32 32"]
    labels: Int64[np.ndarray, " n"]
    exact: Bool[np.ndarray, " n"] | None = None


def find(directory: Path) -> Container | None:
    """CIFAR-10 in ``directory/cifar10``, else in ``directory`` itself, in the first format found; ``None`` if none."""
    for place in (directory / "cifar10", directory):
        if parquet_files(place, "train") or parquet_files(place, "test"):
            return Container("parquet", place)
        for kind in ("python", "binary"):
            names = [Path(name) for split in PER_CLASS for name in _members(kind, split)]
            for folder in (place / names[0].parent, place):
                if any((folder / name.name).is_file() for name in names):
                    return Container(kind, folder)
            packed = place / f"cifar-10-{kind}.tar.gz"
            if packed.is_file():
                return Container(kind, packed)
        if any((place / split / CLASSES[0]).is_dir() for split in PER_CLASS):
            return Container("folder", place)
    return None


LOOKED_FOR = (
    "train-*.parquet, cifar-10-python.tar.gz, cifar-10-binary.tar.gz, cifar-10-batches-py/, cifar-10-batches-bin/, "
    "train/airplane/"
)


def load(container: Container, split: str) -> Images:
    """Read one split, train (50,000 images) or test (10,000), check that it is whole, and sort it by content.

    InputError where the container is damaged, hostile, of another kind, or not complete.
    """
    files = parquet_files(container.path, split) if container.kind == "parquet" else []
    cached = cache_folder() / "decoded" / f"{_content_key(files, split)}.safetensors"
    if files and (images := _read_cache(cached)) is not None:
        return images
    rows = READERS[container.kind](container.path, split)
    _check_complete(rows.labels, split, container.path)
    digests = [hashlib.sha256(row.data).digest() for row in np.ascontiguousarray(rows.pixels)]
    order = sorted(range(len(digests)), key=lambda row: (digests[row], int(rows.labels[row])))
    exact = None if rows.exact is None else torch.from_numpy(rows.exact[order])
    images = _named(torch.from_numpy(rows.pixels[order]), torch.from_numpy(rows.labels[order]), exact)
    if files:
        _write_cache(images, cached)
    return images


def _check_complete(labels: Int64[np.ndarray, " n"], split: str, path: Path) -> None:
    name, total = f"CIFAR-10 {split} split in {path}", PER_CLASS[split] * len(CLASSES)
    wrong = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(wrong):
        raise InputError(name, f"holds a label that names no class (found {wrong[0]}, allowed 0 to 9)")
    if len(labels) != total:
        raise InputError(name, f"is not the whole split (found {len(labels)} images vs {total})")
    for label, count in enumerate(np.bincount(labels, minlength=len(CLASSES))):
        if count != PER_CLASS[split]:
            found = f"found {count} of class {CLASSES[label]} vs {PER_CLASS[split]}"
            raise InputError(name, f"has the wrong number of images in a class ({found})")


def _named(pixels: Tensor, labels: Tensor, exact: Tensor | None) -> Images:
    """A sorted split with the name and footnote of its content."""
    content = fingerprint(pixels, labels, CLASSES)
    name, note = _KNOWN.get(content, (UNKNOWN, ""))
    if name == UNKNOWN and exact is None:
        rest = ~torch.isin(labels, torch.tensor([CLASSES.index("horse"), CLASSES.index("ship")]))
        name = "CIFAR-10" if fingerprint(pixels[rest], labels[rest], CLASSES) in _OFFICIAL else UNKNOWN
    return Images(pixels, labels, CLASSES, name, content, exact=exact, note=note)


def _content_key(files: list[Path], split: str) -> str:
    digest = hashlib.sha256(f"{_DECODER} {PIL.__version__} {split}".encode())
    for path in files:
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()[:32]


def _checksum(images: Images) -> str:
    exact = b"" if images.exact is None else images.exact.numpy().tobytes()
    return hashlib.sha256(images.fingerprint.encode() + exact).hexdigest()


def _read_cache(path: Path) -> Images | None:
    """What :func:`_write_cache` wrote; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            images = _named(tensors["pixels"], tensors["labels"], tensors.get("exact"))
            return images if _checksum(images) == file.metadata()["checksum"] else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _write_cache(images: Images, path: Path) -> None:
    tensors = {"pixels": images.pixels, "labels": images.labels}
    if images.exact is not None:
        tensors["exact"] = images.exact
    # Where the cache is full or read-only, decode again next time.
    with contextlib.suppress(OSError, SafetensorError), replacing(path) as temporary:
        save_file(tensors, temporary, {"checksum": _checksum(images)})


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Files of one split (``train-00000-of-00001.parquet`` and the like), here or in ``plain_text/``."""
    here = sorted(folder.glob(f"{split}*.parquet"))
    return here or sorted((folder / "plain_text").glob(f"{split}*.parquet"))


def read_parquet(folder: Path, split: str) -> Rows:
    """Decode every row of the split's files; rows whose path ends in :data:`NOT_EXACT` are not ``exact``."""
    files = parquet_files(folder, split)
    if not files:
        raise InputError(str(folder), f"holds no {split}-*.parquet beside the other split's")
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    exact: list[bool] = []
    for path in files:
        try:
            with pq.ParquetFile(path, memory_map=False) as file:
                _check_schema(file, path)
                for batch in file.iter_batches(512, columns=["img", "label"], use_threads=False):
                    if batch.column("label").null_count:
                        raise InputError(str(path), "has rows without a label")
                    labels.extend(batch.column("label").to_pylist())
                    for image in batch.column("img").to_pylist():
                        row = image or {}
                        pixels.append(_decode(row.get("bytes") or b"", f"{path}, row {len(pixels)}"))
                        exact.append(not str(row.get("path")).endswith(NOT_EXACT))
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())[:160]
            raise InputError(str(path), f"cannot be read as Parquet ({why})", "Fetch the file again.") from None
    stacked = np.array(pixels, np.uint8).reshape(-1, 3, SIZE, SIZE)
    return Rows(stacked, np.array(labels, np.int64), None if all(exact) else np.array(exact))


def _check_schema(file: pq.ParquetFile, path: Path) -> None:
    schema = file.schema_arrow
    types = {name: schema.field(name).type for name in schema.names}
    images = [pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.struct([("bytes", pa.binary())])]
    if types.get("img") not in images or types.get("label") != pa.int64():
        found = ", ".join(f"{name}: {kind}" for name, kind in types.items())[:160]
        wanted = "img: struct<bytes: binary, path: string>, label: int64"
        raise InputError(str(path), f"has another schema (found {found} vs {wanted})")
    if file.metadata.num_rows > MAX_ROWS:
        raise InputError(str(path), f"has too many rows (found {file.metadata.num_rows} vs at most {MAX_ROWS})")


def _decode(data: bytes | Path, name: str) -> UInt8[np.ndarray, "3 32 32"]:
    pixels = decode(data, name=name)
    if pixels.shape != (3, SIZE, SIZE):
        found = f"{pixels.shape[2]} x {pixels.shape[1]} pixels"
        raise InputError(name, f"is not a CIFAR-10 image (found {found} vs 32 x 32)")
    return pixels


def read_folder(folder: Path, split: str) -> Rows:
    """Decode ``folder/split/CLASS/*``, with the ten official class names as folder names."""
    root = folder / split
    found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if found != CLASSES:
        why = f"found {', '.join(found) or 'none'} vs {', '.join(CLASSES)}"
        raise InputError(str(root), f"does not have CIFAR-10's class folders ({why})")
    files = [sorted(path for path in (root / name).iterdir() if path.name[0] != ".") for name in CLASSES]
    labels = np.repeat(np.arange(len(CLASSES)), [len(each) for each in files])
    pixels = [_decode(path, str(path)) for each in files for path in each]
    return Rows(np.array(pixels, np.uint8).reshape(-1, 3, SIZE, SIZE), labels)


def _members(kind: str, split: str) -> list[str]:
    """Paths inside the python or binary archive that hold a split, in the official order."""
    folder, ending = {"python": ("cifar-10-batches-py", ""), "binary": ("cifar-10-batches-bin", ".bin")}[kind]
    names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    return [f"{folder}/{name}{ending}" for name in names]


def read_archive(path: Path, split: str, kind: str) -> Rows:
    """Read the official archive or the folder that it was unpacked to; ``kind`` is python or binary."""
    members, parse = _members(kind, split), _from_pickle if kind == "python" else _from_records
    try:
        held = _unpacked(path, members) if path.is_dir() else _packed(path, members)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OverflowError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(str(path), f"is not a whole .tar.gz archive ({why})", _AGAIN) from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    missing = [name for name in members if name not in held]
    if missing:
        raise InputError(str(path), f"lacks {missing[0]} ({len(held)} of {len(members)} members found)", _AGAIN)
    parts = [parse(held[name], f"{path}, {name}") for name in members]
    return Rows(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))


READERS: dict[str, Callable[[Path, str], Rows]] = {
    "parquet": read_parquet,
    "python": partial(read_archive, kind="python"),
    "binary": partial(read_archive, kind="binary"),
    "folder": read_folder,
}


def _unpacked(folder: Path, members: list[str]) -> dict[str, bytes]:
    files = {name: folder / Path(name).name for name in members}
    for file in files.values():
        if file.is_file() and file.stat().st_size > MAX_UNPACKED:
            raise InputError(str(file), f"is too large ({file.stat().st_size} bytes vs at most {MAX_UNPACKED})")
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}


def _packed(path: Path, members: list[str]) -> dict[str, bytes]:
    with gzip.open(path, "rb") as stream:
        unpacked = stream.read(MAX_UNPACKED + 1)
    if len(unpacked) > MAX_UNPACKED:
        raise InputError(str(path), f"unpacks to more than {MAX_UNPACKED} bytes, which CIFAR-10 does not")
    held: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
        for member in archive:
            if member.size < 0:  # would make the reader go back to the same member for ever
                raise tarfile.ReadError("a member of negative size")
            if member.name not in members:
                continue
            stream = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if stream is None:
                raise InputError(f"{path}, {member.name}", "is not a regular file inside the archive")
            if member.name in held:
                raise InputError(f"{path}, {member.name}", "is in the archive twice")
            held[member.name] = stream.read()
    return held


def _from_records(data: bytes, name: str) -> Rows:
    if not data or len(data) % (1 + _PIXELS):
        raise InputError(name, f"is not a whole number of {1 + _PIXELS}-byte records (found {len(data)} bytes)", _AGAIN)
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return Rows(records[:, 1:].reshape(-1, 3, SIZE, SIZE), records[:, 0].astype(np.int64))


class _Inert:
    """Placeholder for the numpy objects that a batch names: keeps the arguments it is given and runs nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


_NUMPY = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def _refuse(_: object) -> None:
    raise pickle.UnpicklingError("it holds an operation that no CIFAR-10 batch needs")


class _BatchUnpickler(pickle._Unpickler):
    """Reads dicts, lists, numbers and strings; numpy's names become :class:`_Inert`, all others are refused.

    It builds on the unpickler in Python: the one in C reserves memory for whatever memo slot is named. Refused
    are operations that reserve what is claimed, or take objects that other code of the process has registered.
    """

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | dict.fromkeys(
        pickle.BYTEARRAY8 + pickle.EXT1 + pickle.EXT2 + pickle.EXT4, _refuse
    )

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.may_encode = 2 * len(data)  # characters; else one long string, encoded often, would fill the memory

    def encode(self, text: str) -> bytes:
        """How newer Pythons spell bytes in an old protocol."""
        self.may_encode -= len(text)
        if self.may_encode < 0:
            raise pickle.UnpicklingError("it grows beyond what a CIFAR-10 batch holds")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: self.encode(text)
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")
        return _Inert


def _from_pickle(data: bytes, name: str) -> Rows:
    try:
        loaded = _BatchUnpickler(data).load()
        batch: dict[Any, Any] = {k.decode() if isinstance(k, bytes) else k: value for k, value in loaded.items()}
        labels = batch.get("labels")
        _, shape, kind, fortran, raw = batch["data"].state  # version, shape, type, order and bytes of the array
        (count, width), kind = map(operator.index, shape), kind.arguments[0]
        whole = isinstance(raw, bytes) and len(raw) == count * width
        found = f"type {kind!r}, shape {shape!r}"[:80]
    except Exception as error:  # malformed pickles raise nearly anything
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(name, f"is not a CIFAR-10 batch ({why})", _AGAIN) from None
    if kind not in ("u1", b"u1", "uint8", b"uint8") or fortran or width != _PIXELS or not whole:
        raise InputError(name, f"has other pixels than a CIFAR-10 batch (found {found} vs 'u1', (n, {_PIXELS}))")
    if not isinstance(labels, list) or any(type(label) is not int or not 0 <= label <= 9 for label in labels):
        raise InputError(name, "is not a CIFAR-10 batch (its labels are not a list of whole numbers from 0 to 9)")
    if count != len(labels):
        raise InputError(name, f"has {count} images but {len(labels)} labels")
    return Rows(np.frombuffer(raw, np.uint8).reshape(-1, 3, SIZE, SIZE), np.array(labels, dtype=np.int64))
