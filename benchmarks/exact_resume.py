"""Is a run that was stopped and taken up the run that never stopped, bit for bit? Writes the answer as JSON.

python benchmarks/exact_resume.py CONFIG.yaml --runs DIR --out FILE [flags of diffvit train]

Three processes with deterministic kernels: one trains to its end; one is stopped by SIGTERM in its second epoch; one
takes that up. What is compared: the final weights' bytes and every column of the metrics that is not a time.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from trainings import finish, parser, start

from diffvit.training.environment import hardware
from diffvit.training.run_dir import RunDir

TIMES = ("seconds", "images_per_second")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in RunDir.open(folder).metrics]


def main() -> None:
    """The command."""
    given, flags = parser(__doc__).parse_known_args()
    shutil.rmtree(given.runs, ignore_errors=True)
    whole, stopped = given.runs / "whole", given.runs / "stopped"
    finish(start(given.config, "--out", whole, *flags, deterministic=True), 0)
    process = start(given.config, "--out", stopped, *flags, deterministic=True)
    metrics = stopped / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    epochs = len(rows_of(stopped))
    finish(start("--resume", stopped, deterministic=True), 0)
    answer = {
        "config": str(given.config),
        "hardware": hardware(RunDir.open(whole).environment["device"]),
        "versions": {name: RunDir.open(whole).environment[name] for name in ("diffvit", "torch", "python")},
        "stopped_after_epochs": epochs,
        "epochs": len(rows_of(whole)),
        "weights_equal": (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes(),
        "metrics_equal": rows_of(whole) == rows_of(stopped),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(answer))
    sys.exit(not (answer["weights_equal"] and answer["metrics_equal"]))


if __name__ == "__main__":
    main()
