"""``diffvit train`` as processes of their own, for the scripts beside this file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Deterministic algorithms are a setting of torch, so the command line is started from a line that sets it.
START = """
import sys, torch
from diffvit.cli.main import main
torch.use_deterministic_algorithms({deterministic})
sys.exit(main())
"""


def start(*arguments: str | Path, deterministic: bool = False) -> subprocess.Popen[bytes]:
    """``diffvit train`` with these arguments."""
    code = START.format(deterministic=deterministic)
    return subprocess.Popen([sys.executable, "-c", code, "train", *map(str, arguments), "--quiet"])


def finish(process: subprocess.Popen[bytes], expected: int) -> None:
    """Wait; the exit code must be the expected one."""
    code = process.wait()
    if code != expected:
        raise SystemExit(f"error: diffvit train: ended with exit code {code} (vs {expected}). See its output above.")
