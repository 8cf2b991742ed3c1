"""Statistics of heads and positions: closed forms, and loops in float64."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.attention import Record, capture
from diffvit.attention.statistics import averaged, block_statistics, distances, head_statistics, position_similarity
from diffvit.experiments.runner import SCORES, numbers_in
from diffvit.models.attention import AttentionMaps
from diffvit.models.pos_embed import table
from diffvit.models.vit import VisionTransformer
from diffvit.registry import POSITIONS, function_of, position_names
from diffvit.training.loop import train
from diffvit.training.run_dir import RunDir
from tests.training.small import small

GRID = (2, 3)


def record_of(maps: Tensor, prefix: int = 1, negative: Tensor | None = None, lam: float = 0.0) -> Record:
    lams = None if negative is None else torch.tensor(lam, dtype=maps.dtype)
    return Record([AttentionMaps(maps, negative, lams)], [0], GRID, prefix, "cls" if prefix else "mean")


def test_reading_all_alike() -> None:
    (found,) = head_statistics(record_of(torch.full((2, 1, 7, 7), 1 / 7, dtype=torch.float64)))
    assert found.entropy == pytest.approx(math.log(7))
    assert found.prefix_share == pytest.approx(1 / 7)
    assert found.negative_share == 0
    assert found.distance == pytest.approx(float(distances(GRID).mean()), abs=1e-6)
    assert found.lam is found.entropy_positive is found.entropy_negative is None


def test_reading_oneself_and_reading_one_patch() -> None:
    (found,) = head_statistics(record_of(torch.eye(6, dtype=torch.float64).expand(1, 1, 6, 6), prefix=0))
    assert (found.entropy, found.distance, found.prefix_share) == (0, 0, 0)
    corner = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    corner[..., 0] = 1
    (found,) = head_statistics(record_of(corner, prefix=0))
    by_hand = (0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6  # from the corner of two rows of three
    assert found.distance == pytest.approx(by_hand, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), prefix=st.integers(0, 2), lam=st.one_of(st.none(), st.floats(-1.2, 1.2)))
def test_any_maps_against_a_loop(seed: int, prefix: int, lam: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, heads, batch = prefix + 6, 2, 2
    both = (3 * torch.randn(2, batch, heads, tokens, tokens, generator=generator, dtype=torch.float64)).softmax(-1)
    record = record_of(both[0], prefix, None if lam is None else both[1], lam or 0.0)
    for head, found in enumerate(head_statistics(record)):
        sums = dict.fromkeys(("entropy", "distance", "prefix_share", "negative_share"), 0.0)
        for image in range(batch):
            for query in range(prefix, tokens):
                row = [float(both[0, image, head, query, key]) for key in range(tokens)]
                if lam is not None:
                    row = [a - lam * float(both[1, image, head, query, key]) for key, a in enumerate(row)]
                total = sum(abs(a) for a in row)
                sums["entropy"] -= sum(abs(a) / total * math.log(abs(a) / total) for a in row if a)
                sums["prefix_share"] += sum(abs(a) for a in row[:prefix]) / total
                sums["negative_share"] += sum(-a for a in row if a < 0) / total
                here, far = divmod(query - prefix, GRID[1]), 0.0
                for patch, a in enumerate(row[prefix:]):
                    far += abs(a) * math.dist(here, divmod(patch, GRID[1]))
                sums["distance"] += far / sum(abs(a) for a in row[prefix:])
        for name, total in sums.items():
            assert getattr(found, name) == pytest.approx(total / (batch * 6), abs=1e-6)


def test_a_models_heads_layer_by_layer_and_lambda() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=32, depth=3, num_heads=4, attention="differential").eval()
    record = capture(model, torch.randn(4, 3, 32, 32), layers=[0, 2])
    found = head_statistics(record)
    assert [(each.block, each.head) for each in found] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    lambdas = model.lambdas()
    assert [each.lam for each in found[::2]] == pytest.approx([lambdas[0], lambdas[2]], abs=1e-6)
    maps = record.layers[0].negative
    assert maps is not None
    rows = maps[:, 1, 1:]
    assert found[1].entropy_negative == pytest.approx(float(-(rows * rows.log()).sum(-1).mean()), abs=1e-5)


def test_statistics_of_single_images_average_to_those_of_the_batch() -> None:
    for attention in ("softmax", "differential"):
        torch.manual_seed(0)
        model = VisionTransformer(embed_dim=32, depth=2, num_heads=4, attention=attention).eval()
        images = torch.randn(5, 3, 32, 32)
        single = [head_statistics(capture(model, images[index : index + 1])) for index in range(5)]
        for one, other in zip(averaged(single), head_statistics(capture(model, images)), strict=True):
            assert vars(one) == pytest.approx(vars(other), abs=1e-5)


def model_with_positions(pos_embed: str, pool: str = "cls") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=16, embed_dim=32, depth=1, num_heads=2, pos_embed=pos_embed, pool=pool)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", position_names())
def test_every_kind_has_the_similarities_it_should(pos_embed: str, pool: str) -> None:
    found = position_similarity(model_with_positions(pos_embed, pool))
    kinds = {"added"} if pos_embed in POSITIONS else {"rotary"} if pos_embed == "rope-2d" else {"added", "rotary"}
    assert set(found) == (set() if pos_embed == "none" else kinds)
    for similarity in found.values():
        assert similarity.shape == (4, 4, 4, 4)
        flat = similarity.flatten(0, 1).flatten(1)
        assert (flat - flat.mT).abs().max() < 1e-5
        assert (flat.diagonal() - 1).abs().max() < 1e-5
        assert flat.abs().max() < 1 + 1e-5


@pytest.mark.parametrize("pos_embed", list(POSITIONS)[1:])
def test_added_positions_by_a_loop(pos_embed: str) -> None:
    model = model_with_positions(pos_embed)
    rows = table(model)
    assert rows is not None
    vectors = [row.tolist() for row in rows[0, 1:]]
    found = position_similarity(model)["added"].flatten()
    for place, (one, other) in enumerate(itertools.product(vectors, vectors)):
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        assert float(found[place]) == pytest.approx(dot / math.hypot(*one) / math.hypot(*other), abs=1e-5)


def test_rotary_positions_by_the_product_of_turned_vectors() -> None:
    """Equal queries and keys, turned, lose what the similarity says: the mean over planes of equal length."""
    model = model_with_positions("rope-2d", "mean")
    rope = model.blocks[0].attn.rope  # pyright: ignore[reportAttributeAccessIssue]
    ones = torch.ones(1, 16, 2, 16)
    turned = rope(ones)[0, :, 0]  # the first head
    products = (turned @ turned.mT) / 16
    assert (products - position_similarity(model)["rotary"].flatten(0, 1).flatten(1)).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["softmax", "differential", "differential-v2", "dint", "differential-gated"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_blocks_against_loops(attention: str, pool: str) -> None:
    torch.manual_seed(1)
    sizes = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = VisionTransformer(**sizes, attention=attention, pool=pool, init_std=0.7).double()
    images, labels = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1])
    found = block_statistics(model, images, labels)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    record = capture(model, images)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    heads = head_statistics(record)
    for at, row in enumerate(found):
        maps, block = record.layers[at], model.blocks[at]
        mine = [each for each in heads if each.block == at]
        assert row["entropy"] == pytest.approx(sum(each.entropy for each in mine) / len(mine))
        if attention == "softmax":
            assert {row[name] for name in ("overlap", "angle", "lam", "entropy_positive", "entropy_negative")} == {None}
        else:
            assert row["lam"] == pytest.approx(float(maps.lam.mean()))
            overlaps, angles = [], []
            for one, two in zip(maps.positive.flatten(0, 1), maps.negative.flatten(0, 1), strict=True):
                for first, second in zip(one[record.prefix :].tolist(), two[record.prefix :].tolist(), strict=True):
                    pairs = list(zip(first, second, strict=True))
                    whole, other = (math.fsum(map(abs, each)) for each in (first, second))
                    overlaps.append(math.fsum(min(abs(a) / whole, abs(b) / other) for a, b in pairs))
                    dot = math.fsum(a * b for a, b in pairs)
                    angles.append(math.degrees(math.acos(dot / math.hypot(*first) / math.hypot(*second))))
            assert row["overlap"] == pytest.approx(math.fsum(overlaps) / len(overlaps))
            assert row["angle"] == pytest.approx(math.fsum(angles) / len(angles), abs=1e-5)
        for name, part in (("gradient", block.attn), ("gradient_mlp", block.mlp)):
            squares = [float((parameter.grad**2).sum()) for parameter in part.parameters()]
            assert row[name] == pytest.approx(math.sqrt(math.fsum(squares)))
        read = inputs_of(block.attn.proj, model, images)
        assert row["rank_layer"] == pytest.approx(sum(map(effective_rank, read)) / 3)
        parts = [part for image in read for part in image.chunk(len(mine), dim=1)]
        assert row["rank_head"] == pytest.approx(sum(map(effective_rank, parts)) / len(parts))


def test_ranks_are_over_all_images_however_many_maps_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    sizes = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
    model, images = VisionTransformer(**sizes, init_std=0.7), torch.randn(5, 3, 8, 8)
    labels = torch.arange(5) % 3
    [whole] = block_statistics(model, images, labels)
    monkeypatch.setattr(sys.modules["diffvit.attention.capture"], "_WORKING", 1)
    assert block_statistics(model, images, labels) == [pytest.approx(whole)]


def inputs_of(layer: torch.nn.Module, model: VisionTransformer, images: Tensor) -> Tensor:
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach()))
    model(images)
    hook.remove()
    return given[0]


def effective_rank(matrix: Tensor) -> float:
    """By the eigenvalues of its Gram matrix."""
    sizes = torch.linalg.eigvalsh(matrix @ matrix.T).clamp(min=0).sqrt().tolist()
    total = math.fsum(sizes)
    return math.exp(-math.fsum(size / total * math.log(size / total) for size in sizes if size > 0))


def test_a_study_may_measure_the_maps_of_its_runs(tmp_path: Path) -> None:
    train(small(model={"attention": "differential", "depth": 2}), out=tmp_path)
    found = function_of(SCORES["maps"])(RunDir.open(tmp_path))
    assert [row["block"] for row in found["blocks"]] == [0, 1]
    for name, value in numbers_in(found).items():
        assert value == pytest.approx(sum(row[name] for row in found["blocks"]) / 2)
    assert {"entropy", "overlap", "angle", "lam", "rank_head", "rank_layer", "gradient"} <= numbers_in(found).keys()
