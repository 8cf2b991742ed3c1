"""Start a study's workers: as processes of this machine, or as a Slurm job array through submitit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffvit.errors import EnvironmentFault

_RESTARTS = 20  # of workers that were killed; each goes on where it was
_POLL = 0.2  # seconds
_SIGNALLED = 128  # and the signal's number, as a shell has it
_STOPS = (signal.SIGINT, signal.SIGTERM)


def worker_command(arguments: Sequence[str]) -> list[str]:
    """One worker, as a process of its own."""
    return [sys.executable, "-m", "diffvit.cli.main", "study", "work", *arguments]


def run_here(
    command: Sequence[str], count: int, logs: Path, show: Callable[[], object], *, every: float = 1.0
) -> list[int]:
    """Run ``count`` workers as processes of this machine, each started again when it is killed; their exit codes.

    SIGINT and SIGTERM are passed on: workers save their state first. When this returns or raises, no worker is left.
    Their output goes to a file each in ``logs``; ``show`` is called ``every`` so many seconds while they run.
    """

    def start(place: int) -> subprocess.Popen[bytes]:
        with (logs / f"worker-{place + 1}.log").open("ab") as log:
            # A group of its own: Ctrl-C on the terminal reaches this process alone, which passes it on once.
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0)

    logs.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    workers: list[subprocess.Popen[bytes]] = []
    former = {each: signal.signal(each, lambda number, _: stopped.append(number)) for each in _STOPS}
    restarts, last, running = 0, 0.0, True
    try:
        for place in range(count):
            workers.append(start(place))
        while running and not stopped:
            time.sleep(_POLL)
            if time.monotonic() - last >= every:
                last = time.monotonic()
                show()
            running = False
            for place, worker in enumerate(workers):
                code = worker.poll()
                if code is not None and code < 0 and not stopped and restarts < _RESTARTS:
                    restarts += 1
                    workers[place], code = start(place), None
                running = running or code is None
        show()
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            worker.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
    ends = [stopped[0] + _SIGNALLED if stopped else worker.returncode for worker in workers]
    return [end if end >= 0 else _SIGNALLED - end for end in ends]


class Job:
    """What a Slurm job runs: a worker as a process. submitit pickles it, and starts it again after a time-out."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, command: Sequence[str]) -> int:
        """Run it; its exit code."""
        self._process = subprocess.Popen(command)
        return self._process.wait()

    def checkpoint(self, command: Sequence[str]) -> Any:
        """A job that is preempted or out of time is queued again; the worker saves its state first."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return submitit.helpers.DelayedSubmission(Job(), command)


def submit(
    commands: Sequence[Sequence[str]], folder: Path, *, at_once: int, gpus: int = 1, cluster: str = "slurm"
) -> list[Any]:
    """Submit a job array with a job for each of these workers' commands; submitit's jobs.

    A job has 8 CPUs, ``gpus`` GPUs, 32 GB and four hours; one that is not done by then is queued again and goes on
    where it stopped. ``at_once`` of them run together; ``folder``, for submitit's logs and scripts, is seen by all
    machines; ``cluster`` is ``slurm``, or ``local``, which is submitit's own stand-in for one.

    Raises:
        EnvironmentFault: submitit is missing, or there is no Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        hint = "Install it with: pip install 'diffvit[studies]'"
        raise EnvironmentFault("submitit", f"cannot be imported ({error})", hint) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        hint = "Start workers here with --launcher local."
        raise EnvironmentFault("--launcher slurm", " ".join(str(error).split()), hint) from None
    machine = {"timeout_min": 240, "cpus_per_task": 8, "gpus_per_node": gpus, "mem_gb": 32}
    array = {"slurm_signal_delay_s": 120, "slurm_array_parallelism": at_once}
    executor.update_parameters(name="diffvit-study", **machine, **array)
    return executor.map_array(Job(), [list(command) for command in commands])
