"""The plots of a study: what they may not exaggerate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure

from diffvit.experiments import plots
from diffvit.experiments.results import results_of
from diffvit.experiments.study import STUDIES, cells_of
from tests.experiments.study_rows import made_records


def _limits(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> tuple[tuple[float, float], ...]:
    """Of both panels, for trainings that took so long."""
    cells = cells_of(STUDIES["pooling"], "smoke")
    records = made_records(cells, lambda cell: 0.6 + 0.01 * (cell.config.model.pool == "mean"))
    timed = {
        name: [replace(record, row=record.row | {"train_seconds": seconds[place % len(seconds)]})]
        for place, (name, [record]) in enumerate(records.items())
    }
    seen: list[Any] = []

    def kept(figure: Figure, stamp: str) -> bytes:
        seen.append(figure)
        return stamp.encode()

    monkeypatch.setattr(plots, "to_png", kept)
    monkeypatch.setattr(
        "diffvit.experiments.results.training_flops", lambda config: 1e12 + 1e9 * config.model.num_heads
    )
    assert plots.costs(results_of(STUDIES["pooling"], "smoke", {cells: timed}), stamp="s") == b"s"
    return tuple(axes.get_xlim() for axes in seen[0].axes)


def test_the_axis_of_costs_neither_exaggerates_nor_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    for low, high in _limits(monkeypatch, [100.0, 100.1]):
        assert high - low == pytest.approx(0.2 * (low + high) / 2)  # nearly the same costs look so
    _, (low, high) = _limits(monkeypatch, [100.0, 200.0])
    assert 50 < low < 100
    assert 200 < high < 250
