"""A running training and its user: what it shows (a live display, plain lines or nothing), and the signal to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars


class Progress:
    """Where the loop reports: a bar on a terminal, lines elsewhere; nothing without a console.

    The bar has loss, accuracy, images/s and time left, with the finished epochs above it. The lines within an epoch are
    ``interval`` seconds apart.
    """

    # Of the class, as a subclass may leave out the constructor.
    _console: Console | None = None
    _bars: RichBars | None = None
    _interval, _last, _total, _epochs = 30.0, 0.0, 0, 0

    def __init__(self, console: Console | None = None, interval: float = 30.0) -> None:
        self._console, self._interval, self._last = console, interval, time.monotonic()

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """Training begins (or goes on)."""
        self._total, self._epochs, self._last = total_steps, epochs, time.monotonic()
        if not self._console:
            return
        self.message(title)
        if self._console.is_terminal:
            self._bars = RichBars(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"), TextColumn("left"), TimeRemainingColumn(),
                console=self._console, refresh_per_second=10, transient=True,
            )  # fmt: skip
            self._task = self._bars.add_task("steps", total=total_steps, figures="")
            self._bars.start()

    def step(self, values: Mapping[str, Any]) -> None:
        """At most ten times a second: ``step``, 1-based ``epoch``, its ``loss`` and ``accuracy``, images_per_second."""
        epoch, step, figures = f"epoch {values['epoch']}/{self._epochs}", values["step"], _figures(values)
        if self._bars:
            self._bars.update(self._task, completed=step, description=epoch, figures=figures)
        elif self._console and time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self.message(f"{epoch} step {step}/{self._total} {figures}")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; ``row`` is its row of metrics.jsonl."""
        if not self._console:
            return
        self._last = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=row["step"])
        figures = f"{_figures(_of_training(row))} | {row['seconds']:.0f} s{_validation(row)}"
        self.message(f"epoch {row['epoch']}/{self._epochs} {figures}")

    def message(self, text: str) -> None:
        """One line for the user."""
        if self._console:
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing more comes."""
        if self._bars:
            self._bars.stop()
            self._bars = None


class NotebookProgress(Progress):
    """One bar in a Jupyter notebook, updated in place; the run's first and last lines are printed around it."""

    _bar: Any = None
    _validated = ""  # figures of the last validation

    def start(self, total_steps: int, epochs: int, title: str) -> None:
        """Training begins (or goes on)."""
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self._total, self._epochs = total_steps, epochs
        self.message(title)
        self._bar = display(self._shown(0, ""), raw=True, display_id=True)

    def step(self, values: Mapping[str, Any]) -> None:
        """Show the present epoch's figures."""
        if self._bar is not None:
            figures = f"epoch {values['epoch']}/{self._epochs} {_figures(values)}{self._validated}"
            self._bar.update(self._shown(values["step"], figures), raw=True)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show an epoch's figures; those of the validation stay until the next."""
        self._validated = _validation(row) or self._validated
        self.step(_of_training(row))

    def message(self, text: str) -> None:
        """One line for the user."""
        sys.stdout.write(f"{text}\n")

    def _shown(self, step: int, figures: str) -> dict[str, str]:
        """The bar with the figures, in one line of HTML, and as text."""
        text = f"{step}/{self._total} {figures}".strip()
        bar = f"<progress value={step} max={self._total}></progress>"
        return {"text/html": f"<div style='white-space: nowrap'>{bar} {text}</div>", "text/plain": text}


def usual_progress() -> Progress:
    """A bar in a Jupyter notebook, nothing elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return NotebookProgress() if hasattr(shell, "kernel") else Progress()


def make_progress(quiet: bool = False) -> Progress:
    """Shows training on standard output; nothing when quiet."""
    return Progress(None if quiet else Console())


def _figures(values: Mapping[str, Any]) -> str:
    accuracy = "" if values["accuracy"] is None else f" accuracy {values['accuracy']:.1%}"
    return f"loss {values['loss']:.3f}{accuracy} {values['images_per_second']:.0f} images/s"


def _of_training(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "loss": row["train_loss"], "accuracy": row["train_accuracy"]}


def _validation(row: Mapping[str, Any]) -> str:
    if row["val_accuracy"] is None:
        return ""
    return f" | validation loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.1%}"


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets :attr:`signal`, which is 0 until then.

    A launcher that got Ctrl-C sends its processes SIGTERM on top of the terminal's SIGINT, so SIGTERM after a first
    signal is ignored; a second SIGINT raises KeyboardInterrupt. Outside the main thread, where Python allows no
    handlers, nothing is caught.

    Within another one, a request takes over what the outer has seen, and tells it what it sees.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            self._outer = outer if isinstance(outer, StopRequest) else None
            self._former = {number: signal.signal(number, self._remember) for number in _SIGNALS}
            if self._outer:
                self.signal = self._outer.signal
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former, self._outer = {}, None

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (the signature is signal's)
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._outer:
            self._outer.signal = self._outer.signal or number
