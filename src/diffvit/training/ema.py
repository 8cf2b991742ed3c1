"""An exponential moving average of the weights, kept beside the model that trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a model's weights over the steps; :attr:`model` is a model of its own, never trained.

    After update t (0-based) the average moves towards the weights by ``1 - min(decay, (1 + t) / (10 + t))``: the first
    updates count more, so that a short run does not end as a mixture with its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source, self._target = _floating(model), _floating(self.model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after optimiser step ``step`` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._target, self._source, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _floating(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in model.state_dict().values() if tensor.is_floating_point()]
