from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffvit.attention import capture, captures
from diffvit.attention.capture import capture_with_logits
from diffvit.errors import ConfigError, InputError
from diffvit.models.attention import AttentionMaps, DifferentialAttention
from diffvit.models.vit import Block, VisionTransformer

ATTENTIONS = ("softmax", "differential")
SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 4, "image_size": 16}


def model_of(**settings: Any) -> VisionTransformer:
    """A model whose maps are far from uniform."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SIZES, **settings})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape) * (1.5 if "qkv" in name else 0.5))
    return model.eval()


def images_of(model: VisionTransformer, count: int = 3) -> Tensor:
    side = model.settings["image_size"]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def block_from_map(block: Block, x: Tensor, maps: AttentionMaps) -> Tensor:
    """A block's output from the captured map: the map times the values, then the layer's own rest."""
    attention, heads = block.attn, maps.positive.shape[1]
    values = attention.qkv(block.norm1(x)).chunk(3, dim=2)[2].unflatten(2, (heads, -1)).transpose(1, 2)
    read = maps.effective.to(values.dtype) @ values
    if isinstance(attention, DifferentialAttention):
        read = attention.sub_norm(read) * (1 - attention.lambda_init)
    x = x + attention.proj(read.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_the_map_times_the_values_gives_the_fast_paths_output(patch_size: int, attention: str, pool: str) -> None:
    model = model_of(image_size=32, patch_size=patch_size, attention=attention, pool=pool)
    images = images_of(model, 2)
    record = capture(model, images)
    assert record.grid == (32 // patch_size, 32 // patch_size)
    assert record.pool == pool
    assert record.prefix == (pool == "cls")
    with torch.no_grad():
        x = model.tokens(images)
        for block, maps in zip(model.blocks, record.layers, strict=True):
            assert isinstance(block, Block)
            fast = block(x)
            assert (block_from_map(block, x, maps) - fast).abs().max() < 1e-5 * fast.abs().max().clamp_min(1)
            x = fast
        logits = model.forward_head(x)
        assert (logits - model(images)).abs().max() < 1e-5 * logits.abs().max().clamp_min(1)


@pytest.mark.parametrize("pos_embed", ["learned-1d", "learned-2d", "sincos-2d+rope-2d", "none"])
def test_rows_of_softmax_sum_to_one_and_differential_rows_to_one_minus_the_layers_lambda(pos_embed: str) -> None:
    for attention in ATTENTIONS:
        model = model_of(attention=attention, pos_embed=pos_embed)
        layers = capture(model, images_of(model)).layers
        assert [float(maps.lam) for maps in layers if maps.lam is not None] == pytest.approx(model.lambdas(), abs=1e-6)
        for maps, lam in zip(layers, model.lambdas() or [0.0] * 3, strict=True):
            assert (maps.positive.sum(dim=-1) - 1).abs().max() < 1e-5
            assert (maps.effective.sum(dim=-1) - (1 - lam)).abs().max() < 1e-5
            assert (maps.negative is None) == (attention == "softmax")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_chunks_change_nothing(attention: str) -> None:
    model = model_of(attention=attention)
    images = images_of(model, 5)
    whole = capture(model, images)
    for chunk in (1, 2, 5, 9):
        parts = capture(model, images, chunk=chunk)
        for one, other in zip(whole.layers, parts.layers, strict=True):
            assert (one.effective - other.effective).abs().max() < 1e-6
    records = list(captures(model, images, chunk=2))
    assert [len(record) for record in records] == [2, 2, 1]
    joined = torch.cat([record.layers[-1].effective for record in records])
    assert (joined - whole.layers[-1].effective).abs().max() < 1e-6


def test_memory_stays_bounded_by_chunks_of_the_right_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["diffvit.attention.capture"]
    model = model_of()
    one = 4 * 16**2 * 4  # bytes of a layer of one image: heads x patches^2 x float32
    monkeypatch.setattr(module, "_WORKING", 3 * one)
    assert [len(record) for record in captures(model, images_of(model, 8))] == [3, 3, 2]
    monkeypatch.setattr(module, "MAX_BYTES", 3 * 8 * one)
    assert len(capture(model, images_of(model, 8))) == 8
    with pytest.raises(ConfigError, match=r"maps: would take too much memory \(3 layers of 16 patches for 9 images"):
        capture(model, images_of(model, 9))
    assert len(capture(model, images_of(model, 9), layers=[2])) == 9


def test_layers_are_chosen_and_named() -> None:
    model = model_of(attention="differential")
    images = images_of(model)
    whole = capture(model, images)
    assert whole.blocks == [0, 1, 2]
    some = capture(model, images, layers=[-1, 0, 2])
    assert some.blocks == [0, 2]
    for maps, block in zip(some.layers, some.blocks, strict=True):
        assert torch.equal(maps.effective, whole.layers[block].effective)
    for wrong in ([3], [-4], [0, 7]):
        with pytest.raises(ConfigError, match=rf"layers: no such layer \(found {wrong[-1]} vs 0 to 2\)"):
            capture(model, images, layers=wrong)
    with pytest.raises(ConfigError, match="none asked for"):
        capture(model, images, layers=[])


def test_half_precision_models_and_autocast_give_float32_maps_near_the_full_ones() -> None:
    for attention in ATTENTIONS:
        model = model_of(attention=attention)
        images = images_of(model)
        full = capture(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            cast = capture(model, images)
        for found in (cast, capture(model.bfloat16(), images)):
            for one, other in zip(full.layers, found.layers, strict=True):
                assert other.effective.dtype == torch.float32
                assert (one.effective - other.effective).abs().mean() < 0.02
        wide = capture(model_of(attention=attention).double(), images)
        assert wide.layers[0].effective.dtype == torch.float64
        assert (wide.layers[-1].effective - full.layers[-1].effective).abs().max() < 1e-4


def test_the_model_is_left_as_it_was_and_looked_at_in_evaluation_mode() -> None:
    model = model_of(drop_path=0.9)
    images = images_of(model)
    quiet = capture(model, images)
    model.train()
    assert torch.equal(capture(model, images).layers[-1].effective, quiet.layers[-1].effective)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_any_query_and_kind_by_a_loop(attention: str) -> None:
    for pool in ("cls", "mean"):
        model = model_of(attention=attention, pool=pool)
        record = capture(model, images_of(model, 2))
        kinds = ("effective", "positive") if attention == "softmax" else ("effective", "positive", "negative")
        for kind, layer in itertools.product(kinds, range(3)):
            maps, prefix = getattr(record.layers[layer], kind), record.prefix
            found = record.to_patches(layer, kind)
            asked = record.to_patches(layer, kind, query=(1, 2))
            for image, head, row, column in itertools.product(range(2), range(maps.shape[1]), range(4), range(4)):
                key = prefix + 4 * row + column
                rows = [maps[image, head, q, key] for q in ([0] if pool == "cls" else range(16))]
                assert float(found[image, head, row, column]) == pytest.approx(float(sum(rows) / len(rows)), abs=1e-6)
                assert asked[image, head, row, column] == maps[image, head, prefix + 4 * 1 + 2, key]


def test_what_is_not_there_is_refused() -> None:
    model = model_of()
    record = capture(model, images_of(model))
    for query in ((4, 0), (0, 4), (-1, 0)):
        with pytest.raises(ConfigError, match="query: no such patch"):
            record.to_patches(0, query=query)
    with pytest.raises(ConfigError, match="softmax attention has no negative map"):
        record.to_patches(0, "negative")
    with pytest.raises(ConfigError, match="no such kind"):
        record.to_patches(0, "efective")
    with pytest.raises(InputError, match=r"must be normalised floats.*uint8"):
        capture(model, torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="must be normalised floats"):
        capture(model, torch.zeros(3, 16, 16))
    with pytest.raises(InputError, match="another shape than the model"):
        capture(model, torch.zeros(1, 3, 20, 16))


def test_a_saved_head_is_not_needed() -> None:
    model = model_of(num_classes=0)
    assert isinstance(model.head, nn.Identity)
    assert len(capture(model, images_of(model)).layers) == 3


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_one_pass_gives_the_maps_and_the_answer(attention: str, pool: str) -> None:
    model = model_of(attention=attention, pool=pool).double()
    images = images_of(model).double()
    record, logits = capture_with_logits(model, images)
    torch.testing.assert_close(logits, model(images).float(), rtol=1e-6, atol=1e-6)
    for found, wanted in zip(record.layers, capture(model, images).layers, strict=True):
        torch.testing.assert_close(found.effective, wanted.effective, rtol=1e-12, atol=1e-12)
    assert (record.grid, record.prefix, record.pool) == ((4, 4), int(pool == "cls"), pool)
    with pytest.raises(InputError, match="must be normalised floats"):
        capture_with_logits(model, images[0])
