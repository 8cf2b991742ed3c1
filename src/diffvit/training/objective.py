"""What a training step minimises."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.data.augment import Batch


class Objective(Protocol):
    """A loss over a batch. The loop divides by the images of the whole step, over all processes and micro-batches."""

    def loss(self, model: nn.Module, batch: Any, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum (0-dim, float32) of the samples' losses, and sums of what else is worth recording (0-dim).

        Args:
            model: in training.
            batch: this process's samples.
            total: samples of the whole step, of which each process has its part by ``tensor_split``; None for those
                of the batch. A process without one has a copy of the first, which does not count.
        """
        ...


class Classification:
    """Cross-entropy against soft targets, nats, in float32; counts hits of each image's own class as ``correct``."""

    def loss(self, model: nn.Module, batch: Batch, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Objective`."""
        del total
        logits = model(batch.images).float()
        summed = F.cross_entropy(logits, batch.targets, reduction="sum")
        return summed, {"correct": (logits.detach().argmax(1) == batch.labels).sum()}
