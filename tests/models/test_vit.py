"""The whole model: shapes, invariances, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import diffvit
from diffvit.errors import ConfigError, InputError
from diffvit.models.presets import PRESETS
from diffvit.models.vit import Block, DropPath, VisionTransformer, create_model

SMALL: dict[str, Any] = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
POSITIONS = ("none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d")


def small(**overrides: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **overrides}).eval()


def lively(model: VisionTransformer) -> VisionTransformer:
    """In float64, with weights large enough that every part of the model shows in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "lambda" not in name:
                parameter.normal_(std=0.3)
    return model.double()


@settings(deadline=None, max_examples=25)
@given(
    parts=st.fixed_dictionaries(
        {
            "attention": st.sampled_from(["softmax", "differential"]),
            "pos_embed": st.sampled_from(POSITIONS),
            "pool": st.sampled_from(["cls", "mean"]),
            "head": st.sampled_from(["linear", "mlp"]),
            "patch_size": st.sampled_from([1, 2, 4]),
            "depth": st.integers(1, 3),
            "in_chans": st.sampled_from([1, 3]),
        }
    ),
    side=st.integers(1, 3),
    width=st.sampled_from([2, 6]),
    pairs=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_any_combination(parts: dict[str, Any], side: int, width: int, pairs: int, batch: int) -> None:
    pixels, dim, depth = side * parts["patch_size"], 2 * pairs * width, parts["depth"]
    model = VisionTransformer(**parts, image_size=pixels, num_classes=7, embed_dim=dim, num_heads=2 * pairs)
    images = torch.randn(batch, parts["in_chans"], pixels, pixels)
    tokens = side * side + (parts["pool"] == "cls")
    logits = model(images)
    assert logits.shape == (batch, 7)
    assert logits.isfinite().all()
    assert model.grid == (side, side)
    assert model.tokens(images).shape == (batch, tokens, dim)
    heads = pairs if parts["attention"] == "differential" else 2 * pairs
    assert [maps.effective.shape for maps in model.attention_maps(images)] == [(batch, heads, tokens, tokens)] * depth
    assert len(model.lambdas()) == (depth if parts["attention"] == "differential" else 0)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def shuffle_patches(images: Tensor, side: int) -> Tensor:
    patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches[:, torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(1))]
    grid = images.shape[2] // side
    return patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", POSITIONS)
def test_only_positions_tell_where_a_patch_is(attention: str, pool: str, pos_embed: str) -> None:
    model = lively(small(attention=attention, pool=pool, pos_embed=pos_embed))
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    moved = shuffle_patches(images, 4)
    assert not torch.equal(images, moved)
    change = (model(images) - model(moved)).abs().max()
    assert change < 1e-10 if pos_embed == "none" else change > 1e-3


