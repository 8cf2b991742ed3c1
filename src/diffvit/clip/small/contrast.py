"""Images against captions: the contrastive loss, where several images of a batch may fit a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from diffvit.clip.small.captions import Captions
from diffvit.data.augment import Batch


class Contrastive:
    """The mean of image-to-text and text-to-image cross-entropy, nats, over the captions of the batch.

    CLIP's loss (arXiv 2103.00020, figure 3) takes the other captions of a batch as wrong answers. With ten classes many
    of them are right ones, so a right answer here is every caption of the image's class, as in arXiv 2204.03610,
    equations 2 and 3. An image that is mixed of two has captions of both classes as answers, each class with its share.

    Processes that train together contrast the whole step's batch: each has the features of all and computes the losses
    of its own images and captions, as open_clip's ``ClipLoss(local_loss=True, gather_with_grad=True)`` does.

    Args:
        captions: to draw from.
        seed: of the draws.
    """

    def __init__(self, captions: Captions, seed: int) -> None:
        self.captions, self.seed = captions, seed

    def loss(self, model: nn.Module, batch: Batch, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`diffvit.training.objective.Objective`; ``correct`` counts images whose best caption fits."""
        tokens = self.captions.draw(self.seed, batch.epoch, batch.indices, batch.labels)
        images, texts, scale = model(batch.images, tokens)
        images, texts, targets, labels = images.float(), texts.float(), batch.targets, batch.labels
        own = slice(None)
        if total is not None and (world := _world_size()) > 1:
            places = torch.arange(total).tensor_split(world)
            mine = places[dist.get_rank()]
            own = slice(total - len(mine), total) if not len(mine) else slice(int(mine[0]), int(mine[-1]) + 1)
            columns = [images, texts, targets.to(images.dtype), labels[:, None].to(images.dtype)]
            gathered = _gathered(torch.cat(columns, dim=1), [len(each) for each in places])
            images, texts, targets, labels = gathered.split([each.shape[1] for each in columns], dim=1)
            labels = labels[:, 0].long()
        logits = scale.float() * images[own] @ texts.T
        of_texts = logits.T if own == slice(None) else scale.float() * texts[own] @ images.T
        to_text, to_image = answers(targets, labels)
        summed = F.cross_entropy(logits, to_text[own], reduction="sum")
        summed = summed + F.cross_entropy(of_texts, to_image[own], reduction="sum")
        best = labels[logits.detach().argmax(1)]
        return summed / 2, {"correct": (best == labels[own]).sum()}


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(rows: Float[Tensor, "n width"], counts: Sequence[int]) -> Float[Tensor, "total width"]:
    """The first ``counts`` rows of each process, in order; a row's gradient is the sum of all processes'."""
    kept = rows[: counts[dist.get_rank()]]
    padding = rows.new_zeros(max(counts) - len(kept), rows.shape[1])  # the exchange wants equal shapes
    parts = all_gather(torch.cat([kept, padding]))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


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
