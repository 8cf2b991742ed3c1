"""The confidence interval of one proportion, such as an accuracy. It needs neither scipy nor torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
# Quantile of the standard normal distribution at 0.975, to the last bit: scipy, which has it, takes 0.4 s to import.
QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; ``low <= estimate <= high``."""

    estimate: float
    low: float
    high: float

    def __neg__(self) -> Interval:
        """Interval of the negated difference."""
        return Interval(-self.estimate, -self.high, -self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def wilson(correct: int, count: int) -> Interval:
    """Interval of a proportion over ``count`` independent images.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", as the score interval.
    It covers the sampling of test images only, not the randomness of training.
    """
    share, z = correct / count, QUANTILE
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
