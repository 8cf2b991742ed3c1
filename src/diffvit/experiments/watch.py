"""What a study's run shows: the plan and its time, a live table of what runs, and how it stood at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from diffvit.errors import InputError
from diffvit.experiments.cost import known_rate, measured, seconds_of, training_flops
from diffvit.experiments.definitions import Study
from diffvit.experiments.pool import Conditions, committed, folder_of
from diffvit.experiments.standing import Standing
from diffvit.experiments.tiers import TIERS
from diffvit.experiments.trials import Trial
from diffvit.reporting.tables import NONE, duration, percent
from diffvit.training.run_dir import RunDir

_EVERY = 60.0  # seconds between lines where there is no terminal


@dataclass
class Watch:
    """Shows how a study goes on.

    Args:
        study: which.
        tier: how much.
        trials: all of them.
        conditions: by name, what each is computed on.
        standing: how those stand whose rows are not committed.
        runs: where the run folders lie.
        reports: where committed rows lie.
        tell: shows a line.
        quiet: show nothing.
    """

    study: Study
    tier: str
    trials: Sequence[Trial]
    conditions: Mapping[str, Conditions]
    standing: Callable[[], Standing]
    runs: Path
    reports: Path
    tell: Callable[[str], object]
    quiet: bool = False
    _live: Live | None = None
    _start: float = field(default_factory=time.monotonic)
    _said: float = float("-inf")
    _told: set[str] = field(default_factory=set)
    _before: set[str] = field(default_factory=set)
    _rate: float | None = None

    def begin(self, device: str) -> None:
        """Say what is going to be done, and how long it may take."""
        known = committed(self.trials, self.conditions, self.reports)
        standing = self.standing()
        self._before = set(standing.done)
        left = [trial for trial in self.trials if trial.name not in {*known, *standing.done, *standing.failed}]
        kind = "cuda" if device == "cuda" else "cpu"
        self._rate = known_rate(self.trials, measured(self.reports), kind, os.cpu_count() or 1)
        self._say(f"{self.study.name}, tier {self.tier}: {TIERS[self.tier].words}")
        count = len(self.trials) or len(standing.done) + len(standing.failed) + len(standing.waiting)
        seconds = seconds_of(left, self._rate)
        time_left = ": time not measured" if seconds is None else f": about {duration(seconds)}"
        to_do = len(left) or len(standing.waiting) + len(standing.running)
        self._say(
            f"{count} trials, {len(known)} of them in {self.reports / self.study.name}, "
            f"{len(standing.done)} done, {to_do} to do{time_left if left else ''}"
        )
        if not self.quiet and sys.stdout.isatty():
            self._live = Live(console=Console(), refresh_per_second=2)
            self._live.start()

    def look(self) -> None:
        """Show how it stands."""
        standing = self.standing()
        if self._live:
            self._live.update(self._table(standing))
            return
        for cell in standing.done.keys() - self._told - self._before:
            self._told.add(cell)
            self._say(f"{cell}: {percent(standing.done[cell])}")
        if time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self._say(self._summary(standing))

    def end(self) -> dict[str, Any]:
        """Say how it stands; the same for machines."""
        standing = self.standing()
        if self._live:
            self._live.update(self._table(standing))
            self._live.stop()
        self._say(self._summary(standing))
        for cell, words in standing.failed.items():
            self._say(f"{cell}: given up after several tries: {words}")
        return {
            **{"study": self.study.name, "tier": self.tier, "done": len(standing.done)},
            **{"failed": standing.failed, "waiting": standing.waiting, "running": standing.running},
        }

    def _say(self, line: str) -> None:
        if not self.quiet:
            self.tell(line)

    def _summary(self, standing: Standing) -> str:
        every = [*standing.done, *standing.running, *standing.failed, *standing.waiting]
        text = f"{len(standing.done)} of {len(every)} done, {len(standing.running)} running"
        text += f", {len(standing.failed)} given up" if standing.failed else ""
        left = self._left(standing)
        return f"{text}; about {duration(left)} left" if left else text

    def _left(self, standing: Standing) -> float | None:
        """Seconds, at the rate of what was done since the beginning, else of committed rows; None without either."""
        by_name = {trial.name: trial for trial in self.trials}
        open_cells = [*standing.waiting, *standing.running]
        new = standing.done.keys() - self._before
        seconds = time.monotonic() - self._start
        if not by_name.keys() >= {*open_cells, *new}:  # a search does not know what it will try
            return len(open_cells) * seconds / len(new) if new else 0.0
        ahead = sum(training_flops(by_name[cell].config) * (1 - self._share(by_name[cell])) for cell in open_cells)
        behind = sum(training_flops(by_name[cell].config) for cell in new)
        rate = behind / seconds if behind else self._rate
        return ahead / rate if rate else None

    def _share(self, trial: Trial) -> float:
        """How much of a trial is done."""
        return len(self._metrics(trial)) / trial.config.epochs

    def _metrics(self, trial: Trial) -> list[dict[str, Any]]:
        try:
            return RunDir(folder_of(trial, self.conditions[trial.name], self.runs)).metrics
        except InputError:
            return []

    def _table(self, standing: Standing) -> Table:
        grid = Table(
            "trial", "state", "epoch", "training accuracy", title=self._summary(standing), title_justify="left"
        )
        for trial in self.trials:
            if trial.name in standing.running:
                rows = self._metrics(trial)
                last = percent(rows[-1]["train_accuracy"]) if rows else NONE
                grid.add_row(trial.name, standing.running[trial.name], f"{len(rows)} of {trial.config.epochs}", last)
        for cell, value in list(standing.done.items())[-5:]:
            grid.add_row(cell, f"done: test {percent(value)}", "", "")
        return grid
