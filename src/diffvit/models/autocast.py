"""What autocast does on a CPU, and what a gradient that is written out for it does not do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffvit.errors import ConfigError


def casts_to_bfloat16() -> bool:
    """Whether a CPU's matrix products are cast to bfloat16 here."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator of a ``backward`` that has no derivative itself, with a line that says what to do.

    torch's own takes a gradient that does not require one for a constant, and with it what was saved: the second
    derivative would lack it without a word. Here every result refuses.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        several = found if isinstance(found, tuple) else (found,)
        marked = [None if each is None else _Once.apply(each.detach().requires_grad_()) for each in several]
        return tuple(marked) if isinstance(found, tuple) else marked[0]

    return once


class _Once(Function):
    """``apply(gradient)``: the gradient, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        del ctx
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse."""
        del ctx, grad_outputs
        why = "the gradient under bfloat16 autocast on a CPU is written out and can be differentiated no further"
        raise ConfigError("second derivative", why, "Compute it in float32, without torch.autocast.")
