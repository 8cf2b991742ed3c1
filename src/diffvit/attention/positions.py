"""How alike a model's position embeddings hold the patches to be."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.models import pos_embed
from diffvit.models.pos_embed import Rope2d


@torch.no_grad()
def position_similarity(model: nn.Module) -> dict[str, Float[Tensor, "rows cols rows cols"]]:
    """Similarity of every patch's position with every other's, by kind; empty for a model without positions.

    ``added``: cosine of the two patches' embeddings (arXiv 2010.11929, figure 7). ``rotary``: mean cosine of the angle
    between them over a head's planes, which is what the rotation leaves of the product of two equal vectors.
    """
    grid: tuple[int, int] = model.patch_embed.grid  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    patches, found = grid[0] * grid[1], {}
    table = pos_embed.table(model)
    if table is not None:
        rows = F.normalize(table[0, -patches:].float(), dim=1)
        found["added"] = (rows @ rows.mT).unflatten(1, grid).unflatten(0, grid)
    rope = next((module for module in model.modules() if isinstance(module, Rope2d)), None)
    if rope is not None:
        angles = rope.angles[-patches:].float()
        found["rotary"] = (angles[:, None] - angles[None]).cos().mean(dim=2).unflatten(1, grid).unflatten(0, grid)
    return {name: similarity.cpu() for name, similarity in found.items()}
