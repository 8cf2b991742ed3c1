"""Preprocessing is open_clip's, torchvision's and timm's, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from diffvit.clip.preprocess import of_clip, of_timm
from diffvit.errors import InputError

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SIZES = [(224, 224), (300, 200), (201, 333), (17, 640), (225, 224), (1, 1), (480, 481)]


def pixels_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (3, height, width), dtype=np.uint8)


def pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_kind_is_its_librarys(height: int, width: int) -> None:
    pixels = pixels_of(height, width)
    image = pillow(pixels)
    for settings in ({}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}):
        theirs: Any = open_clip.image_transform(224, is_train=False, **settings)
        assert torch.equal(of_clip(settings, (224, 224), MEAN, STD)(pixels), theirs(image))
    for name, weights in (
        ("resnet50.tv_in1k", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50.tv2_in1k", ResNet50_Weights.IMAGENET1K_V2),
    ):
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        ours = of_timm(config.to_dict())(pixels)
        assert torch.equal(ours, weights.transforms()(image))
        resolved = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict(), use_test_size=True)
        assert torch.equal(ours, timm.data.create_transform(**resolved, is_training=False)(image))


def test_a_strip_does_not_grow_beyond_memory() -> None:
    way = "shorter side to 224 (bicubic, antialiased), centre crop 224"
    assert of_clip({}, 224, MEAN, STD).words == f"{way}, mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758"
    for shape in ((1, 20_000_000), (3_000_000, 2)):
        assert of_clip({}, 224, MEAN, STD).square(np.zeros((3, *shape), dtype=np.uint8)).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("settings", "size"), [({"resize_mode": "longest"}, 224), ({}, (224, 196)), ({"interpolation": "random"}, 224)]
)
def test_what_is_not_supported_is_refused(settings: dict[str, Any], size: Any) -> None:
    with pytest.raises(InputError, match="preprocessing: is not supported"):
        of_clip(settings, size, MEAN, STD)
