"""``diffvit train`` as processes of their own, for the scripts beside this file."""

from __future__ import annotations

import argparse
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


def parser(description: str | None) -> argparse.ArgumentParser:
    """What both scripts ask for; every other flag is for ``diffvit train``, so none is abbreviated."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=description, formatter_class=form, allow_abbrev=False)
    made.add_argument("config", type=Path)
    made.add_argument("--runs", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    return made
