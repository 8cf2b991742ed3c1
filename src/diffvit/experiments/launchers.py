"""Who starts a study's workers: this machine, or Slurm through submitit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffvit.errors import ConfigError, EnvironmentFault

_RESTARTS = 20  # of a worker that was killed; each takes up what it was at
_LOOK = 0.2  # seconds
_SIGNALLED = 128  # and the signal's number, as a shell has it


def worker_command(arguments: Sequence[str]) -> list[str]:
    """One worker, as a process of its own."""
    return [sys.executable, "-m", "diffvit.cli.main", "study", "work", *arguments]


@dataclass
class LocalWorkers:
    """Workers as processes of this machine, each started again when it is killed.

    Args:
        command: of one worker.
        count: how many.
        logs: where their output goes, a file each.
    """

    command: Sequence[str]
    count: int
    logs: Path

    def run(self, look: Callable[[], object], *, every: float = 1.0) -> list[int]:
        """Start them and wait for all; their exit codes.

        SIGINT and SIGTERM are passed on: workers save their state and give their trials back.

        Args:
            look: called now and then while they run.
            every: seconds between.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        stopped: list[int] = []
        former = {each: signal.signal(each, lambda number, _: stopped.append(number)) for each in _STOPS}
        try:
            return self._run(look, every, stopped)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _run(self, look: Callable[[], object], every: float, stopped: list[int]) -> list[int]:
        workers = [self._start(place) for place in range(self.count)]
        restarts, last, told, running = 0, 0.0, False, True
        while running:
            time.sleep(_LOOK)
            if stopped and not told:
                told = True
                for worker in workers:
                    worker.terminate()
            if time.monotonic() - last >= every:
                last = time.monotonic()
                look()
            running = False
            for place, worker in enumerate(workers):
                code = worker.poll()
                if code is not None and code < 0 and not stopped and restarts < _RESTARTS:
                    restarts += 1
                    workers[place], code = self._start(place), None
                running = running or code is None
        look()
        ends = [stopped[0] + _SIGNALLED if stopped else worker.returncode for worker in workers]
        return [end if end >= 0 else _SIGNALLED - end for end in ends]

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        with (self.logs / f"worker-{place + 1}.log").open("ab") as log:
            # A group of its own: Ctrl-C on the terminal reaches this process alone, which passes it on once.
            return subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0)


_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class SlurmOptions:
    """What a Slurm job asks for; see submitit's ``AutoExecutor.update_parameters``.

    Args:
        minutes: of wall time of a job; a job that is not done by then is begun again where it stopped.
        partition: of the cluster.
        gpus: per job.
        cpus: per job.
        memory_gb: per job.
    """

    minutes: int = 240
    partition: str | None = None
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 32


class Worker:
    """What a job runs: a worker as a process. submitit pickles it, and starts it again after a time-out."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it; its exit code."""
        self._process = subprocess.Popen(self.command)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """A job that is preempted or out of time is queued again; the worker saves its state first."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return submitit.helpers.DelayedSubmission(Worker(self.command))


def slurm_executor(folder: Path, options: SlurmOptions, *, cluster: str = "slurm") -> Any:
    """Submitit's executor with these options.

    Args:
        folder: for its logs and scripts, seen by all machines.
        options: what a job asks for.
        cluster: ``slurm``, or ``local``, which is submitit's own stand-in for one.

    Raises:
        EnvironmentFault: submitit is missing, or there is no Slurm.
        ConfigError: an impossible option.
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
    where = {"slurm_partition": options.partition} if options.partition else {}
    try:
        executor.update_parameters(
            name="diffvit-study",
            timeout_min=options.minutes,
            cpus_per_task=options.cpus,
            gpus_per_node=options.gpus,
            mem_gb=options.memory_gb,
            slurm_signal_delay_s=120,
            **where,
        )
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError("--launcher slurm", " ".join(str(error).split())) from None
    return executor


def submit(executor: Any, command: Sequence[str], count: int) -> list[Any]:
    """So many workers as jobs; submitit's jobs."""
    return [executor.submit(Worker(command)) for _ in range(count)]
