from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from diffvit.clip.convert import convert, dtypes_of, weight_bytes
from diffvit.clip.encoder import calibrated, random_rn50
from diffvit.data.shapes import generate
from diffvit.errors import ConfigError

HALVES = (torch.float16, torch.bfloat16)


def small_visual() -> nn.Module:
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=2, image_size=64, width=8)
    return calibrated(visual, torch.randn(4, 3, 64, 64))


def small_clip(vision: object = None) -> CLIP:
    torch.manual_seed(0)
    vision = vision or {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    return CLIP(16, vision, text, quick_gelu=True).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]


def cosine(one: Tensor, two: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), two.double(), dim=-1).min())


@pytest.mark.parametrize("dtype", HALVES)
def test_exactly_the_norms_and_the_pool_positions_of_the_image_encoder_stay_float32(dtype: torch.dtype) -> None:
    visual = small_visual()
    found = dtypes_of(convert(visual, dtype))
    kept = {name for name, each in found.items() if each == torch.float32}
    norms = [name for name, module in visual.named_modules() if isinstance(module, nn.BatchNorm2d)]
    parts = ("weight", "bias", "running_mean", "running_var")
    assert len(norms) == 3 + 4 * 3 + 4
    assert kept == {f"{name}.{part}" for name in norms for part in parts} | {"attnpool.positional_embedding"}
    assert {each for name, each in found.items() if name not in kept} == {dtype}
    assert set(dtypes_of(visual).values()) == {torch.float32}, "the original is left as it is"


def test_exactly_these_parts_of_the_text_tower_stay_float32() -> None:
    found = dtypes_of(convert(small_clip(), torch.float16))
    text = {name: each for name, each in found.items() if not name.startswith("visual.")}
    norms = ["ln_final", *(f"transformer.resblocks.{block}.ln_{which}" for block in (0, 1) for which in (1, 2))]
    kept = {"token_embedding.weight", "positional_embedding", "logit_scale", "attn_mask"}
    kept |= {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert {name for name, each in text.items() if each == torch.float32} == kept
    assert {"text_projection", "transformer.resblocks.0.attn.in_proj_weight"} <= set(text) - kept


def test_a_transformers_bare_projection_is_halved_its_embeddings_are_not() -> None:
    model = small_clip({"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16})
    found = dtypes_of(convert(model, torch.float16))
    assert found["visual.proj"] == found["visual.conv1.weight"] == torch.float16
    assert found["visual.class_embedding"] == found["visual.positional_embedding"] == torch.float32
    images = torch.randn(2, 3, 32, 32)
    assert cosine(convert(model, torch.float16).encode_image(images), model.encode_image(images)) > 0.999


def test_float32_is_the_identity_and_a_copy() -> None:
    visual, images = small_visual(), torch.randn(2, 3, 64, 64)
    same = convert(visual, torch.float32)
    assert torch.equal(same(images), visual(images))
    assert same is not visual
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in same.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.9999), (torch.bfloat16, 0.999)])
def test_half_precision_embeddings_point_the_same_way(
    dtype: torch.dtype, least: float, layout: torch.memory_format
) -> None:
    visual, images = small_visual(), torch.randn(4, 3, 64, 64)
    converted = convert(visual, dtype).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    embedded = converted(images.to(memory_format=layout))
    assert embedded.dtype == dtype
    assert cosine(embedded, visual(images)) > least
    assert not torch.equal(embedded.float(), visual(images))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_text_tower_works_in_the_mixed_layout(dtype: torch.dtype) -> None:
    model, tokens = small_clip(), torch.randint(1, 50, (3, 8))
    converted = convert(model, dtype)
    embedded = converted.encode_text(tokens)  # pyright: ignore[reportCallIssue]
    assert embedded.dtype == dtype
    assert cosine(embedded, model.encode_text(tokens)) > 0.999
    images = torch.randn(2, 3, 64, 64)
    assert converted.encode_image(images).dtype == dtype  # pyright: ignore[reportCallIssue]


def test_the_full_rn50_in_half_precision() -> None:
    pictures = generate("test", 5, size=224).pixels.float() / 64 - 2
    visual, images = random_rn50(pictures[:4]), pictures[4:]
    assert sum(each.numel() for each in visual.parameters()) == 38_316_896
    for dtype, least in ((torch.float16, 0.9999), (torch.bfloat16, 0.999)):
        half = convert(visual, dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        assert cosine(half(images), visual(images)) > least
        floats = sum(each.numel() for each in half.parameters() if each.dtype == torch.float32)
        assert weight_bytes(half) == weight_bytes(visual) - 2 * (38_316_896 - floats)


def test_random_blocks_are_switched_on_and_the_seed_counts() -> None:
    images = torch.randn(2, 3, 224, 224)
    visual = random_rn50(images, 1)
    norm = visual.get_submodule("layer3.2.bn3")
    assert isinstance(norm, nn.BatchNorm2d)
    assert bool((norm.weight == 0.25).all())
    assert norm.running_var is not None
    assert not bool((norm.running_var == 1).any())
    again, other = (random_rn50(images, seed).state_dict()["conv1.weight"] for seed in (1, 2))
    assert torch.equal(visual.state_dict()["conv1.weight"], again)
    assert not torch.equal(again, other)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not converted to torch\.float64 \(allowed: torch\.float32"):
        convert(small_visual(), torch.float64)
    with pytest.raises(ConfigError, match=r"has weights in torch\.float16"):
        convert(convert(small_visual(), torch.float16), torch.bfloat16)
