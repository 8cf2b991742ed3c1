"""Do two trainings at the same time on one device get more done than one alone? Writes the answer as JSON.

python benchmarks/two_at_once.py CONFIG.yaml --runs DIR --out FILE [--epochs-each N] [flags of diffvit train]

One training alone, then two with other seeds beside each other; each is stopped once it has shown what is asked. Rates
are taken from the moments at which epochs end while all of them train: starting and compiling are not in them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from trainings import finish, parser, start

from diffvit.training.environment import hardware
from diffvit.training.run_dir import RunDir

Moments = list[tuple[float, int]]  # when an epoch was seen to have ended, and how many had by then


def seen_together(folders: list[Path], epochs: int, running: Any) -> list[Moments]:
    """Moments of each run, from when all have ended an epoch until each has ended so many more."""
    found: list[Moments] = [[] for _ in folders]
    while any(not moments or moments[-1][1] - moments[0][1] < epochs for moments in found):
        if not running():
            raise SystemExit("error: diffvit train: ended before it was measured. Give more --epochs.")
        counts = [done(folder) for folder in folders]
        now = time.monotonic()
        for count, moments in zip(counts, found, strict=True):
            if min(counts) and (not moments or count > moments[-1][1]):
                moments.append((now, count))
        time.sleep(0.01)
    # The first look may come long after the epoch before it ended.
    return [moments[1:] for moments in found]


def done(folder: Path) -> int:
    """Epochs that a run has ended."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def images_per_second(folder: Path, moments: Moments) -> float:
    """Of one run between its first and its last moment."""
    (begin, first), (end, last) = moments[0], moments[-1]
    images = int(RunDir.open(folder).metrics[0]["images_seen"])
    return images * (last - first) / (end - begin)


def measure(seeds: list[int], given: argparse.Namespace, flags: list[str]) -> list[float]:
    """Images per second of trainings with these seeds at the same time."""
    folders = [given.runs / f"{len(seeds)}-s{seed}" for seed in seeds]
    pairs = zip(seeds, folders, strict=True)
    processes = [start(given.config, "--seed", str(seed), "--out", folder, *flags) for seed, folder in pairs]

    def running() -> bool:
        return all(process.poll() is None for process in processes)

    try:
        seen = seen_together(folders, given.epochs_each + 1, running)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, 128 + signal.SIGTERM)
    return [images_per_second(folder, moments) for folder, moments in zip(folders, seen, strict=True)]


def main() -> None:
    """The command."""
    asked = parser(__doc__)
    asked.add_argument("--epochs-each", type=int, default=5)
    given, flags = asked.parse_known_args()
    shutil.rmtree(given.runs, ignore_errors=True)
    alone = measure([0], given, flags)[0]
    together = measure([1, 2], given, flags)
    environment = RunDir.open(given.runs / "1-s0").environment
    answer = {
        "config": str(given.config),
        "hardware": hardware(environment["device"]),
        "versions": {name: environment[name] for name in ("diffvit", "torch", "python")},
        "epochs_measured": given.epochs_each,
        "alone_images_per_second": alone,
        "together_images_per_second": together,
        "ratio": sum(together) / alone,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
