"""The official CIFAR-10 archives, packed or unpacked, read as if a stranger had made them.

Only the six expected members are read, in a stream, each up to a size cap; nothing is ever extracted to disk. The
python version's pickles are not executed: :mod:`pickletools` checks every operation against the few that such a batch
needs, and the unpickler knows no class but inert stand-ins for an array and its type.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from diffvit.data.cifar10_rows import SIZE, Rows, check_labels, join
from diffvit.errors import InputError

MAX_MEMBER = 40 * 2**20  # a batch has 10,000 images: 30.7 MB and, in the python version, file names
MAX_UNPACKED = 256 * 2**20  # the whole archive has 186 MB
_PIXELS = 3 * SIZE * SIZE
_AGAIN = "Fetch it again with: diffvit data fetch cifar10"


def python_members(split: str) -> list[str]:
    """Paths inside ``cifar-10-python.tar.gz`` that hold this split, in the official order."""
    names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    return [f"cifar-10-batches-py/{name}" for name in names]


def binary_members(split: str) -> list[str]:
    """Paths inside ``cifar-10-binary.tar.gz`` that hold this split, in the official order."""
    names = [name.rpartition("/")[2] for name in python_members(split)]
    return [f"cifar-10-batches-bin/{name}.bin" for name in names]


def read_python(path: Path, split: str) -> Rows:
    """Read the python version: the archive, or the folder ``cifar-10-batches-py``.

    Raises:
        InputError: truncated, hostile, incomplete, or of another kind.
    """
    return _read(path, python_members(split), _from_pickle)


def read_binary(path: Path, split: str) -> Rows:
    """Read the binary version: the archive, or the folder ``cifar-10-batches-bin``.

    Raises:
        InputError: truncated, incomplete, or of another kind.
    """
    return _read(path, binary_members(split), _from_records)


def _read(path: Path, members: list[str], parse: Callable[[bytes, str], Rows]) -> Rows:
    try:
        held = _unpacked(path, members) if path.is_dir() else _packed(path, members)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(str(path), f"is not a whole .tar.gz archive ({why})", _AGAIN) from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    missing = [name for name in members if name not in held]
    if missing:
        raise InputError(str(path), f"lacks {missing[0]} ({len(held)} of {len(members)} members found)", _AGAIN)
    return join([parse(held[name], f"{path}, {name}") for name in members])


def _unpacked(folder: Path, members: list[str]) -> dict[str, bytes]:
    held = {}
    for name in members:
        file = folder / name.rpartition("/")[2]
        if file.is_file():
            with file.open("rb") as stream:
                held[name] = _capped(stream, f"{file}")
    return held


def _packed(path: Path, members: list[str]) -> dict[str, bytes]:
    held: dict[str, bytes] = {}
    with (
        gzip.open(path, "rb") as unpacked,
        tarfile.open(fileobj=cast("BinaryIO", _Bounded(unpacked, str(path))), mode="r|") as archive,  # calls read only
    ):
        for member in archive:
            if member.name not in members:
                continue
            name = f"{path}, {member.name}"
            if not member.isreg() or member.issparse():
                raise InputError(name, "is not a regular file inside the archive (a link or special file)")
            if member.name in held:
                raise InputError(name, "is in the archive twice")
            if member.size > MAX_MEMBER:
                raise InputError(name, f"is too large ({member.size} bytes vs at most {MAX_MEMBER})")
            stream = archive.extractfile(member)
            assert stream is not None  # a regular member has content
            held[member.name] = _capped(stream, name)
            if len(held[member.name]) != member.size:
                raise InputError(name, f"is cut short ({len(held[member.name])} of {member.size} bytes)", _AGAIN)
            if len(held) == len(members):
                break
    return held


def _capped(stream: Any, name: str) -> bytes:
    data = stream.read(MAX_MEMBER + 1)
    if len(data) > MAX_MEMBER:
        raise InputError(name, f"is too large (over {MAX_MEMBER} bytes)")
    return data


class _Bounded:
    """A stream that gives at most :data:`MAX_UNPACKED` bytes: no small file unpacks into a large one."""

    def __init__(self, stream: gzip.GzipFile, name: str) -> None:
        self.stream, self.left, self.name = stream, MAX_UNPACKED, name

    def read(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise InputError(self.name, f"unpacks to more than {MAX_UNPACKED} bytes, which CIFAR-10 does not")
        return data


def _from_records(data: bytes, name: str) -> Rows:
    if not data or len(data) % (1 + _PIXELS):
        raise InputError(name, f"is not a whole number of {1 + _PIXELS}-byte records (found {len(data)} bytes)", _AGAIN)
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return _rows(records[:, 1:], records[:, 0].astype(np.int64), name)


def _rows(pixels: np.ndarray, labels: np.ndarray, name: str) -> Rows:
    check_labels(labels, name)
    return Rows(np.ascontiguousarray(pixels).reshape(-1, 3, SIZE, SIZE), labels)


# What a pickled batch is made of, as written by the official Python 2 script or by any Python since: a dict of byte
# strings, a list of small integers and one array. Everything else, above all any other global, is refused.
_NEEDED = """
PROTO FRAME STOP MARK POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1
STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_OPERATIONS = frozenset(_NEEDED.split())
_MAX_MEMO = 1_000_000  # the real unpickler reserves memory for whatever slot is named


