"""What a training step minimises."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.data.augment import Batch


class Objective(Protocol):
    """A loss over a batch. The loop divides by the images of the whole step, over all processes and micro-batches."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum (0-dim, float32) of the samples' losses, and sums of what else is worth recording (0-dim)."""
        ...


class Classification:
    """Cross-entropy against soft targets, nats, in float32; counts hits of each image's own class as ``correct``."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Objective`."""
        logits = model(batch.images).float()
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        return total, {"correct": (logits.detach().argmax(1) == batch.labels).sum()}
