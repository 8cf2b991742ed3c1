"""How a model is compiled for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffvit.config import Config

# Compilations of a model's code in one process: two for each kind of model, as the last batch may be smaller.
_AT_MOST = 256


@contextmanager
def compile_limits() -> Iterator[None]:
    """Compile many models in one process, as a study's worker does; one that cannot be compiled is an error.

    Beyond torch's usual limit a model would go on uncompiled. torch's limits are put back afterwards.
    """
    settings: Any = torch._dynamo.config
    with settings.patch(recompile_limit=_AT_MOST, fail_on_recompile_limit_hit=True):
        yield


def compiled(model: Any, config: Config, device: torch.device) -> Any:
    """The model with its forward and backward pass compiled; for use within :func:`compile_limits`."""
    # "reduce-overhead" records CUDA graphs: a small model's step is bound by the launches of its kernels. The gradients
    # are the graph's own memory, so a second forward pass before the update would overwrite them.
    graphs = device.type == "cuda" and config.accumulate == 1
    # Static shapes: what a batch size compiles to must not depend on which sizes came before a resume.
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if graphs else None)
