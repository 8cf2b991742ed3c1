"""What a study's run shows: the plan and the time it may take, a live table of what runs, and the state at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from diffvit.errors import InputError
from diffvit.experiments.runner import TEST_ACCURACY, State
from diffvit.experiments.study import TIERS, Cell, Study, TierName, training_flops
from diffvit.reporting.rows import RunRecord, read
from diffvit.reporting.tables import NONE, duration, percent
from diffvit.training.run_dir import RunDir

_EVERY = 60.0  # seconds between lines where there is no terminal
_OVERHEAD = 1.0  # seconds of a run that are no training: to begin, to score the test set
_PASSES = 3  # forward, and backward to inputs and weights
_RECENT = 5  # finished cells in the live table


def measured(reports: Path) -> list[RunRecord]:
    """The committed rows of all reports.

    Raises:
        InputError: a damaged rows.csv.
    """
    return [record for file in sorted(reports.glob("*/rows.csv")) for record in read(file.parent)]


def rate_of(records: Iterable[RunRecord], device: str, cores: int = 2) -> float | None:
    """Floating-point operations a second that trainings on such a device reached, the median; None without a row.

    Args:
        records: rows, of any devices.
        device: ``cpu`` or ``cuda``.
        cores: of a CPU, all of them busy; a row tells the rate of as many as it had threads.
    """
    rows = [record.row for record in records if record.row["device"] == device and record.row["images_per_second"]]
    on_cpu = device == "cpu"
    rates = sorted(
        _PASSES * row["flops_per_image"] * row["images_per_second"] / ((row["threads"] or 1) if on_cpu else 1)
        for row in rows
    )
    return rates[len(rates) // 2] * (cores if on_cpu else 1) if rates else None


def known_rate(cells: Iterable[Cell], rows: Sequence[RunRecord], device: str, cores: int = 2) -> float | None:
    """:func:`rate_of` the rows of these cells; of all rows where none of theirs is of such a device."""
    keys = {cell.key for cell in cells}
    return rate_of([row for row in rows if row.key[:2] in keys], device, cores) or rate_of(rows, device, cores)


def seconds_of(cells: Iterable[Cell], rate: float | None) -> float | None:
    """How long these take on a machine of this rate, however many workers share it; None without a rate."""
    return None if rate is None else sum(training_flops(cell.config) / rate + _OVERHEAD for cell in cells)


@dataclass
class StudyProgress:
    """Shows how a study goes on.

    Args:
        study: which.
        tier: how much.
        cells: those to run; none of a search, whose trials are not known before.
        folders: the run folder of each by name.
        committed: how many other cells have committed rows.
        state: what has become of the cells, or of the search's trials.
        reports: where committed rows lie.
        tell: shows a line.
        quiet: show nothing.
    """

    study: Study
    tier: TierName
    cells: Sequence[Cell]
    folders: Mapping[str, Path]
    committed: int
    state: Callable[[], State]
    reports: Path
    tell: Callable[[str], object]
    quiet: bool = False
    _live: Live | None = None
    _start: float = field(default_factory=time.monotonic)
    _last_line: float = float("-inf")
    _told: set[str] = field(default_factory=set)
    _before: set[str] = field(default_factory=set)
    _rate: float | None = None

    def begin(self, device: str) -> None:
        """Say what is going to be done, and how long it may take."""
        state = self.state()
        self._before = set(state.done)
        to_do = [*state.waiting, *state.running]
        kind = "cuda" if device == "cuda" else "cpu"
        self._rate = known_rate(self.cells, measured(self.reports), kind, os.cpu_count() or 1)
        seconds = seconds_of((cell for cell in self.cells if cell.name in to_do), self._rate)
        estimate = ": time not measured" if seconds is None else f": about {duration(seconds)}"
        count = self.committed + len(state.done) + len(state.failed) + len(to_do)
        self._say(f"{self.study.name}, tier {self.tier}: {TIERS[self.tier].words}")
        self._say(
            f"{count} {'trials' if self.study.search else 'cells'}, {self.committed} of them in "
            f"{self.reports / self.study.name}, {len(state.done)} done, {len(to_do)} to do"
            f"{estimate if to_do and self.cells else ''}"
        )
        if not self.quiet and sys.stdout.isatty():
            self._live = Live(console=Console(), refresh_per_second=2)
            self._live.start()

    def show(self) -> None:
        """Show the state."""
        state = self.state()
        if self._live:
            self._live.update(self._table(state))
            return
        for cell in [name for name in state.done if name not in self._told | self._before]:
            self._told.add(cell)
            self._say(f"{cell}: {self._shown(state.done[cell])}")
        if time.monotonic() - self._last_line >= _EVERY:
            self._last_line = time.monotonic()
            self._say(self._summary(state))

    def end(self) -> State:
        """Say how it stands; the state."""
        state = self.state()
        if self._live:
            self._live.update(self._table(state))
            self.close()
        self._say(self._summary(state))
        for cell, why in state.failed.items():
            self._say(f"{cell}: given up after several tries: {why}")
        return state

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()

    def _say(self, line: str) -> None:
        if not self.quiet:
            self.tell(line)

    def _shown(self, value: float) -> str:
        return percent(value) if self.study.score == TEST_ACCURACY else f"{value:.4g}"

    def _summary(self, state: State) -> str:
        count = len(state.done) + len(state.running) + len(state.failed) + len(state.waiting)
        text = f"{len(state.done)} of {count} done, {len(state.running)} running"
        text += f", {len(state.failed)} given up" if state.failed else ""
        left = self._seconds_left(state)
        return f"{text}; about {duration(left)} left" if left else text

    def _seconds_left(self, state: State) -> float | None:
        """At the rate of what was done since the beginning, else of committed rows; None without either."""
        cells = {cell.name: cell for cell in self.cells}
        open_, new = [*state.waiting, *state.running], state.done.keys() - self._before
        seconds = time.monotonic() - self._start
        if not cells:  # a search does not know what it will try
            return len(open_) * seconds / len(new) if new else None
        ahead = sum(
            training_flops(cells[name].config) * (1 - len(self._epochs(name)) / cells[name].config.epochs)
            for name in open_
        )
        behind = sum(training_flops(cells[name].config) for name in new)
        rate = behind / seconds if behind else self._rate
        return ahead / rate if rate else None

    def _epochs(self, name: str) -> list[dict[str, Any]]:
        try:
            return RunDir(self.folders[name]).metrics
        except InputError:
            return []

    def _table(self, state: State) -> Table:
        grid = Table("cell", "state", "epoch", "training accuracy", title=self._summary(state), title_justify="left")
        epochs = {cell.name: cell.config.epochs for cell in self.cells}
        for name, process in state.running.items():
            rows = self._epochs(name) if name in epochs else []
            last = percent(rows[-1]["train_accuracy"]) if rows else NONE
            grid.add_row(name, process, f"{len(rows)} of {epochs[name]}" if name in epochs else "", last)
        for name, value in list(state.done.items())[-_RECENT:]:
            grid.add_row(name, f"done: {self.study.score} {self._shown(value)}", "", "")
        return grid
