"""The learning rate over a run, as a factor of the peak rate."""

from __future__ import annotations

import math


def factor(step: int, total: int, *, name: str, warmup: float, final: float) -> float:
    """Share of the peak rate at a 0-based step.

    Rises by equal parts over the first ``round(warmup * total)`` steps, reaching 1 at the last of them, then falls
    towards ``final``, which it would reach one step after the last: no step is taken with a rate of zero.

    Args:
        step: 0 .. total - 1.
        total: steps in the run.
        name: ``constant``, ``linear`` or ``cosine`` (arXiv 1608.03983, eq. 5, one period).
        warmup: share of the steps that rise.
        final: end of the fall over the peak.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / (total - rising)
    return SHAPES[name](done) * (1 - final) + final


SHAPES = {
    "constant": lambda done: 1.0,  # noqa: ARG005  (all shapes share one signature)
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}