class _Inert:
    """Stands in for ``numpy.dtype`` and ``numpy.ndarray``: keeps what it is given and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _NdArray:
    """The name ``numpy.ndarray``, which a pickle only mentions and never calls."""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _Inert,
}


class _BatchUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.may_encode = 2 * MAX_MEMBER  # characters; else one long string, encoded often, would fill the memory

    def encode(self, text: str, _encoding: str) -> bytes:
        """How newer Pythons spell bytes in an old protocol."""
        self.may_encode -= len(text)
        if self.may_encode < 0:
            raise pickle.UnpicklingError("it grows beyond what a CIFAR-10 batch holds")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")
        return _ALLOWED[module, name]


def _from_pickle(data: bytes, name: str) -> Rows:
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name not in _OPERATIONS:
                raise pickle.UnpicklingError(f"operation {operation.name}, which no CIFAR-10 batch needs")
            if operation.name.endswith("PUT") and argument and argument > _MAX_MEMO:
                raise pickle.UnpicklingError(f"memo slot {argument}, which no CIFAR-10 batch needs")
        batch = _BatchUnpickler(data).load()
    except Exception as error:  # malformed pickles raise nearly anything
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(name, f"is not a CIFAR-10 batch ({why})", _AGAIN) from None
    if not isinstance(batch, dict):
        raise InputError(name, f"is not a CIFAR-10 batch (found a {type(batch).__name__} vs a dict)")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    labels = batch.get("labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(name, "is not a CIFAR-10 batch (no list of whole numbers under 'labels')")
    pixels = _array(batch.get("data"), name)
    if len(pixels) != len(labels):
        raise InputError(name, f"has {len(pixels)} images but {len(labels)} labels")
    return _rows(pixels, np.array([min(max(label, -1), 10) for label in labels], dtype=np.int64), name)


def _array(stand_in: Any, name: str) -> np.ndarray:
    """The pixels, from the state that the pickle gave its array: version, shape, type, order, bytes."""
    try:
        _, shape, kind, fortran, raw = stand_in.state
        (count, width), type_name = shape, kind.arguments[0]
    except (AttributeError, TypeError, ValueError, IndexError):
        raise InputError(name, "is not a CIFAR-10 batch (no array under 'data')") from None
    if type_name not in ("u1", b"u1", "uint8", b"uint8") or fortran or width != _PIXELS:
        found = f"type {type_name!r}, shape {shape!r}"[:80]
        raise InputError(
            name, f"has other pixels than a CIFAR-10 batch (found {found} vs type 'u1', shape (n, {_PIXELS}))"
        )
    if not isinstance(raw, bytes) or type(count) is not int or len(raw) != count * width:
        raise InputError(name, "is not a CIFAR-10 batch (its pixels do not fill its shape)")
    return np.frombuffer(raw, dtype=np.uint8).reshape(count, width)
