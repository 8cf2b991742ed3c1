"""The weights inside a TorchScript archive, read without its code: nothing is compiled, imported or called.

Such an archive is a zip with a program under ``code/``, one pickled object tree in ``data.pkl`` and the bytes of each
tensor in a file of its own. The tree names the classes of the program, but its shape alone tells the names of the
tensors; so every class becomes one inert kind of node here, and ``code/`` stays closed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffvit.errors import InputError

_HINT = "Take the archive from where it was published, or give a state dict."
_PICKLE_LIMIT = 16 * 2**20  # bytes; that of a large CLIP has under one
_NAMES_LIMIT, _DEPTH_LIMIT = 100_000, 50
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


def is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive: it has constants of a program beside its data."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    root = _root(names)
    return root is not None and f"{root}/constants.pkl" in names


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive by their dotted names, parameters, buffers and plain attributes alike.

    They are mapped from the file, on the CPU wherever they were saved, in the archive's dtype.

    Raises:
        InputError: not such an archive, damaged, or holding anything else than modules, numbers, texts and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(path, archive)
            tree = _Reader(path, records).load()
        return _named(path, tree)
    except InputError:
        raise
    except _RefusedError as error:
        raise InputError(str(path), f"holds Python objects other than weights ({error}): refused", _HINT) from None
    except Exception as error:  # whatever a damaged pickle or archive makes the readers do
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(str(path), f"is damaged ({why})", _HINT) from None


class _RefusedError(Exception):
    pass


class _Node:
    """An object of the archive's own classes: what it holds, and nothing that it does."""

    held: Any = None

    def __setstate__(self, state: Any) -> None:
        self.held = state


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    start: int
    count: int


def _root(names: set[str]) -> str | None:
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    return roots[0] if len(roots) == 1 else None


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Where the pickle and each tensor lie in the file: name -> (first byte, bytes)."""
    root = _root(set(archive.namelist()))
    size, total, found = path.stat().st_size, 0, {}
    with path.open("rb") as file:
        for entry in archive.infolist():
            name = entry.filename.removeprefix(f"{root}/")
            if name == "byteorder":
                with archive.open(entry) as order:
                    if order.read(16) != b"little":
                        raise InputError(str(path), "was saved on a machine of another byte order", _HINT)
            if name != "data.pkl" and not name.startswith("data/"):
                continue
            total += entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or total > size:
                raise InputError(str(path), "has packed tensors, as TorchScript never has: refused", _HINT)
            file.seek(entry.header_offset)
            header = file.read(30)
            start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
            if header[:4] != b"PK\x03\x04" or start + entry.file_size > size:
                raise InputError(str(path), f"is cut short or damaged ({name})", _HINT)
            found[name] = (start, entry.file_size)
    if found.get("data.pkl", (0, 0))[1] > _PICKLE_LIMIT:
        raise InputError(str(path), f"has a tree of over {_PICKLE_LIMIT >> 20} MiB: refused", _HINT)
    return found


class _Reader(pickle.Unpickler):
    """Admits the archive's classes as nodes, tensors of its storages, and lists; every other name is refused."""

    def __init__(self, path: Path, records: dict[str, tuple[int, int]]) -> None:
        start, length = records["data.pkl"]
        with path.open("rb") as file:
            file.seek(start)
            super().__init__(io.BytesIO(file.read(length)))
        self._records = records
        storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self._bytes = torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Node
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("collections", "OrderedDict"): lambda: {},
            **{("torch.jit._pickle", each): lambda value, *_: value for each in _LISTS},
        }
        if (module, name) not in known:
            raise _RefusedError(f"{module}.{name}"[:120])
        return known[module, name]

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _, count = pid
        start, length = self._records[f"data/{key}"]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or count * dtype.itemsize != length:
            raise ValueError(f"data/{key} has another size than its tensors say")
        return _Storage(dtype, start, count)

    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor of an impossible shape")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.count:
            raise ValueError(f"a tensor reaches beyond its data ({'x'.join(map(str, size))})")
        length = storage.count * storage.dtype.itemsize
        flat = self._bytes[storage.start : storage.start + length]
        if storage.start % storage.dtype.itemsize:  # torch aligns; an archive that was zipped again may not
            flat = flat.clone()
        flat = flat.view(storage.dtype)
        return flat.as_strided(tuple(size), tuple(stride), flat.storage_offset() + offset)


def _named(path: Path, tree: Any) -> dict[str, Tensor]:
    if not isinstance(tree, _Node):
        raise InputError(str(path), "holds no module", _HINT)
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, _Node, int]] = [("", tree, 0)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name, value in node.held.items() if isinstance(node.held, dict) else ():
            seen += 1
            if seen > _NAMES_LIMIT or depth > _DEPTH_LIMIT or not isinstance(name, str):
                raise InputError(str(path), "has a tree that no model has: refused", _HINT)
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, _Node):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
    return found
