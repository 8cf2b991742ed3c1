"""A tiny model without a weight as it started, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffvit.models.vit import VisionTransformer


def model_of(**settings: Any) -> VisionTransformer:
    """In float64, with sharp maps: every weight matters."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 4, "image_size": 12, "patch_size": 4, "num_classes": 5}
    model = VisionTransformer(**{**sizes, **settings}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * (2 if "qk" in name else 1))
    return model.eval()


def images_of(count: int = 2) -> Tensor:
    """(count, 3, 12, 12) of the standard normal distribution."""
    return torch.randn(count, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
