"""Position embeddings: their formulas and their names."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffvit.models import pos_embed


def dressed(kind: str, grid: tuple[int, int], dim: int, prefix: int) -> nn.Module:
    model = nn.Module()
    pos_embed.attach(model, kind, grid, dim, prefix)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("none", []),
        ("learned-1d", ["pos_embed"]),
        ("learned-2d", ["pos_embed_rows", "pos_embed_cols", "pos_embed_cls"]),
        ("sincos-1d", ["pos_embed"]),
        ("sincos-2d", ["pos_embed"]),
    ],
)
def test_names(kind: str, names: list[str]) -> None:
    model = dressed(kind, (2, 3), 8, 1)
    assert list(model.state_dict()) == names
    learned = [name for name, _ in model.named_parameters()]
    assert learned == (names if kind.startswith("learned") else [])
    assert "pos_embed_cls" not in dressed(kind, (2, 3), 8, 0).state_dict()


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["learned-1d", "learned-2d", "sincos-1d", "sincos-2d"]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    quarter=st.integers(1, 4),
    prefix=st.integers(0, 1),
)
def test_one_row_per_token(kind: str, rows: int, columns: int, quarter: int, prefix: int) -> None:
    table = pos_embed.table(dressed(kind, (rows, columns), 4 * quarter, prefix))
    assert table is not None
    assert table.shape == (1, prefix + rows * columns, 4 * quarter)
    patches = table[0, prefix:].unflatten(0, (rows, columns))
    if kind.startswith("sincos"):
        assert not table[0, :prefix].any()
        assert table.abs().max() <= 1.0
    if kind.endswith("2d"):  # the first half says the row, the second the column, and nothing else
        half = 2 * quarter
        assert torch.equal(patches[..., :half], patches[:, :1, :half].expand(rows, columns, half))
        assert torch.equal(patches[..., half:], patches[:1, :, half:].expand(rows, columns, half))
    if rows * columns > 1 and kind != "learned-1d":
        distances = torch.cdist(table[:, prefix:].double(), table[:, prefix:].double())[0]
        assert (distances + torch.eye(rows * columns)).min() > 1e-3


def test_sincos_is_the_formula_and_in_two_dimensions_twice() -> None:
    tables = [pos_embed.table(dressed(*which)) for which in (("sincos-1d", (3, 4), 6, 1), ("sincos-2d", (3, 4), 8, 0))]
    for position in range(12):
        for table, start, places, planes in zip(tables, (1, 0), ([position], divmod(position, 4)), (3, 2), strict=True):
            expected = []
            for place in places:
                angles = [place / 10000 ** (i / planes) for i in range(planes)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            assert table is not None
            assert torch.allclose(table[0, start + position], torch.tensor(expected), atol=1e-6)
