"""The compiled kernels as Python calls them."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffvit.native.build import Unavailable, built

_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")


class View(ctypes.Structure):
    """A bfloat16 tensor (images, tokens, dim): its first byte, and bytes from one image or token to the next."""

    _fields_ = (("data", ctypes.c_void_p), ("image", ctypes.c_int64), ("token", ctypes.c_int64))

    @classmethod
    def of(cls, x: Tensor) -> View:
        """The numbers of a token must lie side by side."""
        assert x.dtype == torch.bfloat16
        assert x.stride(2) == 1
        return cls(x.data_ptr(), 2 * x.stride(0), 2 * x.stride(1))


class Job(ctypes.Structure):
    """What layout.h calls Job, field by field."""

    _fields_ = (
        *((name, View) for name in ("q", "k", "v", "out", "grad", "of_q", "of_k", "of_v")),
        *((name, ctypes.c_void_p) for name in ("top", "inverse", "length", "of_lam", "scratch")),
        *((name, ctypes.c_int64) for name in ("images", "tokens", "heads", "maps", "width")),
        *((name, ctypes.c_float) for name in ("lam", "eps")),
        *((name, ctypes.c_int64) for name in ("next_head", "next_thread")),
    )


@dataclass(frozen=True)
class Kernels:
    """The library's entry points, run on torch's own threads."""

    _scratch: Callable[..., int]
    _passes: dict[str, Callable[..., None]]
    _parallel: ctypes.c_void_p

    def run(self, which: str, job: Job) -> None:
        """``forward`` or ``backward``; the tensors behind ``job`` are to stay alive until it is done."""
        threads = max(1, min(torch.get_num_threads(), job.images * job.heads))
        scratch = torch.empty(threads * self._scratch(ctypes.byref(job)), dtype=torch.uint8)
        job.scratch = scratch.data_ptr()
        self._passes[which](ctypes.byref(job), self._parallel, threads)


@functools.cache
def _found() -> Kernels | str:
    """The kernels, or why there are none."""
    if os.environ.get("DIFFVIT_NATIVE", "").lower() in ("0", "off"):
        return "switched off by DIFFVIT_NATIVE"
    try:
        if not torch.cpu._is_avx512_bf16_supported():
            raise Unavailable("a processor without AVX512-BF16")
        parallel = _parallel()
        library = ctypes.CDLL(str(built()))
    except (Unavailable, OSError) as error:
        return str(error)
    scratch, passes = library.scratch_bytes, {}
    scratch.argtypes, scratch.restype = [ctypes.POINTER(Job)], ctypes.c_int64
    for name in ("forward", "backward"):
        entry: Any = library[f"attention_{name}"]
        entry.argtypes, entry.restype = [ctypes.POINTER(Job), ctypes.c_void_p, ctypes.c_uint], None
        passes[name] = entry
    return Kernels(scratch, passes, parallel)


def kernels() -> Kernels | None:
    """The kernels, made when this is first asked for (a second or two); None where there are none."""
    found = _found()
    return found if isinstance(found, Kernels) else None


def why_not() -> str:
    """Why there are no kernels, in words; empty where there are some."""
    found = _found()
    return found if isinstance(found, str) else ""


def _parallel() -> ctypes.c_void_p:
    """``GOMP_parallel`` of the OpenMP library that torch has loaded; Intel's and LLVM's have it too."""
    maps = Path("/proc/self/maps")
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    loaded = sorted((path for path in paths if _OPENMP.search(path)), key=lambda path: ("/torch" not in path, path))
    for path in loaded:
        entry = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if entry is not None:
            return ctypes.cast(entry, ctypes.c_void_p)
    raise Unavailable("the OpenMP library that torch runs on was not found")
