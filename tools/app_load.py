"""The report of the explorer under load: ``reports/app-load``, from what ``python -m benchmarks.app_load`` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffvit.errors import InputError
from diffvit.files import Row, read_csv
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from diffvit.reporting.tables import NONE, Table
from tools.pages import Content, Picture, render

FOLDER = Path("reports/app-load")
SUMMARY, SECONDS = "summary.json", "seconds.csv"
_MIB = 2**20
QUESTIONS = {
    **{"page": "opening the page", "dials": "moving a dial", "pick": "picking a test image"},
    **{"upload": "bringing a picture", "figure": "fetching a figure"},
}


def documents(root: Path) -> dict[Path, Content]:
    """Report and plot; none where nothing was measured yet.

    Raises:
        InputError: a file is damaged.
    """
    return {FOLDER / name: content for name, content in of_folder(root / FOLDER).items()}


def of_folder(folder: Path) -> dict[str, Content]:
    """The files of one folder, by name.

    Raises:
        InputError: a file is damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        text = report(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(str(path), f"cannot be read ({error.__class__.__name__})") from None
    rows = read_csv(folder / SECONDS)
    stamp = hashlib.sha256(path.read_bytes() + (folder / SECONDS).read_bytes()).hexdigest()
    return {"report.md": text, "load.png": Picture(stamp, partial(plot, rows, stamp=stamp))}


def report(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    kinds: Mapping[str, Mapping[str, Any]] = found["kinds"]
    counts = ("asked", "answered", "busy", "lost")
    totals = {name: f"{sum(each[name] for each in kinds.values()):,}" for name in counts}
    columns = ["Question", "Asked", "Answered", "Busy", "Lost", "Median", "95% within", "Worst"]
    rows = [
        [
            QUESTIONS[kind],
            *(f"{each[name]:,}" for name in counts),
            *map(_time, (each["median"], each["p95"], each["worst"])),
        ]
        for kind, each in kinds.items()
    ]
    return render("app-load.md", **found, totals=totals, questions=Table(columns, rows), time=_time, mib=_mib)


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def plot(rows: Sequence[Row], *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Answers a second, their median time, and the server's memory, as PNG."""
    made = figure(theme, 12.6, 3.6)
    counts, times, memory = made.subplots(1, 3)
    seconds = [row["second"] for row in rows]
    below = [0.0] * len(rows)
    for place, name in enumerate(("answered", "busy", "lost")):
        values = [float(row[name]) for row in rows]
        counts.bar(seconds, values, bottom=below, width=1.0, color=colour(theme, (2, 4, 1)[place]), label=name)
        below = [one + two for one, two in zip(below, values, strict=True)]
    dress(counts, theme, title="Questions, by when they were asked", x="second", y="questions")
    counts.legend(frameon=False, fontsize=10, labelcolor=theme.ink, ncols=3, loc="upper right")
    counts.set_ylim(0, 1.25 * max(below))
    known = [(row["second"], 1000 * row["median_seconds"]) for row in rows if row["median_seconds"] is not None]
    times.plot(*zip(*known, strict=True), color=colour(theme, 0), lw=2)
    dress(times, theme, title="Time to an answer, median", x="second", y="milliseconds")
    times.set_ylim(bottom=0)
    used = [(row["second"], row["memory"] / _MIB) for row in rows if row["memory"] is not None]
    memory.plot(*zip(*used, strict=True), color=colour(theme, 3), lw=2)
    dress(memory, theme, title="Memory of the server", x="second", y="MiB")
    memory.set_ylim(0, 1.15 * max(each for _, each in used))
    return to_png(made, stamp)
