"""The model and the parts that published ones have, against timm: the same names, the same numbers, at any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from diffvit import accelerate
from diffvit.errors import ConfigError, InputError
from diffvit.models.attention import DifferentialAttention
from diffvit.models.vit import VisionTransformer

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 3.0}
OURS: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
OURS |= {"mlp_ratio": 3.0, "num_classes": 0}
# timm's settings, and ours
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"num_classes": 0}, {}),
    "smaller patches": ({"num_classes": 5, "patch_size": 4}, {"num_classes": 5, "patch_size": 4}),
    "classes": ({"num_classes": 7, "qkv_bias": False}, {"num_classes": 7, "qkv_bias": False}),
    "registers": (
        {"num_classes": 0, "reg_tokens": 3, "init_values": 1e-5},
        {"registers": 3, "layer_scale": 1e-5},
    ),
    "no-embed-class": (
        {"num_classes": 5, "no_embed_class": True, "reg_tokens": 2},
        {"num_classes": 5, "no_embed_class": True, "registers": 2},
    ),
    "mean-beside-class": (
        {"num_classes": 5, "global_pool": "avg"},
        {"num_classes": 5, "pool": "mean", "fc_norm": True, "class_token": True},
    ),
    "mean-alone": (
        {"num_classes": 5, "global_pool": "avg", "class_token": False, "fc_norm": False},
        {"num_classes": 5, "pool": "mean", "class_token": False},
    ),
    "norm-after-class": ({"num_classes": 5, "fc_norm": True}, {"num_classes": 5, "fc_norm": True}),
    "query-key-norm": ({"num_classes": 5, "qk_norm": True}, {"num_classes": 5, "qk_norm": "layer"}),
    "differential": (
        {"attn_layer": "diff", "num_heads": 2, "num_classes": 5, "init_values": 1e-5, "reg_tokens": 1}
        | {"class_token": False, "no_embed_class": True, "global_pool": "avg"},
        {"attention": "differential", "num_classes": 5, "layer_scale": 1e-5, "registers": 1}
        | {"class_token": False, "no_embed_class": True, "pool": "mean", "fc_norm": True},
    ),
    "differential-query-key-norm": (
        {"attn_layer": "diff", "num_heads": 2, "num_classes": 5, "qk_norm": True},
        {"attention": "differential", "num_classes": 5, "qk_norm": "layer"},
    ),
    "rms-query-key-norm": ({"num_classes": 5, "qk_norm": True}, {"num_classes": 5, "qk_norm": "rms"}),
}


def random_everywhere(model: nn.Module, spread: float = 0.1) -> nn.Module:
    """Also where a model starts from zeros and ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pair(kind: str, *, image_size: Any = 32, **more: Any) -> tuple[nn.Module, VisionTransformer]:
    theirs, ours = KINDS[kind]
    torch.manual_seed(1)
    model: Any = TimmVisionTransformer(**{**SIZES, **theirs, **more})
    if kind.startswith("rms"):
        for block in model.blocks:
            block.attn.q_norm, block.attn.k_norm = RmsNorm(12, eps=1e-6), RmsNorm(12, eps=1e-6)
    mine = VisionTransformer(**{**OURS, **ours, "image_size": image_size}).eval()
    mine.patch_embed.any_size = True
    mine.load_state_dict(random_everywhere(model).state_dict())
    return model, mine


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_timms_at_any_size(kind: str) -> None:
    theirs, mine = pair(kind, dynamic_img_size=True)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for height, width in ((32, 32), (48, 24), (8, 40), (64, 64), (112, 96)):
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = theirs(images)
            assert mine(images).shape == expected.shape
            assert (mine(images) - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("kind", ["plain", "registers", "no-embed-class", "mean-beside-class", "differential"])
def test_a_model_of_height_and_width_is_timms(kind: str) -> None:
    theirs, mine = pair(kind, img_size=(16, 40), image_size=(16, 40))
    mine.patch_embed.any_size = False
    images = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (mine(images) - theirs(images)).abs().max() < 1e-5 * theirs(images).abs().max()
    with pytest.raises(InputError, match=r"\(3x40x16 vs 3x16x40\)"):
        mine(images.mT)


@pytest.mark.parametrize("size", [48, (16, 40)])
def test_another_input_size_is_timms(size: Any) -> None:
    theirs: Any
    theirs, mine = pair("registers")
    theirs.set_input_size(size)  # which resamples the table once
    mine.patch_embed.any_size = False
    mine.set_input_size(size)
    images = torch.randn(2, 3, *((size, size) if size == 48 else size), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (mine(images) - theirs(images)).abs().max() < 1e-5 * theirs(images).abs().max()
    assert mine.settings["image_size"] == size
    with pytest.raises(ConfigError, match="8 does not divide image_size 50"):
        mine.set_input_size(50)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_rotary_positions_of_another_size_are_computed_for_it(attention: str, fast: bool) -> None:
    """A model with nothing but rotary positions has the same weights at every size, so one can be made for it."""
    sizes: dict[str, Any] = {**OURS, "num_classes": 5, "pos_embed": "rope-2d", "attention": attention}
    small, large = (VisionTransformer(**{**sizes, "image_size": size}).eval() for size in (32, (24, 56)))
    random_everywhere(small)
    images = torch.randn(2, 3, 24, 56)
    with torch.no_grad():
        if fast:
            accelerate(small)
            small(torch.randn(2, 3, 32, 32))  # what it keeps of the first grid is not kept for the second
        large.load_state_dict(small.state_dict())
        small.set_input_size((24, 56))
        assert (small(images) - large(images)).abs().max() < 1e-5 * large(images).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_that_the_output_comes_from(kind: str) -> None:
    mine = pair(kind)[1].double()
    x = mine.tokens(torch.randn(2, 3, 24, 40, dtype=torch.float64))
    block: Any = mine.blocks[0]
    attn, normed = block.attn, block.norm1(x)
    read = attn.maps(normed).effective @ attn.heads(normed)[2]
    if isinstance(attn, DifferentialAttention):
        read = attn.sub_norm(read) * (1.0 - attn.lambda_init)
    expected = attn.proj(read.transpose(1, 2).flatten(2))
    assert (attn(normed) - expected).abs().max() < 1e-10
    scaled = "layer_scale" in KINDS[kind][1]
    branch = expected * block.ls1.gamma if scaled else expected
    rest = block.mlp(block.norm2(x + branch))
    rest = rest * block.ls2.gamma if scaled else rest
    assert (block(x) - (x + branch + rest)).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["query-key-norm", "differential", "differential-query-key-norm"])
def test_bf16_by_autocast_is_near_float32(kind: str) -> None:
    mine = pair(kind)[1]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = mine(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = mine(images)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("shape", [(3, 33, 32), (3, 32, 20), (1, 32, 32), (3, 0, 32)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, int, int]) -> None:
    found = "x".join(map(str, shape))
    model = VisionTransformer(**OURS)
    model.patch_embed.any_size = True
    with pytest.raises(
        InputError, match=rf"images: do not fit the model \({found} vs 3 channels, sides multiples of 8\)"
    ):
        model(torch.zeros(1, *shape))


SMALL: dict[str, Any] = {"embed_dim": 64, "depth": 3, "mlp_ratio": 2.0, "num_classes": 10, "in_chans": 3}


def timms(*, pool: str = "cls", attention: str = "softmax", **more: Any) -> nn.Module:
    kind: dict[str, Any] = {"num_heads": 4} if attention == "softmax" else {"num_heads": 2, "attn_layer": "diff"}
    kind |= {"class_token": False, "global_pool": "avg", "fc_norm": False} if pool == "mean" else {}
    torch.manual_seed(1)
    return random_everywhere(TimmVisionTransformer(img_size=32, patch_size=4, **SMALL, **kind, **more), 0.05)


def ours(*, pool: str = "cls", attention: str = "softmax", **more: Any) -> VisionTransformer:
    return VisionTransformer(patch_size=4, pool=pool, attention=attention, num_heads=4, **SMALL, **more).eval()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["sincos-1d", "sincos-2d", "none"])
def test_fixed_positions_move_to_timm(pos_embed: str, pool: str) -> None:
    mine = ours(pos_embed=pos_embed, pool=pool)
    theirs = timms(pool=pool, pos_embed="none" if pos_embed == "none" else "learn")
    theirs.load_state_dict(mine.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (mine(images) - theirs(images)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_one_optimizer_step_in_float64(
    pool: str, attention: str, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    theirs = timms(pool=pool, attention=attention).double()
    mine = ours(pool=pool, attention=attention).double()
    mine.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for model in (theirs, mine):
        stepper = optimizer(model.parameters())
        nn.functional.cross_entropy(model(images), torch.tensor([1, 3, 5, 7])).backward()
        stepper.step()
    after = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (after[name] - parameter).abs().max() < 1e-6, name


def test_initial_weights_have_timms_spread() -> None:
    torch.manual_seed(0)
    theirs = dict(TimmVisionTransformer(img_size=32, patch_size=4, num_heads=4, **SMALL).named_parameters())
    mine = dict(ours().named_parameters())
    assert mine.keys() == theirs.keys()
    large = [name for name, parameter in theirs.items() if parameter.numel() >= 1000]
    assert len(large) >= 2 + 4 * 3
    for name in large:
        assert mine[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        tails = [weights[name].abs().flatten().quantile(0.995).item() for weights in (mine, theirs)]
        assert tails[0] == pytest.approx(tails[1], rel=0.3), name  # the largest alone is one draw's luck
