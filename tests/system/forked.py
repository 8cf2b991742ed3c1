"""Processes of their own, forked from one that has imported diffvit: each starts in a moment instead of in seconds."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from diffvit.cli.main import run

_FORKS = multiprocessing.get_context("forkserver")
_VERBS = [f"diffvit.cli.{verb}" for verb in ("train", "evaluate", "attention", "study", "data")]
_LATER = ["training.loop", "experiments.search", "experiments.report", "attention.report", "attention.scores"]
_OTHERS = ["pytest", "optuna.storages", "sqlalchemy.dialects.sqlite", "psycopg"]
_FORKS.set_forkserver_preload([*_OTHERS, *_VERBS, *(f"diffvit.{each}" for each in _LATER)])
_NAMESPACES = 0x00020000 | 0x40000000  # of clone(2): mounts and network
Event = _FORKS.Event


def start(
    function: Callable[..., object], *arguments: object, folder: Path, log: Path, mounted_at: Path | None = None
) -> ForkServerProcess:
    """Call a module's function in a process of its own, in a folder; what it prints is added to ``log``.

    With ``mounted_at`` it runs as on another machine that shares the folder: in namespaces of its own for mounts and
    network, with the folder mounted there (needs root).
    """
    process = _FORKS.Process(
        target=_call, args=(function, arguments, dict(os.environ), folder, log, mounted_at), daemon=True
    )
    process.start()
    return process


def diffvit(*arguments: str) -> None:
    """The command line, for :func:`start`."""
    sys.exit(run(arguments))


def finish(process: ForkServerProcess) -> int:
    """Wait for the end; the exit code, negative for a signal."""
    process.join(600)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode


def _call(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environ: dict[str, str],
    folder: Path,
    log: Path,
    mounted_at: Path | None,
) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environ)
    if mounted_at is not None:
        if ctypes.CDLL(None).unshare(_NAMESPACES) != 0:
            sys.exit("no namespaces")
        for command in (["--make-rprivate", "/"], ["--bind", str(folder), str(mounted_at)]):
            subprocess.run(["mount", *command], check=True)
    os.chdir(mounted_at or folder)
    function(*arguments)
