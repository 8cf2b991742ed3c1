"""Images against captions: the contrastive loss, where several images of a batch may fit a caption."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.small.captions import Captions
from diffvit.data.augment import Batch


class Contrastive:
    """The mean of image-to-text and text-to-image cross-entropy, nats, over the captions of the batch.

    CLIP's loss (arXiv 2103.00020, figure 3) takes the other captions of a batch as wrong answers. With ten classes many
    of them are right ones, so a right answer here is every caption of the image's class, as in arXiv 2204.03610,
    equations 2 and 3. An image that is mixed of two has captions of both classes as answers, each class with its share.

    Each process contrasts the images it holds.

    Args:
        captions: to draw from.
        seed: of the draws.
    """

    def __init__(self, captions: Captions, seed: int) -> None:
        self.captions, self.seed = captions, seed

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`diffvit.training.objective.Objective`; ``correct`` counts images whose best caption fits."""
        tokens = self.captions.draw(self.seed, batch.epoch, batch.indices, batch.labels)
        images, texts, scale = model(batch.images, tokens)
        logits = scale.float() * images.float() @ texts.float().T
        to_text, to_image = answers(batch.targets, batch.labels)
        total = F.cross_entropy(logits, to_text, reduction="sum") + F.cross_entropy(logits.T, to_image, reduction="sum")
        best = batch.labels[logits.detach().argmax(1)]
        return total / 2, {"correct": (best == batch.labels).sum()}


def answers(
    targets: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """How much each caption is an answer to each image, and each image to each caption; rows are distributions.

    Args:
        targets: of each image, a distribution over the classes.
        labels: the class of each caption.
    """
    fits = targets[:, labels]  # image i holds this much of caption j's class
    counts = torch.bincount(labels, minlength=targets.shape[1])
    to_text = fits / counts[labels]
    return to_text / to_text.sum(1, keepdim=True), (fits / fits.sum(0)).T
