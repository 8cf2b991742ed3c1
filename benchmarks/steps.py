"""One step of a model: what is measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.settings import Sizes

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


def batch_of(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Normalised random images float32 (batch, 3, height, width) and labels int64 (batch,), always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)
    labels = torch.randint(sizes.num_classes, (sizes.batch_size,), generator=generator)
    return images.to(device), labels.to(device)


def train_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Callable[[], object]:
    """Forward, cross-entropy, backward, one step of AdamW, gradients to None; in train mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Callable[[], object]:  # noqa: ARG001 (same signature)
    """Forward alone, in evaluation mode, under ``inference_mode``."""
    model.eval().requires_grad_(False)

    def step() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            return model(images)

    return step


# What is measured, and its FLOPs in forward passes: a backward pass is counted as two.
STEPS = {"train": (train_step, 3), "inference": (inference_step, 1)}


def forward_flops(model: nn.Module, sizes: Sizes) -> int:
    """Floating-point operations of one forward pass over one image; a multiply-add counts as two.

    Matrix products and convolutions only, counted by torch while attention runs unfused, so that nothing is hidden.
    """
    image = torch.zeros(1, 3, sizes.image_size, sizes.image_size)
    training = model.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train(training)
    return int(counter.get_total_flops())
