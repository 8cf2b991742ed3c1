"""Keep freed memory in the process: a training step asks for the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks instead of handing them back to the system; returns whether it will.

    Left alone, glibc maps every large tensor anew and the system clears its pages on each step: about an eighth of a
    small model's training time on a CPU (docs/log.md). Peak memory stays; what is free stays with the process.
    Other C libraries, and systems other than Linux, are left as they are.
    """
    return _set(((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 2**26)))


def share_arenas(count: int) -> bool:
    """Have the C library's threads share so many arenas; returns whether they will.

    Left alone, glibc gives each of a server's threads its own, and what one frees another cannot use: memory grows
    with the number of threads that were ever busy. Other C libraries are left as they are.
    """
    return _set(((_ARENA_MAX, count),))


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
