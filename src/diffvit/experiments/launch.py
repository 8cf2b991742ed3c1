"""Start a study's workers, as processes here or as a Slurm job array through submitit; and show how it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from diffvit.errors import EnvironmentFault
from diffvit.experiments.runner import TEST_ACCURACY, State
from diffvit.experiments.study import PASSES, TIERS, Cell, Study, TierName, training_flops
from diffvit.reporting.rows import RunRecord, read
from diffvit.reporting.tables import duration, percent

_EVERY = 60.0  # seconds between lines where there is no terminal
_OVERHEAD = 1.0  # seconds of a run that are no training: to begin, to score the test set
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


def measured(reports: Path) -> list[RunRecord]:
    """The committed rows of all reports.

    Raises:
        InputError: a damaged rows.csv.
    """
    return [record for file in sorted(reports.glob("*/rows.csv")) for record in read(file.parent)]


def rate_of(records: Iterable[RunRecord], device: str, cores: int = 2) -> float | None:
    """Floating-point operations a second that trainings on ``cpu`` or ``cuda`` reached, the median; None without a row.

    All ``cores`` of a CPU are busy; a row tells the rate of as many as it had threads.
    """
    rows = [record.row for record in records if record.row["device"] == device and record.row["images_per_second"]]
    on_cpu = device == "cpu"
    rates = sorted(
        PASSES * row["flops_per_image"] * row["images_per_second"] / ((row["threads"] or 1) if on_cpu else 1)
        for row in rows
    )
    return rates[len(rates) // 2] * (cores if on_cpu else 1) if rates else None


def seconds_of(cells: Iterable[Cell], rate: float | None) -> float | None:
    """How long these take on a machine of this rate, however many workers share it; None without a rate."""
    return None if rate is None else sum(training_flops(cell.config) / rate + _OVERHEAD for cell in cells)


@dataclass
class StudyProgress:
    """Displays the progress of a study: a line for each finished cell, and on a terminal a status line below them."""

    study: Study
    tier: TierName
    cells: Sequence[Cell]  # those to run; none of a search, whose trials are not known before
    committed: int  # how many other cells have committed rows
    state: Callable[[], State]  # what has become of the cells, or of the search's trials
    reports: Path  # where committed rows lie
    quiet: bool = False  # show nothing
    _before: set[str] = field(default_factory=set)  # cells that were done already
    _told: set[str] = field(default_factory=set)
    _rate: float | None = None
    _start: float = field(default_factory=time.monotonic)
    _last_line: float = float("-inf")

    def __post_init__(self) -> None:
        self._console = Console(quiet=self.quiet, highlight=False, markup=False, emoji=False)
        self._below = self._console.status("")

    def begin(self, device: str) -> State:
        """Say what is going to be done, and how long it may take; returns what has become of the cells so far."""
        state = self.state()
        self._before = set(state.done)
        to_do = [*state.waiting, *state.running]
        kind = "cuda" if device == "cuda" else "cpu"
        self._rate = rate_of(measured(self.reports), kind, os.cpu_count() or 1)
        seconds = seconds_of((cell for cell in self.cells if cell.name in to_do), self._rate)
        estimate = ": time not measured" if seconds is None else f": about {duration(seconds)}"
        count = self.committed + len(state.done) + len(state.failed) + len(to_do)
        self._say(f"{self.study.name}, tier {self.tier}: {TIERS[self.tier].words}")
        self._say(
            f"{count} {'trials' if self.study.search else 'cells'}, {self.committed} of them in "
            f"{self.reports / self.study.name}, {len(state.done)} done, {len(to_do)} to do"
            f"{estimate if to_do and self.cells else ''}"
        )
        if self._console.is_terminal:
            self._below.start()
        return state

    def show(self) -> None:
        """Show the state."""
        state = self.state()
        for cell in [name for name in state.done if name not in self._told | self._before]:
            self._told.add(cell)
            value = state.done[cell]
            self._say(f"{cell}: {percent(value) if self.study.score == TEST_ACCURACY else f'{value:.4g}'}")
        if self._console.is_terminal:
            self._below.update(f"{self._summary(state)}: {', '.join(state.running)}")
        elif time.monotonic() - self._last_line >= _EVERY:
            self._last_line = time.monotonic()
            self._say(self._summary(state))

    def end(self) -> State:
        """Print the final state and return it."""
        self.close()
        state = self.state()
        self._say(self._summary(state))
        for cell, why in state.failed.items():
            self._say(f"{cell}: skipped after repeated errors: {why}")
        return state

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._below.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _summary(self, state: State) -> str:
        count = len(state.done) + len(state.running) + len(state.failed) + len(state.waiting)
        text = f"{len(state.done)} of {count} done, {len(state.running)} running"
        text += f", {len(state.failed)} skipped" if state.failed else ""
        left = self._seconds_left(state)
        return f"{text}; about {duration(left)} left" if left else text

    def _seconds_left(self, state: State) -> float | None:
        """At the rate of what was done since the beginning, else of committed rows; None without either."""
        costs = {cell.name: training_flops(cell.config) for cell in self.cells}
        open_, new = [*state.waiting, *state.running], state.done.keys() - self._before
        seconds = time.monotonic() - self._start
        # A search does not know what it will try: its trials count alike.
        ahead, behind = (sum(costs.get(name, 1.0) for name in names) for names in (open_, new))
        rate = behind / seconds if behind else self._rate
        return ahead / rate if rate and (behind or costs) else None
