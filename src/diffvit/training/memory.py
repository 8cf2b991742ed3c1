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


def give_memory_back() -> bool:
    """Have the C library of a server give memory back; returns whether it will.

    Left alone, glibc gives each thread an arena of its own, and what one frees another cannot use; and having seen a
    large block freed, it keeps the next ones. Then memory grows with the threads that were ever busy, and with the
    largest picture that was ever decoded. So all threads share two arenas, and blocks above a megabyte go back to the
    system as they are freed. Other C libraries are left as they are.
    """
    return _set(((_ARENA_MAX, 2), (_MMAP_THRESHOLD, 2**20)))


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
