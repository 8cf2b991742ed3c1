from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks.settings import Rounds
from benchmarks.throughput import measure
from diffvit.measuring import ratio, spread


class Clock:
    """A clock that moves only when an arm runs; each arm takes what it is given for its n-th step."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def arm(self, name: str, durations: list[float]) -> Callable[[], None]:
        waiting = iter(durations)

        def step() -> None:
            self.log.append(name)
            self.now += next(waiting)

        return step


def test_every_arm_has_its_turn_in_every_round_and_the_order_moves() -> None:
    clock = Clock()
    arms = {name: clock.arm(name, [1.0] * 20) for name in "abc"}
    told = []
    measure(arms, Rounds(rounds=5, steps=2, warmup=1), clock=lambda: clock.now, progress=lambda *at: told.append(at))
    turns = [clock.log[start : start + 6] for start in range(0, 36, 6)]
    assert len(clock.log) == 36
    for turn in turns:  # two steps in a row, each arm once
        assert turn[::2] == turn[1::2]
        assert sorted(turn[::2]) == ["a", "b", "c"]
    assert ["".join(turn[::2]) for turn in turns] == ["abc", "cba", "bca", "acb", "cab", "bac"]
    assert told == [(done, 6) for done in range(1, 7)]


def test_warm_up_is_thrown_away_and_times_are_per_step() -> None:
    clock = Clock()
    waits: list[float] = []
    arms = {"ours": clock.arm("ours", [9, 9, 1, 3, 2, 2]), "theirs": clock.arm("theirs", [7, 7, 4, 4, 8, 4])}
    how = Rounds(rounds=2, steps=2, warmup=1)
    seconds = measure(arms, how, clock=lambda: clock.now, wait=lambda: waits.append(clock.now))
    assert seconds == {"ours": [2.0, 2.0], "theirs": [4.0, 6.0]}
    assert len(waits) == 2 * 2 * 3  # before and after each turn
    assert ratio(seconds["theirs"], seconds["ours"]) == (2.5, 2.0, 3.0)


def test_the_ratio_is_taken_within_each_round() -> None:
    # The machine is three times as slow in the second round; the ratio does not notice.
    assert ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", range(1, 41))
def test_the_interval_holds_the_median_with_95_percent_and_is_the_narrowest_that_does(count: int) -> None:
    found = spread([float(value) for value in range(1, count + 1)])
    k = int(found.low)
    assert found.high == count + 1 - k
    assert found.median == (count + 1) / 2

    def coverage(rank: int) -> float:
        return 1 - 2 * sum(math.comb(count, hits) for hits in range(rank)) / 2**count

    if count >= 6:
        assert coverage(k) >= 0.95
        assert coverage(k + 1) < 0.95
    else:
        assert k == 1
