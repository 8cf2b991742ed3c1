"""Measuring speed: medians over rounds with intervals, facts about the machine, the result as JSON.

For the benchmarks beside the package and for ``diffvit clip precision``. Importing it does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from diffvit.files import to_json, write_file

Result = dict[str, Any]
INTERVAL_NOTE = (
    "In brackets: from six rounds on, a distribution-free 95% interval of the median over the rounds (order "
    "statistics); with fewer rounds, the smallest and the largest."
)


class Spread(NamedTuple):
    """A median over rounds and an interval around it (see :data:`INTERVAL_NOTE`)."""

    median: float
    low: float
    high: float


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


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: all move up by one place every two rounds, and every other round runs backwards.

    So no arm always follows the same one, and a drift within a round cancels over two.
    """
    shift = (turn // 2) % len(names) if names else 0
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if turn % 2 else turned


def prepare(threads: int) -> int:
    """Set the process up for measuring; the number of threads (0 is all usable cores)."""
    import torch

    from diffvit.training.environment import usable_cores
    from diffvit.training.memory import keep_freed_memory

    keep_freed_memory()
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    return threads


def waiter(device: str) -> Callable[[], None]:
    """A function that waits until the device has finished; does nothing on a CPU."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def facts(device: str, threads: int, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, hardware, threads and date, and the machine's load average over the last minute.

    The versions of the distributions ``libraries`` are added, None for one that is not installed.
    """
    from diffvit.training.environment import describe

    found = describe(device=device, precision="", threads=threads, processes=1)
    del found["precision"], found["processes"], found["kernels"]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    versions = {name: _version(name) for name in libraries}
    return {**found, **versions, "date": datetime.now(UTC).date().isoformat(), "load": load}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a result to ``folder/BENCHMARK.json``; returns its path."""
    return write_file(folder / f"{result['benchmark']}.json", to_json(dict(result), indent=1))


def stamp(result: Mapping[str, Any]) -> str:
    """SHA-256 of a result's content, kept in the PNG file of its plot."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def counted(number: int, what: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
