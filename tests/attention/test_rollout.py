"""Rollout against products written out by hand in float64, closed forms, and properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffvit.attention import Record, capture, rollout, rollout_matrix
from diffvit.errors import ConfigError
from diffvit.models.attention import AttentionMaps
from diffvit.models.vit import VisionTransformer

SIGNS = ("clamp", "positive", "abs", "signed")


def softmax_maps(*shape: int, seed: int = 0, sharp: float = 3.0) -> Tensor:
    scores = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharp * scores).softmax(dim=-1)


def record_of(
    layers: int = 3, *, batch: int = 2, heads: int = 3, grid: tuple[int, int] = (2, 3), pool: str = "cls",
    lam: float | None = None, seed: int = 0,
) -> Record:  # fmt: skip
    prefix = int(pool == "cls")
    tokens = prefix + grid[0] * grid[1]
    found = []
    for layer in range(layers):
        positive = softmax_maps(batch, heads, tokens, seed=seed + 2 * layer)
        if lam is None:
            found.append(AttentionMaps(positive))
        else:
            negative = softmax_maps(batch, heads, tokens, seed=seed + 2 * layer + 1)
            found.append(AttentionMaps(positive, negative, torch.tensor(lam, dtype=torch.float64)))
    return Record(found, list(range(layers)), grid, prefix, pool)


def by_hand(
    record: Record, fuse: str = "mean", discard: float = 0.0, residual: float = 0.5, sign: str = "clamp"
) -> Tensor:
    """The product for each image, entry by entry, first layer innermost."""
    batch, heads, tokens, _ = record.layers[0].positive.shape
    out = torch.empty(batch, tokens, tokens, dtype=torch.float64)
    for image in range(batch):
        product = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
        for maps in record.layers:
            step = []
            for i in range(tokens):
                row = []
                for j in range(tokens):
                    entries = []
                    for head in range(heads):
                        a = float(maps.positive[image, head, i, j])
                        if maps.negative is not None and maps.lam is not None and sign != "positive":
                            a -= float(maps.lam) * float(maps.negative[image, head, i, j])
                        entries.append({"clamp": max(a, 0.0), "abs": abs(a)}.get(sign, a))
                    row.append({"mean": sum(entries) / heads, "max": max(entries), "min": min(entries)}[fuse])
                patches = sorted(range(record.prefix, tokens), key=lambda j: row[j])
                for j in patches[: int(discard * len(patches))]:
                    row[j] = 0.0
                row = [residual * (i == j) + (1 - residual) * value for j, value in enumerate(row)]
                total = sum(row) if sign != "signed" else 1.0
                step.append([value / total for value in row])
            product = [
                [sum(step[i][k] * product[k][j] for k in range(tokens)) for j in range(tokens)] for i in range(tokens)
            ]
        out[image] = torch.tensor(product, dtype=torch.float64)
    return out


@pytest.mark.parametrize("lam", [None, 0.0, 0.4, 1.3, -1.2])
@pytest.mark.parametrize("sign", SIGNS)
def test_the_product_is_the_one_written_out_by_hand(sign: str, lam: float | None) -> None:
    record = record_of(lam=lam)
    assert (rollout_matrix(record, sign=sign) - by_hand(record, sign=sign)).abs().max() < 1e-12


@pytest.mark.parametrize("lam", [None, 0.4])
@pytest.mark.parametrize("discard", [0.0, 0.34, 0.9])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_fusion_and_discard_are_those_written_out_by_hand(fusion: str, discard: float, lam: float | None) -> None:
    record = record_of(lam=lam)
    found = rollout_matrix(record, fusion=fusion, discard=discard, residual=0.3)
    assert (found - by_hand(record, fusion, discard, 0.3)).abs().max() < 1e-12


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_one_layer_has_a_closed_form(pool: str) -> None:
    record = record_of(1, pool=pool)
    fused = record.layers[0].positive.mean(dim=1)
    found = rollout(record)
    expected = fused[:, 0, 1:] / 2 if pool == "cls" else (1 / 6 + fused.mean(dim=1)) / 2
    assert found.shape == (2, 2, 3)
    assert (found.flatten(1) - expected).abs().max() < 1e-12
    maps = softmax_maps(2, 3, 9)
    registers = Record([AttentionMaps(maps)], [0], (2, 3), 3, "cls")
    assert (rollout(registers).flatten(1) - maps.mean(dim=1)[:, 0, 3:] / 2).abs().max() < 1e-12


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_identity_attention_gives_identity(fusion: str, sign: str) -> None:
    identity = torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5)
    record = Record([AttentionMaps(identity)] * 4, [0, 1, 2, 3], (2, 2), 1, "cls")
    assert torch.equal(rollout_matrix(record, fusion=fusion, sign=sign), torch.eye(5).double().expand(2, 5, 5))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    layers=st.integers(1, 4),
    lam=st.one_of(st.none(), st.floats(-1.5, 1.5)),
    sign=st.sampled_from(SIGNS[:3]),
    fusion=st.sampled_from(["mean", "max", "min"]),
    discard=st.sampled_from([0.0, 0.2, 0.95]),
    residual=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_rows_sum_to_one_and_nothing_is_negative(
    seed: int, layers: int, lam: float | None, sign: str, fusion: str, discard: float, residual: float
) -> None:
    record = record_of(layers, lam=lam, seed=seed)
    found = rollout_matrix(record, fusion=fusion, discard=discard, residual=residual, sign=sign)
    assert (found.sum(dim=-1) - 1).abs().max() < 1e-9
    assert found.min() >= 0


@pytest.mark.parametrize("lam", [0.4, -1.2])
def test_signed_rows_sum_to_the_product_of_what_each_layer_keeps(lam: float) -> None:
    found = rollout_matrix(record_of(3, lam=lam), sign="signed", residual=0.25)
    assert (found.sum(dim=-1) - (0.25 + 0.75 * (1 - lam)) ** 3).abs().max() < 1e-9


@pytest.mark.parametrize("sign", SIGNS)
def test_lambda_zero_gives_plain_rollout_of_the_first_map(sign: str) -> None:
    record = record_of(lam=0.0)
    plain = Record([AttentionMaps(maps.positive) for maps in record.layers], record.blocks, record.grid, 1, "cls")
    assert (rollout(record, sign=sign) - rollout(plain)).abs().max() < 1e-12


@pytest.mark.parametrize("more", [{}, {"fusion": "max", "discard": 0.7}, {"fusion": "min", "discard": 0.3}], ids=str)
def test_a_batch_of_eight_equals_eight_batches_of_one(more: dict[str, Any]) -> None:
    for attention in ("softmax", "differential"):
        torch.manual_seed(0)
        model = VisionTransformer(embed_dim=32, depth=3, num_heads=4, attention=attention).eval()
        images = 3 * torch.randn(8, 3, 32, 32)
        together = rollout(capture(model, images), **more)
        for index in range(8):
            alone = rollout(capture(model, images[index : index + 1]), **more)
            assert (alone[0] - together[index]).abs().max() < 1e-6


def test_from_layer_starts_there() -> None:
    record = record_of(4)
    rest = Record(record.layers[2:], [2, 3], record.grid, record.prefix, record.pool)
    assert torch.equal(rollout(record, start=2), rollout(rest))
    assert torch.equal(rollout(record, start=0), rollout(record))
    with pytest.raises(ConfigError, match=r"no such layer \(found 1 vs 2 to 3\)"):
        rollout(rest, start=1)
    gapped = Record([record.layers[0], record.layers[2]], [0, 2], record.grid, 1, "cls")
    with pytest.raises(ConfigError, match=r"needs consecutive layers \(found 0, 2\)"):
        rollout(gapped)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fusion": "median"}, r"no such fusion of rollout \(found 'median' vs mean, max, min\)"),
        ({"sign": "clamped"}, "Did you mean 'clamp'"),
        ({"discard": 1.0}, "discard: must be from 0 to below 1"),
        ({"residual": -0.1}, "residual: must be from 0 to below 1"),
        ({"sign": "signed", "fusion": "max"}, "goes with fusion mean and discard 0 alone"),
        ({"sign": "signed", "discard": 0.5}, "goes with fusion mean and discard 0 alone"),
    ],
)
def test_what_has_no_meaning_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rollout(record_of(lam=0.3), **given)
