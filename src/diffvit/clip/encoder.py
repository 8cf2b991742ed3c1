"""The image encoder that the precision report measures: random weights, or those of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.training.torchvision_names import import_torchvision

# OpenAI's RN50 (Radford et al. 2021, arXiv 2103.00020, appendix F).
LAYERS, WIDTH, EMBED_DIM, IMAGE_SIZE = (3, 4, 6, 3), 64, 1024, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RANDOM = "random (seed {seed})"
_BLOCK_GAIN = 0.25  # of a block's last batch norm
_CALIBRATION = 8  # images
Load = Callable[[Path], nn.Module]


@dataclass(frozen=True)
class Encoder:
    """An image encoder in evaluation mode, float32, on the CPU; ``weights`` says where they come from."""

    visual: nn.Module
    weights: str
    trained: bool


def encoder(weights: Path | None, load: Load | None, images: Tensor, *, seed: int = 0) -> Encoder:
    """The encoder to measure.

    Args:
        weights: a file of CLIP weights; None for random ones.
        images: (n, 3, 224, 224), normalised; random weights get their batch norms' statistics from the first eight.
        load: gives the model in such a file, an open_clip ``CLIP`` or its image encoder, in float32.
        seed: of random weights.

    Raises:
        ConfigError: a file, and nothing that could load it.
        EnvironmentFault: random weights, and open_clip is not installed.
    """
    if weights is None:
        return Encoder(random_rn50(images[:_CALIBRATION], seed), RANDOM.format(seed=seed), False)
    if load is None:
        raise ConfigError("--weights", f"nothing here can load it ({weights})", "Leave it out for random weights.")
    model = load(weights).float().cpu().eval().requires_grad_(False)
    return Encoder(getattr(model, "visual", model), weights.name, True)


def random_rn50(images: Tensor, seed: int = 0) -> nn.Module:
    """OpenAI's RN50 image encoder, 38.3 million parameters, with random weights through which rounding shows.

    open_clip starts the last batch norm of every block at zero, which switches the block's convolutions off: no
    rounding in them would reach the embedding. Here those start at 0.25, and the statistics of every batch norm come
    from images, so that activations have a scale like a trained network's and different images different embeddings.

    Args:
        images: (n, 3, height, width), normalised.
        seed: of the weights.

    Raises:
        EnvironmentFault: open_clip is not installed.
    """
    try:
        import_torchvision()
        from open_clip.modified_resnet import ModifiedResNet
    except (ImportError, RuntimeError) as error:
        why = f"cannot be imported ({' '.join(str(error).split())[:160]})"
        raise EnvironmentFault("open_clip", why, "Install it with pip install open_clip_torch.") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ModifiedResNet(list(LAYERS), EMBED_DIM, WIDTH * 32 // 64, IMAGE_SIZE, WIDTH)
    return calibrated(made, images)


@torch.no_grad()
def calibrated(visual: nn.Module, images: Tensor) -> nn.Module:
    """The same encoder, its blocks switched on and its batch norms with the statistics of these images.

    Args:
        visual: never trained; changed, and left in evaluation mode.
        images: (n, 3, height, width), normalised.
    """
    norms = {name: module for name, module in visual.named_modules() if isinstance(module, nn.BatchNorm2d)}
    momenta = [norm.momentum for norm in norms.values()]
    for name, norm in norms.items():
        norm.momentum = None  # the plain average over batches: that of this one
        if name.startswith("layer") and name.endswith("bn3"):
            nn.init.constant_(norm.weight, _BLOCK_GAIN)
    visual.train()(images)
    for norm, momentum in zip(norms.values(), momenta, strict=True):
        norm.momentum = momentum
    return visual.eval().requires_grad_(False)
