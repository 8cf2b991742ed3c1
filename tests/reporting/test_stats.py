from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from diffvit.reporting.stats import (
    exact_paired,
    paired_difference,
    paired_images,
    simultaneous_differences,
    wilson,
)


# Printed tables of Student's t, two-sided 95% and 99%.
@pytest.mark.parametrize(
    ("degrees", "q975", "q995"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (9, 2.262, 3.250),
        (30, 2.042, 2.750),
    ],
)
def test_paired_intervals_are_those_of_the_printed_tables_of_t(degrees: int, q975: float, q995: float) -> None:
    gaps = np.random.default_rng(degrees).normal(size=degrees + 1)
    gaps /= gaps.std(ddof=1) / math.sqrt(degrees + 1)  # a standard error of 1
    for confidence, quantile in ((0.95, q975), (0.99, q995)):
        found = paired_difference(gaps.tolist(), [0.0] * len(gaps), None, confidence)
        assert found.high - found.estimate == pytest.approx(quantile, abs=6e-4)


def test_wilson_is_newcombes_published_example() -> None:
    found = wilson(81, 263)  # Newcombe 1998, table I, method 3: 0.2553 to 0.3662
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20_000), st.data())
def test_wilson_holds_the_share_and_stays_a_share(count: int, data: st.DataObject) -> None:
    found = wilson(data.draw(st.integers(0, count)), count)
    assert -1e-12 <= found.low <= found.estimate <= found.high <= 1 + 1e-12


def test_paired_difference_by_hand() -> None:
    """Differences of 2, 3 and 1 points: mean 2, standard deviation 1; no test images to sample."""
    found = paired_difference([0.82, 0.84, 0.83], [0.80, 0.81, 0.82], None)
    assert found.estimate == pytest.approx(0.02)
    assert found.high - found.estimate == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert not found.excludes_zero
    assert paired_difference([0.82, 0.84, 0.83], [0.80, 0.82, 0.8101], None).excludes_zero


def test_all_pairs_are_those_of_tukeys_honestly_significant_difference() -> None:
    """Against the textbook's analysis of variance of a randomised block design, by numpy and printed tables of q."""
    table = np.random.default_rng(0).normal(0.7, 0.01, (4, 3)) + np.array([0.0, 0.03, -0.02])
    found = simultaneous_differences(table.tolist(), None)
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    standard_error = math.sqrt((residual**2).sum() / 6 / 3)
    q = 4.896  # of four means with 6 degrees of freedom, at 5%
    assert len(found) == 6
    for (one, two), interval in found.items():
        assert interval.estimate == pytest.approx(table[one].mean() - table[two].mean())
        assert interval.high - interval.estimate == pytest.approx(q * standard_error, rel=2e-4)


def test_the_images_of_the_test_set_are_drawn_too() -> None:
    """With no spread over seeds what is left is the normal interval of two independent shares, and it is not zero."""
    found = paired_difference([0.16, 0.19, 0.16], [0.15, 0.18, 0.15], 100)
    shares = [(17 + 1) / 102, (16 + 1) / 102]
    half = 1.96 * math.sqrt(sum(share * (1 - share) / 100 for share in shares))
    assert found.high - found.estimate == pytest.approx(half, rel=1e-4)
    assert paired_difference([1.0] * 3, [1.0] * 3, 50).high > 0.01


def test_arms_of_the_same_images_are_paired_by_image() -> None:
    """Against the two-way analysis of variance (seeds by images) of the differences, by numpy and a printed table."""
    draw = np.random.default_rng(3)
    easy = draw.random(5_000) + draw.normal(0, 0.5, (3, 1, 5_000))
    correct = list(draw.random((3, 3, 5_000)) < 0.5 + 0.4 * easy)
    found = simultaneous_differences([[0.7, 0.7, 0.7]] * 3, 5_000, correct=[*correct[:2], None])
    gap = correct[0].astype(float) - correct[1]
    q = 3.314 / math.sqrt(2)  # of three means, with many degrees of freedom
    images = 3 * np.var(gap.mean(0), ddof=1)
    assert found[0, 1].high == pytest.approx(q * math.sqrt(images / 15_000), rel=2e-3)  # the seeds did not differ
    noisy = [[0.7, 0.71, 0.69], [0.7, 0.69, 0.71], [0.7] * 3]
    training = simultaneous_differences(noisy, None)[0, 1].high
    interaction = ((gap - gap.mean(0) - gap.mean(1, keepdims=True) + gap.mean()) ** 2).sum() / (2 * 4_999)
    half = math.hypot(training, q * math.sqrt((images - interaction) / 15_000))
    found = simultaneous_differences(noisy, 5_000, correct=[*correct[:2], None])
    assert found[0, 1].high == pytest.approx(half, rel=2e-3)
    assert found[0, 2] == simultaneous_differences(noisy, 5_000)[0, 2]
    same = paired_difference([1.0] * 3, [1.0] * 3, 50, correct=[np.ones((3, 50), bool)] * 2)
    assert same.high > 0.01  # never without width


