"""benchmarks/gpu.sh where there is no CUDA device: the dry run goes through every step; anything else is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]


def gpu_sh(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, **environ}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=800)


def test_the_dry_run_goes_through_every_step_and_leaves_nothing(tmp_path: Path) -> None:
    done = gpu_sh("--dry-run", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [line.split(" (")[0].removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert steps == [
        *("cifar10_vit-s0", "cifar10_diffvit-s0", "report gpu-50-epochs"),
        *("cifar10_80_gpu-s0", "report gpu-time-to-80", "cifar10_85_gpu-s0", "report gpu-time-to-85"),
        *("bench train", "bench inference", "bench attention", "bench profile"),
        *("clip precision", "exact resume", "two at once"),
        *("study vit-vs-diffvit", "report vit-vs-diffvit"),
    ]
    assert '"weights_equal": true, "metrics_equal": true' in done.stdout
    assert '"ratio": ' in done.stdout
    assert done.stdout.endswith("finished\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_device_it_says_so_in_one_line() -> None:
    done = gpu_sh("5", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: CUDA device: none found.")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("soon",), ("5", "6"), ("-5",)])
def test_anything_else_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = gpu_sh(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: usage: bash benchmarks/gpu.sh MINUTES | --dry-run\n"
