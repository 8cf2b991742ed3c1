"""The C files beside this one, compiled by the system's own compiler when they are first wanted, and kept; and their
entry points as Python calls them, with the C structures that these are given, field by field.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from diffvit.files import cache_folder, replacing

HERE = Path(__file__).parent
FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno"),
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"),
)
_SECONDS = 120
_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Unavailable(Exception):
    """Why there are no kernels here, in words."""


def compiler() -> list[str]:
    """What ``CC`` names, else ``cc``, ``gcc`` or ``clang``.

    Raises:
        Unavailable: none of them is there.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise Unavailable(f"no C compiler ({named[0] if named else 'cc, gcc or clang'})")


def built() -> Path:
    """The shared library: the one kept from before, or a new one.

    It is kept beside its sources as Python keeps what it compiles, or, where that folder cannot be written, in the
    user's cache folder; its name changes with the sources and the flags.

    Raises:
        Unavailable: there is no compiler, it fails, or neither folder can be written.
    """
    sources = sorted([*HERE.glob("*.c"), *HERE.glob("*.h")])
    content = b"".join(path.name.encode() + path.read_bytes() for path in sources) + " ".join(FLAGS).encode()
    name = f"kernels-{hashlib.sha256(content).hexdigest()[:16]}.so"
    places = [HERE / "__pycache__" / name, cache_folder() / "native" / name]
    for place in places:
        if place.is_file():
            return place
    command = compiler()
    for place in places:
        try:
            with replacing(place) as temporary:
                _compile(command, temporary)
        except OSError:
            continue
        return place
    raise Unavailable(f"neither {places[0].parent} nor {places[1].parent} can be written")


def _compile(command: list[str], to: Path) -> None:
    arguments = [*command, *FLAGS, *map(str, sorted(HERE.glob("*.c"))), "-o", str(to)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} does not work ({error})") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise Unavailable(f"{command[0]} fails ({first.strip()})")


class View(ctypes.Structure):
    """A bfloat16 tensor (images, tokens, dim): its first byte, and bytes from one image or token to the next."""

    _fields_ = (("data", _POINTER), ("image", _INT), ("token", _INT))

    @classmethod
    def of(cls, x: Tensor) -> View:
        """The numbers of a token must lie side by side."""
        assert x.dtype == torch.bfloat16
        assert x.stride(2) == 1
        return cls(x.data_ptr(), 2 * x.stride(0), 2 * x.stride(1))


class Attention(ctypes.Structure):
    """layout.h has the shapes."""

    _fields_ = (
        *((name, View) for name in ("q", "k", "v", "out", "grad", "of_q", "of_k", "of_v")),
        *((name, _POINTER) for name in ("top", "inverse", "length", "of_lam", "turn", "scratch")),
        *((name, _INT) for name in ("images", "tokens", "heads", "maps", "width")),
        *((name, _FLOAT) for name in ("lam", "eps")),
        *((name, _INT) for name in ("next_head", "next_thread")),
    )


class Norm(ctypes.Structure):
    """tokens.c has the shapes; what is left out is none."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "weight", "bias", "branch", "sum", "out", "mean", "inverse")),
        *((name, _POINTER) for name in ("of_out", "of_sum", "of_x", "of_branch", "of_weights")),
        *((name, _INT) for name in ("rows", "width")),
        *(("eps", _FLOAT), ("next", _INT)),
    )


class Gelu(ctypes.Structure):
    """``count`` bfloat16 numbers, a multiple of 16."""

    _fields_ = (*((name, _POINTER) for name in ("x", "grad", "out")), *((name, _INT) for name in ("count", "next")))


class Kernels:
    """The library's entry points, run on torch's own threads.

    Args:
        library: what was built.
        parallel: ``GOMP_parallel`` of the OpenMP library that torch has loaded.
    """

    def __init__(self, library: ctypes.CDLL, parallel: ctypes.c_void_p) -> None:
        self._library, self._parallel = library, parallel
        library.scratch_bytes.restype = library.norm_chunks.restype = ctypes.c_int64

    def run(self, name: str, job: Attention | Norm | Gelu) -> None:
        """Do a job, as ``attention_forward``; the tensors behind it stay alive until it is done."""
        threads, given = torch.get_num_threads(), ctypes.byref(job)
        if isinstance(job, Attention):
            threads = max(1, min(threads, job.images * job.heads))
            scratch = torch.empty(threads * self._library.scratch_bytes(given), dtype=torch.uint8)
            job.scratch = scratch.data_ptr()
        getattr(self._library, name)(given, self._parallel, ctypes.c_uint(threads))

    def norm_chunks(self, rows: int) -> int:
        """How many sums the gradients of a norm's weights come in."""
        return self._library.norm_chunks(ctypes.c_int64(rows))


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
