"""Who holds a lease: a process, known apart from a later one with the same number."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> tuple[str, int, str]:
    """Machine, number and beginning of the running process (numbers are used again)."""
    return _machine(), os.getpid(), _began(os.getpid())


def _machine() -> str:
    """Where the process runs; a container with process numbers of its own is another machine."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_gone(machine: str, process: int, began: str) -> bool:
    """Whether a process is known to have ended: only one of this machine can be."""
    return machine == _machine() and _began(process) != began


def _began(process: int) -> str:
    """When a process began, in ticks since the machine did; empty where it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else "unknown"
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]
