"""The compiled kernels as Python calls them."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from pathlib import Path
from typing import Any

import torch

from diffvit.kernels import jobs
from diffvit.kernels.build import Unavailable, built

_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")


class Kernels:
    """The library's entry points, run on torch's own threads.

    Args:
        library: what was built.
        parallel: ``GOMP_parallel`` of the OpenMP library that torch has loaded.
    """

    def __init__(self, library: ctypes.CDLL, parallel: ctypes.c_void_p) -> None:
        self._parallel = parallel
        self._entries: dict[str, Any] = {}
        for name, job in jobs.JOBS.items():
            for which in ("forward", "backward"):
                entry = self._entries[f"{name}_{which}"] = library[f"{name}_{which}"]
                entry.argtypes, entry.restype = [ctypes.POINTER(job), ctypes.c_void_p, ctypes.c_uint], None
        self._scratch, self._chunks = library.scratch_bytes, library.norm_chunks
        self._scratch.argtypes, self._scratch.restype = [ctypes.POINTER(jobs.Attention)], ctypes.c_int64
        self._chunks.argtypes, self._chunks.restype = [ctypes.c_int64], ctypes.c_int64

    def attention(self, which: str, job: jobs.Attention) -> None:
        """``forward`` or ``backward``; here as below, the tensors behind ``job`` stay alive until it is done."""
        threads = max(1, min(torch.get_num_threads(), job.images * job.heads))
        scratch = torch.empty(threads * self._scratch(ctypes.byref(job)), dtype=torch.uint8)
        job.scratch = scratch.data_ptr()
        self._run(f"attention_{which}", job, threads)

    def norm(self, which: str, job: jobs.Norm) -> None:
        """A block's sum and layer norm."""
        self._run(f"norm_{which}", job, torch.get_num_threads())

    def norm_chunks(self, rows: int) -> int:
        """How many sums the gradients of a norm's weights come in."""
        return self._chunks(rows)

    def gelu(self, which: str, job: jobs.Gelu) -> None:
        """GELU of each number."""
        self._run(f"gelu_{which}", job, torch.get_num_threads())

    def _run(self, name: str, job: ctypes.Structure, threads: int) -> None:
        self._entries[name](ctypes.byref(job), self._parallel, threads)


@functools.cache
def _found() -> Kernels | str:
    """The kernels, or why there are none."""
    if os.environ.get("DIFFVIT_NATIVE", "").lower() in ("0", "off"):
        return "switched off by DIFFVIT_NATIVE"
    try:
        if not torch.cpu._is_avx512_bf16_supported():
            raise Unavailable("a processor without AVX512-BF16")
        return Kernels(ctypes.CDLL(str(built())), _parallel())
    except (Unavailable, OSError) as error:
        return str(error)


def kernels() -> Kernels | None:
    """The kernels, made when this is first asked for (a second or two); None where there are none."""
    found = _found()
    return found if isinstance(found, Kernels) else None


def why_not() -> str:
    """Why there are no kernels, in words; empty where there are some."""
    found = _found()
    return found if isinstance(found, str) else ""


def usable(device: torch.device) -> bool:
    """Whether the kernels may run now: on a CPU, where nothing records or transforms what is computed."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and kernels() is not None
    )


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