@pytest.mark.parametrize("attention", ["softmax", "differential"])
@pytest.mark.parametrize("depth", [1, 3])
def test_answering_for_the_class_token_alone_changes_nothing(attention: str, depth: int) -> None:
    model = lively(small(attention=attention, depth=depth))
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    every_token = model.norm(model.blocks(model.tokens(images)))
    expected = model.head(every_token[:, 0])
    assert (model(images) - expected).abs().max() < 1e-10
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    got = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    assert all(torch.allclose(g, w, atol=1e-9) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_attention_maps_are_each_blocks_own(attention: str) -> None:
    model = lively(small(attention=attention, depth=3))
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    layers = model.attention_maps(images)
    x = model.tokens(images)
    for block, layer in zip(model.blocks, layers, strict=True):
        assert isinstance(block, Block)
        expected = block.attn.maps(block.norm1(x))
        assert torch.equal(layer.effective, expected.effective)
        x = block(x)
    lambdas = [0.0 if layer.lam is None else layer.lam.item() for layer in layers]
    assert lambdas == (model.lambdas() or [0.0] * 3)
    for layer, lam in zip(layers, lambdas, strict=True):
        assert (layer.effective.sum(-1) - (1 - lam)).abs().max() < 1e-12


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_a_block_is_two_residual_steps(attention: str) -> None:
    torch.manual_seed(0)
    layer, x = Block(16, 4, 32, attention=attention, layer_index=0), torch.randn(2, 5, 16)
    middle = x + layer.attn(layer.norm1(x))
    assert torch.equal(layer(x), middle + layer.mlp(layer.norm2(middle)))
    dropped = Block(16, 4, 32, attention=attention, layer_index=0, drop_path=0.999999).train()
    assert torch.equal(dropped(x), x)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    per_sample = DropPath(0.25).train()(torch.ones(4000, 3, 2)).flatten(1)
    assert torch.equal(per_sample, per_sample[:, :1].expand_as(per_sample))
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    assert per_sample[:, 0].mean().item() == pytest.approx(1.0, abs=0.04)
    x = torch.randn(3, 2, 2)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_autocast_gives_bf16_logits_close_to_float32() -> None:
    for attention in ("softmax", "differential"):
        model, images = small(attention=attention), torch.randn(4, 3, 16, 16)
        with torch.autocast("cpu", torch.bfloat16):
            logits, tokens = model(images), model.blocks(model.tokens(images))
        assert tokens.dtype == torch.float32  # the residual stream
        assert logits.dtype == torch.bfloat16
        assert (logits - model(images)).abs().max() < 0.02


def test_stochastic_depth_rises_with_depth_and_rests_in_evaluation() -> None:
    model = small(depth=5, drop_path=0.4)
    chances = [module.chance for module in model.modules() if isinstance(module, DropPath)]
    assert chances == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    images = torch.randn(8, 3, 16, 16)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.fixture
def _as_users_have_it() -> Iterator[None]:
    """Without the checks of types and shapes that only the tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"patch_size": 5}, "patch_size: 5 does not divide image_size 16."),
        ({"num_heads": 5}, "num_heads: 5 does not divide embed_dim 32."),
        ({"num_heads": 1, "attention": "differential"}, "num_heads: 1 is odd: differential attention subtracts"),
        ({"num_heads": 3, "embed_dim": 48, "attention": "differential"}, "num_heads: 3 is odd: differential attention"),
        (
            {"attention": "diferential"},
            "attention: no attention 'diferential' (have softmax, differential, differential-split, ",
        ),
        ({"pos_embed": "alibi"}, "pos_embed: no pos_embed 'alibi' (have none, learned-1d, learned-2d, sincos-1d,"),
        ({"pos_embed": "sincos-2d", "embed_dim": 30, "num_heads": 2}, "embed_dim: 30 is not a multiple of 4: sincos-2"),
        ({"pos_embed": "learned-2d", "embed_dim": 15, "num_heads": 3}, "embed_dim: 15 is not a multiple of 2: learned"),
        (
            {"pos_embed": "sincos-1d", "embed_dim": 15, "num_heads": 3},
            "embed_dim: 15 is not a multiple of 2: sincos-1",
        ),
        ({"pos_embed": "rope-2d", "embed_dim": 24}, "num_heads: leaves heads 6 wide: rope-2d needs a multiple of 4"),
        ({"qk_norm": "group"}, "qk_norm: no qk_norm 'group'"),
        ({"class_token": False}, "pool: cls needs a class token"),
        ({"pool": "max"}, "pool: no pool 'max' (have cls, mean)."),
        ({"head": "liner"}, "head: no head 'liner' (have linear, mlp). Did you mean 'linear'?"),
        ({"init": "xavier"}, "init: no init 'xavier' (have trunc-normal, mimetic)."),
        ({"depth": 0}, "depth: must be at least 1 (found 0)."),
        ({"embed_dim": -32}, "embed_dim: must be at least 1 (found -32)."),
        ({"num_classes": -1}, "num_classes: must be at least 0 (found -1)."),
        ({"mlp_ratio": 0.01}, "mlp_ratio: leaves no hidden width (found 0.01)."),
        ({"drop_path": 1.0}, "drop_path: must be from 0 to below 1 (found 1.0)."),
        ({"image_size": (16, 18)}, "patch_size: 4 does not divide image_size (16, 18)."),
        ({"image_size": (16, 16, 16)}, "image_size: must be the side of a square, or height,width, in whole pixels ("),
        ({"image_size": 16.0}, "image_size: must be the side of a square, or height,width, in whole pixels (found 16."),
        ({"image_size": 0}, "image_size: must be the side of a square, or height,width, in whole pixels (found 0)."),
        ({"depth": "3"}, "depth: must be a whole number (found '3')."),
        ({"embed_dim": 32.0}, "embed_dim: must be a whole number (found 32.0)."),
        ({"num_classes": None}, "num_classes: must be a whole number (found None)."),
        ({"mlp_ratio": "2"}, "mlp_ratio: must be a number (found '2')."),
        ({"drop_path": None}, "drop_path: must be a number (found None)."),
        ({"init_std": 0.0}, "init_std: must be above 0 (found 0.0)."),
        ({"lambda_init": 0.5}, "lambda_init: attention softmax has none."),
        ({"lambda_init": 0.5, "attention": "differential-free"}, "lambda_init: attention differential-free has none."),
        ({"attention": None}, "attention: no attention None (have softmax, differential, differential-split, "),
    ],
)
@pytest.mark.usefixtures("_as_users_have_it")
def test_what_cannot_be_is_refused_in_one_line(overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small(**overrides)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 16, 16), (2, 3, 16, 12)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    found = "x".join(map(str, shape[1:]))
    with pytest.raises(InputError, match=rf"images: have another shape than the model \({found} vs 3x16x16\)"):
        small()(torch.randn(shape))


@pytest.mark.usefixtures("_as_users_have_it")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_images_that_are_not_floating_point_are_refused(dtype: torch.dtype, autocast: bool) -> None:
    name = str(dtype).removeprefix("torch.")
    with torch.autocast("cpu", torch.bfloat16, autocast), pytest.raises(InputError, match=name) as caught:
        small()(torch.zeros(1, 3, 16, 16).to(dtype))
    assert "\n" not in str(caught.value)
    assert "float32" in str(caught.value)
    assert small().double()(torch.zeros(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64
    assert small().bfloat16()(torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_create_model_takes_a_preset_and_overrides() -> None:
    model = create_model("vit_pico", attention="differential", depth=2)
    assert model.settings["embed_dim"] == PRESETS["vit_pico"].settings["embed_dim"]
    assert model.settings["depth"] == 2
    assert len(model.lambdas()) == 2
    assert diffvit.create_model is create_model


def test_create_model_says_what_it_does_not_know() -> None:
    with pytest.raises(
        ConfigError, match=r"preset: no preset 'vit_tinny' \(have vit_pico, .* Did you mean 'vit_tiny'\?"
    ):
        create_model("vit_tinny")
    with pytest.raises(ConfigError, match=r"atention: no such model setting\. Did you mean 'attention'\?"):
        create_model("vit_pico", atention="softmax")


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_torch_exports_it_for_any_number_of_images(attention: str, pool: str) -> None:
    model = lively(small(attention=attention, pool=pool)).eval()
    two, five = (torch.randn(count, 3, 16, 16, dtype=torch.float64) for count in (2, 5))
    exported = torch.export.export(model, (two,), dynamic_shapes=({0: torch.export.Dim("images", max=512)},))
    torch.testing.assert_close(exported.module()(five), model(five), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in create_model(name, attention=attention).parameters())
            for attention in ("softmax", "differential")
        ]
    assert counts == [PRESETS[name].softmax, PRESETS[name].differential]
