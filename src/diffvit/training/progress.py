"""What a training shows while it runs: a live display on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars


class Progress(Protocol):
    """Where the loop reports. ``step`` comes at most ten times a second."""

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """Training begins (or goes on)."""
        ...

    def step(self, values: Mapping[str, Any]) -> None:
        """``step`` (done in the run), ``epoch`` (1-based), ``loss`` and ``accuracy`` (of the epoch so far),
        ``images_per_second``.
        """
        ...

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; ``row`` is its row of metrics.jsonl."""
        ...

    def message(self, text: str) -> None:
        """One line for the user."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def make_progress(quiet: bool = False) -> Progress:
    """A live display where standard output is a terminal, else plain lines; nothing when quiet."""
    if quiet:
        return QuietProgress()
    return RichProgress() if sys.stdout.isatty() else PlainProgress()


class QuietProgress:
    """Shows nothing."""

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """See :class:`Progress`."""

    def step(self, values: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""

    def message(self, text: str) -> None:
        """See :class:`Progress`."""

    def close(self) -> None:
        """See :class:`Progress`."""


class PlainProgress:
    """Lines: one per epoch, and one every ``interval`` seconds within an epoch."""

    def __init__(self, stream: IO[str] | None = None, interval: float = 30.0) -> None:
        self._stream, self._interval = stream, interval
        self._total, self._epochs, self._last = 0, 0, time.monotonic()

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """See :class:`Progress`."""
        self._total, self._epochs, self._last = total_steps, epochs, time.monotonic()
        self.message(title)

    def step(self, values: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        if time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self.message(
                f"epoch {values['epoch']}/{self._epochs} step {values['step']}/{self._total} {_figures(values)}"
            )

    def epoch(self, row: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        self._last = time.monotonic()
        self.message(epoch_line(row, self._epochs))

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        """See :class:`Progress`."""


class RichProgress:
    """A bar with loss, accuracy, images/s and time left; finished epochs scroll above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bars: RichBars | None = None
        self._epochs = 0

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """See :class:`Progress`."""
        self._epochs = epochs
        self.message(title)
        self._bars = RichBars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TextColumn("left"), TimeRemainingColumn(), console=self._console, refresh_per_second=10, transient=True,
        )  # fmt: skip
        self._task = self._bars.add_task("steps", total=total_steps, figures="")
        self._bars.start()

    def step(self, values: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        if self._bars:
            description = f"epoch {values['epoch']}/{self._epochs}"
            self._bars.update(self._task, completed=values["step"], description=description, figures=_figures(values))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        if self._bars:
            self._bars.update(self._task, completed=row["step"])
        self.message(epoch_line(row, self._epochs))

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """See :class:`Progress`."""
        if self._bars:
            self._bars.stop()
            self._bars = None


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """One line about a finished epoch."""
    validation = ""
    if row["val_accuracy"] is not None:
        validation = f" | validation loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.1%}"
    figures = {
        "loss": row["train_loss"],
        "accuracy": row["train_accuracy"],
        "images_per_second": row["images_per_second"],
    }
    return f"epoch {row['epoch']}/{epochs} {_figures(figures)} | {row['seconds']:.0f} s{validation}"


def _figures(values: Mapping[str, Any]) -> str:
    accuracy = "" if values["accuracy"] is None else f" accuracy {values['accuracy']:.1%}"
    return f"loss {values['loss']:.3f}{accuracy} {values['images_per_second']:.0f} images/s"
