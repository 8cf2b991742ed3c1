"""The summary: best arms, and where differential attention stands, from made rows with known answers."""

from __future__ import annotations

import math

import pytest
from study_rows import made_records

from diffvit.experiments.results import Results, results_of
from diffvit.experiments.study import STUDIES, Cell, cells_of
from diffvit.experiments.summary import best_arms, where_it_helps

_GAIN = {"patch 2": 0.02, "patch 4": 0.0, "patch 8": -0.05}  # of differential attention


def made(name: str, spread: float) -> Results:
    def accuracy(cell: Cell) -> float:
        model = cell.config.model
        level = 0.6 + 0.1 / model.patch_size * (-1) ** cell.config.seed * spread
        if model.attention == "differential":
            level += _GAIN.get(cell.arm, 0.0)
        return level + 0.16 / model.patch_size

    cells = cells_of(STUDIES[name], "short")
    return results_of(STUDIES[name], "short", cells, made_records(cells, accuracy))


def test_the_best_of_each_attention_is_bold_where_it_surely_beats_the_others() -> None:
    sure, unsure, few = (best_arms([made(*each)]).rows for each in (("patch-size", 0), ("patch-size", 2), ("heads", 0)))
    assert sure == [[STUDIES["patch-size"].question, "**patch 2**, 68.0%", "**patch 2**, 70.0%", "short, 3"]]
    assert unsure[0][1].startswith("patch 2, ")
    assert few == [[STUDIES["heads"].question, "2 heads, 62.0%", "2 heads, 62.0%", "short, 2"]]


def test_where_differential_attention_helps() -> None:
    def cell(gap: float, softmax: float) -> str:
        """With no spread over seeds, what the sampling of 10,000 images allows."""
        half = 1.959964 * math.sqrt(sum(p * (1 - p) / 10_000 for p in (softmax, softmax + gap)))
        return f"{100 * gap:+.2f} ({100 * (gap - half):+.2f} to {100 * (gap + half):+.2f})"

    mean = 0.6 + 0.16 * (1 / 2 + 1 / 4 + 1 / 8) / 3
    table = where_it_helps([made("patch-size", 0), made("heads", 0), made("vit-vs-diffvit", 0)])
    assert table.rows == [
        [
            "patch-size",
            cell(-0.01, mean),
            "patch 2, +2.00 points",
            "patch 8, -5.00 points",
            "not decided",
            "short, 3",
        ],
        [
            "heads",
            cell(0.0, 0.62),
            "2 heads, +0.00 points",
            "8 heads, +0.00 points",
            "exploratory",
            "short, 2",
        ],
    ]  # the study of three arms has no arm with both


@pytest.mark.parametrize("name", ["vit-vs-diffvit"])
def test_a_study_whose_arms_are_attentions_has_no_best_arm(name: str) -> None:
    assert best_arms([made(name, 0)]).rows == []
