"""The user's cache folder, whole or not at all files in it, and files as tensors."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

_LINUX_NORESERVE = 0x4000  # mmap.MAP_NORESERVE, which Python 3.11 does not name


def cache_folder() -> Path:
    """Where to keep what can be had again: ``$XDG_CACHE_HOME/diffvit`` or ``~/.cache/diffvit``; may not exist."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache"
    return base / "diffvit"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what is written there takes ``path``'s place in one step at the end.

    When the block raises, the temporary file is removed and ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def mapped(file: Path | IO[bytes], shape: tuple[int, ...]) -> UInt8[Tensor, "n chans h w"]:
    """The bytes of a file as a tensor whose pages are read when they are looked at.

    The tensor may be larger than memory. Writing to it would not reach the file.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return mapped(stream, shape)
    options: dict[str, Any] = {"access": mmap.ACCESS_COPY}
    if sys.platform == "linux":
        # The same without reserving memory: else the system may refuse a file larger than memory.
        options = {"flags": mmap.MAP_PRIVATE | _LINUX_NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    return torch.frombuffer(mmap.mmap(file.fileno(), 0, **options), dtype=torch.uint8).view(shape)
