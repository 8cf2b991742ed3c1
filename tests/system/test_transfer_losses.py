"""What resampled weights are worth before any training, on real pictures."""

import math

import pytest
import torch
from torch.nn import functional as F

from diffvit.config import parse
from diffvit.data import sources
from diffvit.data.images import resize
from diffvit.training.task import build_model
from diffvit.training.transfer import read_source, transfer

PACKAGED = {"embed_dim": 128, "depth": 4, "num_heads": 4, "pos_embed": "sincos-2d"}


@torch.no_grad()
def logits(model, images):
    return model.eval()(images)


@pytest.mark.system
@pytest.mark.cifar10
def test_a_packaged_model_keeps_its_accuracy_over_sizes(cifar10_named):
    """On real pictures: resampled, the loss stays below chance, 2.30, where a patch shows what it showed."""
    place = cifar10_named("CIFAR-10 (JPEG)")
    source = read_source("cifar10-vit-cls", 4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.262]))
    found, losses = sources.load("cifar10", "test", data_dir=place, image_size=32), {}
    few, labels = found.pixels[:300], found.labels[:300]
    for name, size, settings in (
        ("as it stands", 32, {}),
        ("patch 4 to 8, 64 pixels", 64, {"patch_size": 8}),
        ("64 pixels", 64, {}),
        ("patch 4 to 2", 32, {"patch_size": 2}),
        ("mean over patches", 32, {"pool": "mean", "pos_embed": "learned-1d"}),
        ("grey", 32, {"in_chans": 1}),
        ("grey as colour", 32, {}),
        ("ten of three", 32, {"num_classes": 3}),
    ):
        model = build_model(parse({"model": {**PACKAGED, "image_size": size, **settings}}).model, 0)
        transfer(model, source, found.classes[: settings.get("num_classes", 10)])
        pixels = torch.stack([torch.from_numpy(resize(image, size)) for image in few.numpy()]).float() / 255
        if name.startswith("grey"):
            grey = (pixels.mean(1, keepdim=True) - 0.473) / 0.251
            pixels = grey if name == "grey" else grey.expand(-1, 3, -1, -1)
        else:
            pixels = (pixels - mean) / std
        keep = labels < settings.get("num_classes", 10)
        losses[name] = F.cross_entropy(logits(model, pixels[keep]), labels[keep]).item()
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses["as it stands"] < 0.8
    assert losses["patch 4 to 8, 64 pixels"] == pytest.approx(losses["as it stands"], abs=0.1)
    assert losses["grey"] == pytest.approx(losses["grey as colour"], abs=1e-4)
    below = ("grey", "patch 4 to 2", "mean over patches")  # of 64 pixels each patch shows a quarter: nothing to keep
    assert all(losses[name] < math.log(10) for name in below)
    assert losses["ten of three"] == pytest.approx(math.log(3), abs=0.5)  # a fresh head
