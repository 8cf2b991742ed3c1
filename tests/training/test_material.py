"""From a config to what a run trains on."""

from __future__ import annotations

import torch

from diffvit.config import parse
from diffvit.data import shapes
from diffvit.data.batches import channel_statistics, normalise
from diffvit.training import material
from diffvit.training.material import Material


def test_a_whitened_model_is_the_seeds_own_but_for_its_patches() -> None:
    images = shapes.generate("train", 300, size=16)
    mean, std = (values.tolist() for values in channel_statistics(images.pixels))
    data = Material("shapes", images, None, mean, std, "")
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2}
    plain, whitened = (
        material.fresh_model(parse({"data": "shapes", "model": sizes, "whiten": on, "seed": 3}), data)
        for on in (False, True)
    )
    built = material.build_model(parse({"model": sizes}).model, 3)
    for name, value in built.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value)
        assert torch.equal(whitened.state_dict()[name], value) == (not name.startswith("patch_embed.proj"))
    pictures = normalise(images.pixels, mean, std)
    spreads = []
    for model in (plain, whitened):
        found = model.patch_embed(pictures).flatten(0, 1).double()
        values = torch.linalg.eigvalsh(found.T @ found / len(found))[-48:]
        spreads.append((values[-1] / values[24]).item())
    assert spreads[1] < 2 < spreads[0]
