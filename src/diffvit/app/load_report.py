"""The report of the page under load, made from its two files: ``python -m diffvit.app.load_report [--check]``."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffvit.app.explorer import MAPS_BUDGET
from diffvit.app.images import UPLOAD_BUDGET
from diffvit.errors import InputError
from diffvit.reporting import markdown
from diffvit.reporting.csv_files import Row, write_csv
from diffvit.reporting.generated import brought_up_to_date, finish
from diffvit.reporting.readme import stamp_of
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, to_png
from diffvit.reporting.tables import NONE, Table
from diffvit.training.files import disk_faults, replace, to_json

if TYPE_CHECKING:
    from diffvit.app.web.load import Tally

FOLDER = Path("reports/app-load")
SUMMARY, SECONDS, REPORT, PLOT = "summary.json", "seconds.csv", "report.md", "load.png"
_MIB = 2**20
_WORDS = {"page": "opening the page", "dials": "moving a dial", "pick": "picking a test image"}
_WORDS |= {"upload": "bringing a picture", "figure": "fetching a figure"}


def summary(tally: Tally, clients: int, seconds: float, known: Mapping[str, Any]) -> dict[str, Any]:
    """What came of the load in a few figures; seconds, and bytes of memory.

    Args:
        tally: every answer.
        clients: visitors at a time.
        seconds: how long they asked.
        known: of :func:`diffvit.training.environment.describe`.
    """
    kinds = {}
    for kind in _WORDS:
        mine = [each for each in tally.answers if each[2] == kind]
        given = [each[1] for each in mine if each[3] == "answered"]
        outcomes = {name: sum(each[3] == name for each in mine) for name in ("answered", "busy", "lost")}
        kinds[kind] = {"asked": len(mine), **outcomes, **_quantiles(given)}
    probes = [taken for _, taken in tally.probes if taken is not None]
    return {
        **{"clients": clients, "seconds": seconds, "kinds": kinds},
        "probes": {"asked": len(tally.probes), "answered": len(probes), **_quantiles(probes)},
        "memory": {"first": tally.memory[0][1], "most": max(each for _, each in tally.memory)}
        | {"last": tally.memory[-1][1]},
        "kept": MAPS_BUDGET + UPLOAD_BUDGET,
        **{key: known[key] for key in ("hardware", "cores", "torch", "python", "diffvit", "commit")},
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"median": values[0] if values else None, "p95": None, "worst": max(values, default=None)}
    return {
        "median": round(statistics.median(values), 4),
        "p95": round(statistics.quantiles(values, n=20)[-1], 4),
        "worst": round(max(values), 4),
    }


def by_second(tally: Tally) -> list[Row]:
    """A row for each second: answers given, busy and lost, their median time, and the server's memory."""
    rows = []
    for second in range(int(max(start for start, *_ in tally.answers)) + 1):
        mine = [each for each in tally.answers if int(each[0]) == second]
        memory = [each for at, each in tally.memory if at <= second + 1]
        given = [each[1] for each in mine if each[3] == "answered"]
        counts = {name: sum(each[3] == name for each in mine) for name in ("answered", "busy", "lost")}
        seconds = round(statistics.median(given), 4) if given else None
        rows.append({"second": second, **counts, "median_seconds": seconds, "memory": memory[-1] if memory else None})
    return rows


def write(folder: Path, found: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the two files, and the report and the plot from them.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / SUMMARY, to_json(dict(found)))
    write_csv(folder / SECONDS, rows)
    update(folder)
    with disk_faults(folder):
        replace(folder / PLOT, plot(rows, stamp=_stamp(folder)))


def update(folder: Path = FOLDER, *, check: bool = False) -> list[str]:
    """Bring the report up to date with its files, or only check it and the plot.

    Returns:
        What was out of date; empty where nothing was measured yet.

    Raises:
        InputError: a file is damaged.
        EnvironmentFault: the report cannot be written.
    """
    if not (folder / SUMMARY).is_file():
        return []
    try:
        text = report(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(folder / SUMMARY), f"cannot be read ({error.__class__.__name__})") from None
    stale = brought_up_to_date({folder / REPORT: (text.encode(), f"is not made from {SUMMARY}")}, check=check)
    if stamp_of(folder / PLOT) != _stamp(folder):
        stale.append(f"{folder / PLOT}: was not made from the files beside it; measure again")
    return stale


def _stamp(folder: Path) -> str:
    return hashlib.sha256((folder / SUMMARY).read_bytes() + (folder / SECONDS).read_bytes()).hexdigest()


def report(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    kinds: Mapping[str, Mapping[str, Any]] = found["kinds"]
    totals = {name: sum(each[name] for each in kinds.values()) for name in ("asked", "answered", "busy", "lost")}
    memory, probes = found["memory"], found["probes"]
    rows = [[_WORDS[kind], *_cells(each)] for kind, each in kinds.items()]
    change = 100 * (memory["last"] / memory["first"] - 1)
    where = f"{found['hardware']}, {found['cores']} cores, torch {found['torch']}, python {found['python']}"
    columns = ["Question", "Asked", "Answered", "Busy", "Lost", "Median", "95% within", "Worst"]
    return (
        "\n\n".join(
            [
                "# The explorer under load",
                f"{found['clients']} visitors at a time for {found['seconds']:g} s, each with pauses of 0.2 to 1.2 s "
                f"between questions; visitors and server on one machine. {totals['asked']:,} questions: "
                f"{totals['answered']:,} answered, {totals['busy']:,} told that the page is busy, "
                f"**{totals['lost']:,} lost**.",
                markdown.table(Table(columns, rows)),
                f"A small file, asked for each second beside it: {probes['answered']} of {probes['asked']} answered, "
                f"median {_time(probes['median'])}, worst {_time(probes['worst'])}.",
                f"Memory of the server: {_mib(memory['first'])} at the begin, at most {_mib(memory['most'])}, "
                f"{_mib(memory['last'])} after it ({change:+.1f}%). It keeps up to {_mib(found['kept'])} of "
                "pictures and maps on purpose.",
                f"![Answers, their time, and memory, second by second]({PLOT})",
                f"{where}, diffvit {found['diffvit']}. Generated by `python -m diffvit.app.web.load`.",
            ]
        )
        + "\n"
    )


def _cells(kind: Mapping[str, Any]) -> list[str]:
    counts = [f"{kind[name]:,}" for name in ("asked", "answered", "busy", "lost")]
    return counts + [_time(kind[name]) for name in ("median", "p95", "worst")]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.app.load_report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    given = parser.parse_args(arguments)
    return finish(lambda: update(check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
