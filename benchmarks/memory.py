"""Peak memory of a step, of each model in a process of its own; never while anything is timed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.peers import build
from benchmarks.settings import Sizes
from benchmarks.steps import STEPS, batch_of
from diffvit.errors import EnvironmentFault

_STATUS = Path("/proc/self/status")


def peak_memory(kind: str, model: str, dtype: str, sizes: Sizes, device: str, threads: int) -> int | None:
    """Bytes that two steps need at their peak beyond what the process held with the bare libraries.

    On a CPU: growth of the peak resident set from before the model is built (weights, gradients, the optimiser's
    state, activations, and what the kernels set up). On CUDA: ``max_memory_allocated``. None where neither is known.

    Raises:
        EnvironmentFault: the process failed.
    """
    if device != "cuda" and not _STATUS.exists():
        return None
    asked = [kind, model, dtype, dataclasses.asdict(sizes), device, threads]
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asked)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFault(f"memory of {model}", f"cannot be measured ({last})", "Leave it out with --no-memory.")
    return int(done.stdout.split()[-1])


def _measure(kind: str, name: str, dtype: str, sizes: Sizes, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    tiny = dataclasses.replace(sizes, embed_dim=2 * sizes.num_heads, depth=1, batch_size=1)
    _steps(kind, name, dtype, tiny, device)  # imports and first-use set-up are no model's memory
    before = _peak(device)
    _steps(kind, name, dtype, sizes, device)
    return _peak(device) - (0 if device == "cuda" else before)


def _steps(kind: str, name: str, dtype: str, sizes: Sizes, device: str) -> None:
    make, _ = STEPS[kind]
    step = make(build(name, sizes).to(device), *batch_of(sizes, device), dtype)
    for _ in range(2):
        step()


def _peak(device: str) -> int:
    """Peak bytes so far. Not getrusage's: a child inherits its parent's there."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    kind, model, dtype, sizes, device, threads = json.loads(sys.argv[1])
    sys.stdout.write(f"{_measure(kind, model, dtype, Sizes(**sizes), device, threads)}\n")