def test_more_seeds_do_not_make_up_for_few_images() -> None:
    def width(seeds: int, images: int | None) -> float:
        table = np.random.default_rng(1).normal(0.7, 0.003, (2, seeds)).tolist()
        found = paired_difference(*table, images)
        return found.high - found.low

    floor = 2 * 1.96 * math.sqrt(2 * 0.7 * 0.3 / 1000)
    assert width(50, 1000) > floor
    assert width(50, None) < floor / 10


def test_intervals_of_simulated_predictions_cover_the_true_difference() -> None:
    """Seeds and images crossed: each image is hard to a degree of its own, for all arms and for each."""
    draw, skills = np.random.default_rng(2), (0.9, 1.1)
    many = draw.normal(0, math.sqrt(1 + 0.3**2 + 0.05**2), 2_000_000)  # images, arms and seeds at once
    truth = np.subtract(*(np.mean(1 / (1 + np.exp(-2 * (skill + many)))) for skill in skills))
    covered = [0, 0]
    for _ in range(400):
        difficulty = draw.normal(0, 1, 400)
        right = []
        for skill in skills:
            level = skill + difficulty + draw.normal(0, 0.3, 400) + draw.normal(0, 0.05, (3, 1))
            right.append(draw.random((3, 400)) < 1 / (1 + np.exp(-2 * level)))
        tables = [each.mean(1).tolist() for each in right]
        for place, correct in enumerate((None, right)):
            found = paired_difference(*tables, 400, correct=correct)
            covered[place] += bool(found.low <= truth <= found.high)
    assert min(covered) >= 0.95 * 400


def test_paired_images_count_only_the_disagreements() -> None:
    first = [True] * 80 + [True] * 12 + [False] * 8
    second = [True] * 80 + [False] * 12 + [True] * 8
    found = paired_images(first, second)
    assert found.estimate == pytest.approx(0.04)
    assert found.low < 0 < found.high
    b, c, n = 12.5, 8.5, 102
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found.high == pytest.approx((b - c) / n + half, abs=1e-6)
    assert paired_images([True] * 100, [False] * 40 + [True] * 60).excludes_zero


@pytest.mark.parametrize("same", [0, 1, 40, 5_000])
def test_an_exact_paired_interval_agrees_with_mcnemars_exact_test(same: int) -> None:
    some = [(first, second) for first in range(13) for second in range(13) if first + second + same]
    for first, second in [*some, (60, 40), (61, 39), (39, 61), (532, 468), (533, 467)]:
        differences = [1] * first + [-1] * second + [0] * same
        interval, p = exact_paired(differences)
        oracle = binomtest(first, first + second).pvalue if first + second else 1.0
        assert p == pytest.approx(oracle)
        assert interval.excludes_zero == (oracle <= 0.05)
        assert -1 <= interval.low < interval.high <= 1
        assert interval.low <= interval.estimate == (first - second) / len(differences) <= interval.high


@settings(deadline=None, max_examples=50)
@given(differences=st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_exact_test_counts_every_choice_of_signs(differences: list[int]) -> None:
    interval, p = exact_paired(differences, largest=3)
    found = abs(sum(differences))
    sums = [sum(signed) for signed in product(*((each, -each) for each in differences))]
    assert p == pytest.approx(sum(abs(each) >= found for each in sums) / len(sums))
    assert -3 <= interval.low < interval.high <= 3
    assert p <= 0.05 or not interval.excludes_zero


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.1), (0.3, 0.05), (0.02, 0.0), (0.5, 0.4)])
@pytest.mark.parametrize("count", [5, 20, 40])
def test_an_exact_paired_interval_covers_the_truth(count: int, first: float, second: float) -> None:
    covered = 0.0
    for a in range(count + 1):
        for b in range(count + 1 - a):
            chance = multinomial.pmf([a, b, count - a - b], count, [first, second, 1 - first - second])
            if chance > 1e-6:
                interval, _ = exact_paired([1] * a + [-1] * b + [0] * (count - a - b))
                covered += chance * (interval.low <= first - second <= interval.high)
    assert covered > 0.93  # the normal approximation's own shortfall; with no true difference it is exact
    assert first != second or covered >= 0.95 - 1e-3
