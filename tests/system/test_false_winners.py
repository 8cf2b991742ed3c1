"""How often a study without any effect names a winner: counted over simulated studies."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest

from diffvit.files import Row
from diffvit.reporting.arms import Arm, ranking
from diffvit.reporting.rows import RESULT_COLUMNS, Correct, RunRecord
from diffvit.reporting.texts import statements

pytestmark = pytest.mark.system
STUDIES = 4_000


@cache
def _row(arm: int, seed: int) -> Row:
    """One for all studies: their runs differ in what is filled in."""
    return dict.fromkeys(RESULT_COLUMNS) | {"attention": "softmax", "run": f"{arm}-{seed}", "seed": seed}


def _record(arm: int, seed: int, accuracy: float, images: int, right: np.ndarray | None = None) -> RunRecord:
    row = _row(arm, seed)
    row |= {"test_accuracy": accuracy, "test_images": images}
    correct = None if right is None else Correct("the same", images, np.packbits(right).tobytes())
    return RunRecord(row, [], correct=correct)


def _names_a_winner(table: np.ndarray, images: int, right: np.ndarray | None = None) -> bool:
    """Whether any sentence about all pairs of these arms (rows of the table; columns are seeds) says "beats"."""
    groups = [
        [
            _record(arm, seed, value, images, None if right is None else right[arm, seed])
            for seed, value in enumerate(row)
        ]
        for arm, row in enumerate(table)
    ]
    found = ranking(groups)
    assert found is None or found.by_image == (right is not None)
    assert found is not None
    assert len(found.intervals) == len(table) * (len(table) - 1) // 2
    return any(interval.excludes_zero for interval in found.intervals.values())


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("arms", "seeds"), [(3, 3), (5, 3), (8, 3), (8, 5)])
@pytest.mark.parametrize(("images", "spread"), [(10_000, 0.002), (10_000, 0.01), (10**9, 0.01)])
def test_no_effect_names_a_winner_in_one_study_of_twenty(
    arms: int, seeds: int, correlated: bool, images: int, spread: float
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
    if images == 10_000:
        assert false <= 0.055 * STUDIES
    else:
        assert abs(false - 0.05 * STUDIES) < 4 * (0.05 * 0.95 * STUDIES) ** 0.5


def _right(
    draw: np.random.Generator, shape: tuple[int, int, int], hard: float, own: float, seeds: float, gap: float = 0.0
) -> np.ndarray:
    """Simulated answers (arms, seeds, images): image and arm and seed move a logit, and a coin is thrown.

    Args:
        draw: random numbers.
        shape: arms, seeds, images.
        hard: standard deviation over images, alike for all arms: how much models are right on the same images.
        own: over images, for each arm alone: what an arm finds easy that the others do not.
        seeds: over the runs of an arm, alike for all images.
        gap: added to the first arm's logit.
    """
    arms, runs, images = shape
    normal = partial(draw.standard_normal, dtype=np.float32)
    level = 1.5 * hard + hard * normal(images) + own * normal((arms, 1, images)) + seeds * normal((arms, runs, 1))
    level[0] += gap
    return draw.random(shape, np.float32) < 1 / (1 + np.exp(-level))


@pytest.mark.parametrize(("arms", "seeds", "images"), [(2, 3, 1_000), (8, 3, 1_000), (8, 5, 1_000), (3, 3, 10_000)])
@pytest.mark.parametrize(
    ("hard", "own", "spread"), [(1.0, 0.0, 0.05), (2.0, 1.0, 0.01), (6.0, 2.0, 0.05), (6.0, 6.0, 0.3)]
)
def test_no_effect_names_a_winner_in_one_study_of_twenty_by_images(
    arms: int, seeds: int, images: int, hard: float, own: float, spread: float
) -> None:
    """Runs that say which images they had right; their predictions are correlated more or less."""
    draw = np.random.default_rng([arms, seeds, images, round(hard), round(own)])
    studies = STUDIES // (1 if images < 10_000 else 2)
    false = 0
    for _ in range(studies):
        right = _right(draw, (arms, seeds, images), hard, own, spread)
        false += _names_a_winner(right.mean(2), images, right)
    assert false <= 0.055 * studies


def test_pairing_by_image_finds_smaller_effects() -> None:
    """Arms that are right on nearly the same images, two thirds of a point apart."""
    draw, found = np.random.default_rng(6), [0, 0]
    for _ in range(100):
        right = _right(draw, (2, 3, 10_000), 6.0, 1.0, 0.01, 0.3)
        for place, known in enumerate((right, None)):
            found[place] += _names_a_winner(right.mean(2), 10_000, known)
    assert found[0] > 60
    assert found[1] < 20


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
