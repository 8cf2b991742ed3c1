"""What the kernels are given: the C structures of the same names, field by field."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


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


JOBS = {"attention": Attention, "norm": Norm, "gelu": Gelu}
