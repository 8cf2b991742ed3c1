"""A plain module's accelerated form, numbers for the kernels, and how far results are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffvit.kernels import accelerate


def fast(module: nn.Module) -> Any:
    """The faster module over the same parameters; ``module`` itself stays plain, its parts may not."""
    holder = nn.Sequential(module)
    assert "0" in accelerate(holder)
    return holder[0]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """bfloat16 numbers of the standard normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def apart(mine: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over theirs."""
    return ((mine.double() - theirs.double()).norm() / theirs.double().norm()).item()
