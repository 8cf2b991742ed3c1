"""``diffvit attention --pretrained ... --weights FILE IMAGE`` from end to end, against timm on the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm_maps import random_everywhere, timm_maps

from diffvit.cli.main import run

NAME = "vit_small_patch16_224.dino"


def test_a_picture_of_250_by_330_pixels_and_its_crop_of_whole_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    theirs = random_everywhere(timm.create_model(NAME, dynamic_img_size=True))
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}}, "dino.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (250, 330, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    command = (
        f"attention --pretrained {NAME} --weights dino.pth picture.png --layers -1 --mass 0.6 --format npz --out seen"
    )
    assert run(command.split()) == 0
    cropped = torch.from_numpy(pixels[5:245, 5:325].transpose(2, 0, 1).astype(np.float64) / 255)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected, _ = timm_maps(theirs, ((cropped - mean) / std).float()[None])
    with np.load("seen/00-picture.png.npz") as arrays:
        found = torch.from_numpy(arrays["layer_11_positive"])
        assert arrays["grid"].tolist() == [15, 20]
    assert found.shape == (6, 301, 301)
    assert (found - expected[0]).abs().max() < 1e-5
