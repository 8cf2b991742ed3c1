"""Files as tensors."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import IO, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

_LINUX_NORESERVE = 0x4000  # mmap.MAP_NORESERVE, which Python 3.11 does not name


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
