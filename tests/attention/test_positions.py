from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffvit.attention.statistics import position_similarity
from diffvit.models.pos_embed import ADDED, KINDS, table
from diffvit.models.vit import VisionTransformer


def model_of(pos_embed: str, pool: str = "cls") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=16, embed_dim=32, depth=1, num_heads=2, pos_embed=pos_embed, pool=pool)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", KINDS)
def test_every_kind_has_the_similarities_it_should(pos_embed: str, pool: str) -> None:
    found = position_similarity(model_of(pos_embed, pool))
    kinds = {"added"} if pos_embed in ADDED[1:] else {"rotary"} if pos_embed == "rope-2d" else {"added", "rotary"}
    assert set(found) == (set() if pos_embed == "none" else kinds)
    for similarity in found.values():
        assert similarity.shape == (4, 4, 4, 4)
        flat = similarity.flatten(0, 1).flatten(1)
        assert (flat - flat.mT).abs().max() < 1e-5
        assert (flat.diagonal() - 1).abs().max() < 1e-5
        assert flat.abs().max() < 1 + 1e-5


@pytest.mark.parametrize("pos_embed", ADDED[1:])
def test_added_positions_by_a_loop(pos_embed: str) -> None:
    model = model_of(pos_embed)
    rows = table(model)
    assert rows is not None
    vectors = [row.tolist() for row in rows[0, 1:]]
    found = position_similarity(model)["added"].flatten()
    for place, (one, other) in enumerate(itertools.product(vectors, vectors)):
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        assert float(found[place]) == pytest.approx(dot / math.hypot(*one) / math.hypot(*other), abs=1e-5)


def test_rotary_positions_by_the_product_of_turned_vectors() -> None:
    """Equal queries and keys, turned, lose what the similarity says: the mean over planes of equal length."""
    model = model_of("rope-2d", "mean")
    rope = model.blocks[0].attn.rope  # pyright: ignore[reportAttributeAccessIssue]
    ones = torch.ones(1, 16, 2, 16)
    turned = rope(ones)[0, :, 0]  # the first head
    products = (turned @ turned.mT) / 16
    assert (products - position_similarity(model)["rotary"].flatten(0, 1).flatten(1)).abs().max() < 1e-5


def test_near_patches_are_alike_with_fixed_positions() -> None:
    similarity = position_similarity(model_of("sincos-2d"))["added"]
    assert similarity[0, 0, 0, 1] > similarity[0, 0, 0, 3]
    assert similarity[0, 0, 1, 0] > similarity[0, 0, 3, 0]
