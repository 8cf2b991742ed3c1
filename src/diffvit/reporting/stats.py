"""Intervals for accuracies and for their differences.

Intervals are two-sided, 95% unless another confidence is given.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import fmean as mean

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from diffvit.training.intervals import CONFIDENCE as CONFIDENCE
from diffvit.training.intervals import QUANTILE as _Z
from diffvit.training.intervals import Interval as Interval
from diffvit.training.intervals import wilson as wilson

Correct = NDArray[np.bool_]
MIN_SEEDS = 3


def std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def simultaneous_differences(
    arms: Sequence[Sequence[float]],
    images: int | None,
    confidence: float = CONFIDENCE,
    *,
    correct: Sequence[Correct | None] | None = None,
) -> dict[tuple[int, int], Interval]:
    """Simultaneous intervals of all pairwise differences of mean accuracies; arms are paired by seed.

    Seeds and test images are crossed random effects of a mixed model (McCullagh 2000, "Resampling and exchangeable
    arrays"; Owen 2007, "The pigeonhole bootstrap"), and each contributes to an interval's half-width:

    - Training: Tukey's honestly significant difference in a randomised block design, accuracy = arm + seed + residual,
      whose residual mean square is pooled over all arms. The intervals of all pairs hold simultaneously, so that any
      pair may be picked after seeing the data (Hsu 1996, "Multiple comparisons", chapter 5). It assumes that all arms
      vary alike over seeds. For two arms it is Student's paired t interval.
    - Test images, where it is known of both arms which they classified correctly: the variance of the mean over images
      of an image's difference (:func:`paired_variance` of its mean over seeds), less its part that stems from the
      interaction of seeds and images, which is in the training part.
    - Test images, where it is not known: the variance is ``(p (1 - p) + q (1 - q)) / images``, the largest that it can
      be unless two models tend to be right on opposite images, with each share moved a little towards one half (Agresti
      and Caffo 2000), so that no interval has zero width. It does not shrink with more seeds.

    The two half-widths are added in squares (Zou and Donner 2008, "Construction of confidence limits about effect
    measures: a general approach"), so an interval is never narrower than either alone. Nor is it where images are
    paired narrower than the whole variance over images, interaction included: that of these very models.

    Args:
        arms: accuracies (fractions), one sequence per arm, with the same seeds in the same order.
        images: number of test images behind each accuracy; None to leave their sampling out.
        confidence: of all intervals together.
        correct: of each arm, which test images each seed classified correctly, (seeds, images); None where it is not
            known. Arms that have one have the same test images.

    Returns:
        By the places of the two arms, the first smaller, the interval of the first minus the second.

    Raises:
        ValueError: fewer than two arms or seeds, or arms of unequal length.
    """
    seeds = len(arms[0]) if arms else 0
    if len(arms) < 2 or seeds < 2 or any(len(arm) != seeds for arm in arms):
        raise ValueError(f"needs two or more arms of two or more shared seeds (found {[len(arm) for arm in arms]})")
    means = [mean(arm) for arm in arms]
    by_seed = [mean(values) for values in zip(*arms, strict=True)]
    residuals = np.array(arms) - np.array(means)[:, None] - by_seed + mean(means)
    degrees = (len(arms) - 1) * (seeds - 1)
    error = math.sqrt(2 * math.fsum((residuals**2).ravel()) / degrees / seeds)
    training = _critical_difference(confidence, len(arms), degrees) * error
    critical = _critical_difference(confidence, len(arms), math.inf)
    known = correct or [None] * len(arms)
    over_seeds = [None if each is None else each.mean(0) for each in known]
    found = {}
    for one, two in itertools.combinations(range(len(arms)), 2):
        first, second = over_seeds[one], over_seeds[two]
        if first is None or second is None:
            error = math.sqrt(_sampling_variance(means[one], images) + _sampling_variance(means[two], images))
            half = math.hypot(training, critical * error)
        else:
            differences = first - second
            whole = paired_variance(differences)
            # The squared deviations of an image's differences from their mean over seeds, summed over all images.
            squares = np.count_nonzero(known[one] != known[two]) - seeds * float(differences @ differences)
            interaction = squares / (seeds - 1) / seeds / len(differences) ** 2
            half = math.hypot(training, critical * math.sqrt(max(0.0, whole - interaction)))
            half = max(half, critical * math.sqrt(whole))
        centre = means[one] - means[two]
        found[one, two] = Interval(centre, centre - half, centre + half)
    return found


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    images: int | None,
    confidence: float = CONFIDENCE,
    *,
    correct: Sequence[Correct | None] | None = None,
) -> Interval:
    """Mean of ``first - second`` over seeds: :func:`simultaneous_differences` of two arms.

    Raises:
        ValueError: unequal lengths or fewer than two seeds.
    """
    return simultaneous_differences([first, second], images, confidence, correct=correct)[0, 1]


def paired_variance(differences: NDArray[np.float64]) -> float:
    """Variance of the mean of one difference per image, each between -1 and 1, over the sampling of the images.

    With half an image added to each cell of two models' right and wrong answers, so that it is never zero (Agresti and
    Min 2005, "Simple improved confidence intervals for comparing matched proportions").
    """
    count = len(differences) + 2
    return float(differences @ differences + 1 - differences.sum() ** 2 / count) / count**2


def _sampling_variance(share: float, images: int | None) -> float:
    """Of a share of so many test images; also an upper bound for the mean of any score in [0, 1]."""
    if images is None:
        return 0.0
    adjusted = (share * images + 1) / (images + 2)
    return adjusted * (1 - adjusted) / images


@cache
def _critical_difference(confidence: float, arms: int, degrees: float) -> float:
    """Tukey's critical value for a difference of two of so many arms, in units of its standard error."""
    if arms == 2:
        return float(stdtrit(degrees, 0.5 + confidence / 2))
    from scipy.stats import studentized_range  # its import takes a second

    return float(studentized_range.ppf(confidence, arms, degrees)) / math.sqrt(2)


def paired_images(first: Sequence[bool] | Correct, second: Sequence[bool] | Correct) -> Interval:
    """Difference of two models' accuracies over the same images, paired image by image.

    Wald's interval by :func:`paired_variance`; the estimate stays the raw difference.
    """
    differences = np.subtract(first, second, dtype=np.float64)
    total = float(differences.sum())
    centre, raw = total / (len(differences) + 2), total / len(differences)
    half = _Z * math.sqrt(paired_variance(differences))
    return Interval(raw, min(raw, centre - half), max(raw, centre + half))


def exact_paired(differences: Sequence[int], largest: int = 1) -> tuple[Interval, float]:
    """Mean of paired differences, its interval, and the p-value of an exact sign-flip (permutation) test.

    The interval includes zero wherever the test does not reject it.

    The two-sided test holds the differences' sizes fixed and counts every choice of their signs (Fisher 1935, "The
    Design of Experiments", section 21); for differences of -1, 0 and 1 it is McNemar's exact test, the binomial sign
    test on the discordant pairs (Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data").
    The interval is that of :func:`paired_images`, written for differences of any size; it is extended to zero where
    the test does not decide, at 5%.

    ``differences`` has one for each pair, at least one, none greater than ``largest``; the interval is in their units.
    """
    total, count = sum(differences), len(differences) + 2
    centre = total / count
    squares = sum(each * each for each in differences) + largest**2 - total**2 / count
    half = _Z * math.sqrt(squares) / count
    signed = np.ones(1)  # probabilities of the sums from -span to span
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
    if p_value > 1 - CONFIDENCE:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(mean_of_all, low, high), p_value
