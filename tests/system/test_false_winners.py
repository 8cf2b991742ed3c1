"""How often a study without any effect names a winner: counted over simulated studies."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from diffvit.reporting.arms import Arm, ranking, statements
from diffvit.reporting.rows import RESULT_COLUMNS, RunRecord

STUDIES = 4_000


def _record(arm: int, seed: int, accuracy: float, images: int) -> RunRecord:
    row = dict.fromkeys(RESULT_COLUMNS) | {"run": f"{arm}-{seed}", "seed": seed, "attention": "softmax"}
    return RunRecord(row | {"test_accuracy": accuracy, "test_images": images}, [])


def _names_a_winner(table: np.ndarray, images: int) -> bool:
    """Whether any sentence about all pairs of these arms (rows of the table; columns are seeds) says "beats"."""
    groups = [[_record(arm, seed, value, images) for seed, value in enumerate(row)] for arm, row in enumerate(table)]
    found = ranking(groups)
    assert found is not None
    assert len(found.intervals) == len(table) * (len(table) - 1) // 2
    return any(interval.excludes_zero for interval in found.intervals.values())


@pytest.mark.system
@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("arms", "seeds"), [(3, 3), (5, 3), (8, 3), (8, 5)])
@pytest.mark.parametrize(("images", "spread"), [(10_000, 0.002), (10_000, 0.01), (10**9, 0.01)])
def test_no_effect_names_a_winner_in_one_study_of_twenty(
    arms: int, seeds: int, correlated: bool, images: int, spread: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracies about 70% with a standard deviation (``spread``) over seeds; any pair of arms may be picked.

    Which images were drawn moves each arm, alike for all its seeds, and as far as the intervals allow for. With 10^9
    images that takes no part, and the rate must be the nominal 5% up to four standard errors of the simulation, from
    above and from below: the intervals are not simply too wide to decide anything.
    """
    draw = np.random.default_rng([arms, seeds, correlated, images, round(1e3 * spread)])
    false = 0
    for _ in range(STUDIES):
        of_seed = draw.normal(0, 0.02, (1, seeds)) if correlated else 0.0
        of_images = draw.normal(0, (0.7 * 0.3 / images) ** 0.5, (arms, 1))
        table = 0.7 + draw.normal(0, spread, (arms, seeds)) + of_seed + of_images
        false += _names_a_winner(table, images)
    with capsys.disabled():
        kind = "correlated" if correlated else "uncorrelated"
        what = f"{arms} arms, {seeds} {kind} seeds, spread {spread}, {images:,} images"
        sys.stdout.write(f"\n{what}: {false} of {STUDIES} name a winner")
    if images == 10_000:
        assert false <= 0.055 * STUDIES
    else:
        assert abs(false - 0.05 * STUDIES) < 4 * (0.05 * 0.95 * STUDIES) ** 0.5


@pytest.mark.system
def test_an_effect_is_found() -> None:
    """Three points between two of eight arms, half a point of standard deviation over three seeds: mostly found."""
    draw = np.random.default_rng(5)
    effect = np.array([[0.03], *[[0.0]] * 7])
    found = [_names_a_winner(0.7 + effect + draw.normal(0, 0.005, (8, 3)), 10_000) for _ in range(200)]
    assert sum(found) > 0.9 * len(found)


def test_what_the_simulation_counts_is_what_reports_say() -> None:
    for gap, wins in ((0.2, True), (0.0, False)):
        groups = [
            [_record(arm, seed, 0.5 + arm * gap + 0.001 * ((seed + arm) % 2), 10_000) for seed in range(3)]
            for arm in range(3)
        ]
        said = "".join(statements([Arm(f"arm {place}", group) for place, group in enumerate(groups)]))
        assert ("beats" in said) == wins
