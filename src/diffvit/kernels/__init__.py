"""Opt-in acceleration: ``accelerate(model)`` swaps plain modules for faster ones over the same parameters."""

from diffvit.kernels.modules import accelerate

__all__ = ["accelerate"]
