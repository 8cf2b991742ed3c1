"""Measuring in turns within a time, as in :mod:`diffvit.measuring`, where arms may differ much in cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from diffvit.measuring import order


class Box(NamedTuple):
    """A time to spend: ``seconds`` from ``start`` on, by ``clock``."""

    start: float
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    @property
    def left(self) -> float:
        """Seconds that are left, not below zero."""
        return max(0.0, self.start + self.seconds - self.clock())

    def share(self, part: float) -> Box:
        """A part of what is left, from now on."""
        return Box(self.clock(), part * self.left, self.clock)


def admit(expected: Mapping[str, float], seconds: float, least: int, first: str = "") -> list[str]:
    """Who takes part where ``least`` steps of everyone do not fit: the quick ones first, in their given order.

    Args:
        expected: seconds per step.
        seconds: to spend on all of them together.
        least: steps that each must have room for.
        first: whom all are compared with, before the quick ones.
    """
    chosen, needed = set(), 0.0
    for name in sorted(expected, key=lambda name: (name != first, expected[name])):
        if needed + least * expected[name] > seconds:
            break
        needed += least * expected[name]
        chosen.add(name)
    return [name for name in expected if name in chosen]


def boxed_rounds(
    arms: Mapping[str, Callable[[], object]],
    expected: Mapping[str, float],
    box: Box,
    *,
    least: int,
    most: int,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per step of every arm, in rounds: each arm once per round, in an order that rotates and reverses.

    Every arm may spend what its ``least`` steps need and an equal share of the rest; when that is spent, it sits out.
    So round i of any two arms happened side by side, and a cheap arm has more rounds than a dear one. No step starts
    that would, by the arm's last time, end after the box.

    Args:
        arms: name to one step.
        expected: seconds per step, of those arms.
        box: the time.
        least: steps that everyone had room for.
        most: steps after which an arm is done.
        wait: lets a device finish what it was given; called before the clock is read.

    Returns:
        One figure per round; empty for an arm that the box had no room for after all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    last = {name: expected[name] for name in arms}
    extra = max(0.0, box.left - least * sum(last.values())) / max(1, len(arms))
    allowed = {name: least * last[name] + extra for name in arms}
    active, turn = list(arms), 0
    while active:
        for name in order(active, turn):
            if last[name] > box.left:
                active.remove(name)
                continue
            wait()
            start = box.clock()
            arms[name]()
            wait()
            last[name] = box.clock() - start
            seconds[name].append(last[name])
        active = [
            name
            for name in active
            if len(seconds[name]) < most
            and (len(seconds[name]) < least or sum(seconds[name]) + last[name] <= allowed[name])
        ]
        turn += 1
    return seconds
