"""Objectives."""

import torch
from torch import nn

from diffvit.data.augment import Batch
from diffvit.training.objective import Classification


def test_classification_is_the_summed_soft_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 2, 2, generator=generator)
    targets = torch.rand(7, 5, generator=generator).softmax(1)
    labels = torch.randint(0, 5, (7,), generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).bfloat16()
    model.forward = lambda x: nn.Sequential.forward(model, x.bfloat16())
    loss, metrics = Classification().loss(model, Batch(images, targets, labels, torch.arange(7), 0))
    logits = model(images).double()
    expected = -(targets.double() * (logits - logits.logsumexp(1, keepdim=True))).sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert int(metrics["correct"]) == int((logits.argmax(1) == labels).sum())
    assert loss.requires_grad
    assert not metrics["correct"].requires_grad
