"""A plain module's accelerated form, numbers for the kernels, and how far results are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffvit.kernels import accelerate, library


def fast(module: nn.Module) -> Any:
    """The faster module over the same parameters; ``module`` itself stays plain, its parts may not."""
    holder = nn.Sequential(module)
    assert "0" in accelerate(holder)
    return holder[0]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """bfloat16 numbers of the standard normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def strayed(layer: Any, x: Tensor, of_out: Tensor, leaves: list[Tensor], wanted: list[Tensor]) -> list[list[float]]:
    """How far output and gradients in bfloat16 are apart from those wanted, by the kernels, then by torch alone."""
    errors = []
    for found in (library.kernels(), "switched off"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "_found", lambda found=found: found)
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
            mine = [out, *torch.autograd.grad(out, leaves, of_out.to(out.dtype))]
        errors.append([apart(one, other) for one, other in zip(mine, wanted, strict=True)])
    return errors


def apart(mine: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over theirs."""
    return ((mine.double() - theirs.double()).norm() / theirs.double().norm()).item()
