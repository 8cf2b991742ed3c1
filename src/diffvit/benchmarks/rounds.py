"""Measuring in turns: every arm once per round, so that a slow minute of the machine strikes all arms alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from diffvit.benchmarks.settings import Rounds

Progress = Callable[[int, int], object]  # told how many of how many are done
INTERVAL_NOTE = (
    "In brackets: from six rounds on, a distribution-free 95% interval of the median over the rounds (order "
    "statistics); with fewer rounds, the smallest and the largest."
)


class Spread(NamedTuple):
    """A median over rounds and an interval around it (see :data:`INTERVAL_NOTE`)."""

    median: float
    low: float
    high: float


def order(names: Sequence[str], turn: int) -> list[str]:
    """Who comes when in a round: everyone moves up by one place per two rounds, every other round runs backwards.

    So nobody always follows the same neighbour, and a drift within a round cancels over two.
    """
    shift = (turn // 2) % len(names) if names else 0
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if turn % 2 else turned


def measure(
    arms: Mapping[str, Callable[[], object]],
    how: Rounds,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Seconds per step of every arm, one figure per round that counts.

    Args:
        arms: name to one step.
        how: rounds, steps per turn, and rounds thrown away first.
        clock: seconds.
        wait: lets a device finish what it was given; called before the clock is read.
        progress: told after each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(how.warmup + how.rounds):
        for name in order(list(arms), turn):
            step = arms[name]
            wait()
            start = clock()
            for _ in range(how.steps):
                step()
            wait()
            taken = (clock() - start) / how.steps
            if turn >= how.warmup:
                seconds[name].append(taken)
        if progress:
            progress(turn + 1, how.warmup + how.rounds)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and interval of figures from independent rounds.

    The interval from the k-th smallest to the k-th largest holds the median of the distribution with probability
    ``1 - 2 P(Binomial(n, 1/2) < k)``, whatever the distribution; k is the largest that gives at least 95%.
    """
    ranked = sorted(values)
    count, k, below = len(ranked), 1, 1.0
    while k + 1 <= count // 2:
        below += math.comb(count, k)
        if 2 * below / 2.0**count > 0.05:
            break
        k += 1
    return Spread(statistics.median(ranked), ranked[k - 1], ranked[-k])


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Median and interval of the ratio within each round."""
    return spread([over / under for over, under in zip(numerator, denominator, strict=True)])
