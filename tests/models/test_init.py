"""How weights start."""

from __future__ import annotations

import pytest
import torch

from diffvit.models.attention import Attention
from diffvit.models.init import whiten
from diffvit.models.vit import PatchEmbed, VisionTransformer


def layers(init: str, attention: str = "softmax") -> list[Attention]:
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=96, depth=2, num_heads=4, attention=attention, init=init)
    return [block.attn for block in model.blocks]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("std", [0.02, 0.06])
def test_trunc_normal(std: float) -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 4}
    model = VisionTransformer(**sizes, head="mlp", pos_embed="learned-2d", init_std=std)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name == "cls_token":
            assert 0 < parameter.abs().max() < 1e-5
        elif name.startswith("patch_embed"):
            assert parameter.abs().max() <= 48**-0.5  # the convolution's own, uniform by its fan-in of 3 * 4 * 4
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            spread = 0.1 if "lambda" in name else std
            assert parameter.std().item() == pytest.approx(spread, rel=0.25), name


def test_mimetic_products_lean_to_the_identity() -> None:
    for attention in ("softmax", "differential"):
        for layer in layers("mimetic", attention):
            q, k, v = layer.qkv.weight.detach().chunk(3)
            eye = torch.eye(96)
            for head in range(4):
                rows = slice(24 * head, 24 * (head + 1))
                product = q[rows].T @ k[rows]
                assert torch.linalg.matrix_rank(product) == 24
                # A quarter of the rank keeps the largest directions of 0.7 Z + 0.7 I.
                assert product.diagonal().mean() > 0.2
                assert product.diagonal().mean() > 5 * (product - product.diagonal().diag()).abs().mean()
            noise = v.T @ layer.proj.weight.detach().T + 0.4 * eye
            assert abs(noise.diagonal().mean()) < 0.02
            assert abs(noise.std() - 0.4 * 96**-0.5) < 0.002


def test_mimetic_layers_differ_and_the_rest_is_as_usual() -> None:
    one, other = layers("mimetic")
    assert not torch.allclose(one.qkv.weight, other.qkv.weight, atol=1e-2)
    assert not one.qkv.bias.any()
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=96, depth=2, num_heads=4, init="mimetic")
    assert 0.017 < model.get_parameter("blocks.1.mlp.fc1.weight").std() < 0.023


def test_the_same_seed_starts_the_same_weights() -> None:
    for init in ("trunc-normal", "mimetic"):
        one, other = layers(init)[1], layers(init)[1]
        assert torch.equal(one.qkv.weight, other.qkv.weight)
        assert torch.equal(one.proj.weight, other.proj.weight)


@pytest.mark.parametrize(("patch", "dim"), [(2, 32), (4, 64), (4, 20)])
def test_whitened_patches_are_uncorrelated_and_equal(patch: int, dim: int) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(16, patch, 3, dim).double()
    smooth = torch.nn.functional.avg_pool2d(torch.randn(300, 3, 18, 18, dtype=torch.float64), 3, stride=1)
    whiten(embed.proj, smooth, seed=1)
    found = embed(smooth).flatten(0, 1)
    values = torch.linalg.eigvalsh(found.T @ found / len(found)).flip(0)[: min(dim, 3 * patch * patch)]
    patches = torch.nn.functional.unfold(smooth, patch, stride=patch).mT.flatten(0, 1)
    before = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)[: len(values)]
    mean = torch.linalg.eigvalsh(patches.T @ patches / len(patches))[-len(values) :].mean()
    torch.testing.assert_close(values, (before / (before + 0.01 * mean)).sort(descending=True).values)
    assert values[0] / values[len(values) // 2] < 1.2 < before[0] / before[len(values) // 2]
    again = PatchEmbed(16, patch, 3, dim).double()
    whiten(again.proj, smooth, seed=1)
    assert torch.equal(again.proj.weight, embed.proj.weight)
    whiten(again.proj, smooth, seed=2)
    assert not torch.equal(again.proj.weight, embed.proj.weight)
