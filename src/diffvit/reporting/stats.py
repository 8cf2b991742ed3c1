"""The little statistics an honest comparison needs, without scipy.

Intervals are two-sided, 95% unless told otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_SEEDS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; ``low <= estimate <= high``."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def wilson(correct: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion over ``count`` independent images.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", as the score interval.
    It covers the sampling of test images only, not the randomness of training.
    """
    z = normal_quantile(0.5 + confidence / 2)
    share = correct / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, min(share, centre - half), max(share, centre + half))


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of ``first - second`` over pairs (one pair per seed) with Student's t interval; needs two pairs.

    Raises:
        ValueError: unequal lengths or fewer than two pairs.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    spread = std(differences)
    if spread is None:
        raise ValueError("a paired interval needs at least two pairs")
    centre = mean(differences)
    half = t_quantile(0.5 + confidence / 2, len(differences) - 1) * spread / math.sqrt(len(differences))
    return Interval(centre, centre - half, centre + half)


def paired_images(first: Sequence[bool], second: Sequence[bool], confidence: float = CONFIDENCE) -> Interval:
    """Difference of two models' accuracies over the same images, paired image by image.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's
    interval after adding half an image to each of the four cells. The estimate stays the raw difference.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count, b, c = len(first) + 2, only_first + 0.5, only_second + 0.5
    centre = (b - c) / count
    half = normal_quantile(0.5 + confidence / 2) * math.sqrt(b + c - (b - c) ** 2 / count) / count
    raw = (only_first - only_second) / len(first)
    return Interval(raw, min(raw, centre - half), max(raw, centre + half))


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return _solve(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), probability)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution."""
    return _solve(lambda x: _t_cdf(x, degrees), probability)


def _t_cdf(x: float, degrees: int) -> float:
    """Student's t distribution function from its closed form for whole degrees of freedom.

    Source: Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4.
    """
    theta = math.atan(x / math.sqrt(degrees))
    cosine = math.cos(theta)
    if degrees % 2:
        term, total = cosine, 0.0
        for k in range(1, (degrees - 1) // 2 + 1):
            total += term
            term *= cosine * cosine * 2 * k / (2 * k + 1)
        area = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(1, degrees // 2 + 1):
            total += term
            term *= cosine * cosine * (2 * k - 1) / (2 * k)
        area = math.sin(theta) * total
    return 0.5 + area / 2


def _solve(cdf: Callable[[float], float], probability: float) -> float:
    """Where a distribution function reaches ``probability``, by bisection."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability lies between 0 and 1 (found {probability})")
    low, high = -1.0, 1.0
    while cdf(low) > probability:
        low *= 2
    while cdf(high) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if cdf(middle) < probability else (low, middle)
    return (low + high) / 2


def exact_paired(
    differences: Sequence[int], largest: int = 1, confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """Mean of paired differences with an interval that leaves zero out only where an exact test does.

    The two-sided test holds the differences' sizes fixed and counts every choice of their signs (Fisher 1935, "The
    Design of Experiments", section 21); for differences of -1, 0 and 1 it is McNemar's exact test, the binomial sign
    test on the discordant pairs (Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data").
    The interval is that of :func:`paired_images`, written for differences of any size; it is extended to zero where
    the test does not decide.

    Args:
        differences: one for each pair, at least one.
        largest: the greatest size that a difference may have.
        confidence: of the interval; the test decides at 1 - confidence.

    Returns:
        The interval, in the units of ``differences``, and the test's p-value.
    """
    import numpy as np

    total, count = sum(differences), len(differences) + 2
    centre = total / count
    squares = sum(each * each for each in differences) + largest**2 - total**2 / count
    half = normal_quantile(0.5 + confidence / 2) * math.sqrt(squares) / count
    signed = np.ones(1)  # chances of the sums from -span to span
    for size, times in Counter(abs(each) for each in differences if each).items():
        steps = np.zeros(2 * size * times + 1)
        ways = [math.lgamma(times + 1) - math.lgamma(k + 1) - math.lgamma(times - k + 1) for k in range(times + 1)]
        steps[:: 2 * size] = np.exp(np.array(ways) - times * math.log(2))
        signed = np.convolve(signed, steps)
    span = len(signed) // 2
    p_value = min(1.0, 2 * float(signed[span + abs(total) :].sum()))
    mean_of_all = total / len(differences)
    low = max(-largest, min(mean_of_all, centre - half))
    high = min(largest, max(mean_of_all, centre + half))
    if p_value > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(mean_of_all, low, high), p_value
