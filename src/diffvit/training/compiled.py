"""How a model is compiled for training."""

from __future__ import annotations

from typing import Any

import torch

from diffvit.config import Config

# Compilations of a model's code in one process: two for each kind of model, as the last batch may be smaller.
_AT_MOST = 256


def compiled(model: Any, config: Config, device: torch.device) -> Any:
    """The model with its forward and backward pass compiled; one that cannot be is an error, never run as it is.

    A process may train many models, as a study's worker does: beyond torch's usual limit it would go on uncompiled.
    """
    settings: Any = torch._dynamo.config
    settings.recompile_limit, settings.fail_on_recompile_limit_hit = _AT_MOST, True
    # "reduce-overhead" records CUDA graphs: a small model's step is bound by the launches of its kernels. The gradients
    # are the graph's own memory, so a second forward pass before the update would overwrite them.
    graphs = device.type == "cuda" and config.accumulate == 1
    # Static shapes: what a batch size compiles to must not depend on which sizes came before a resume.
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if graphs else None)
