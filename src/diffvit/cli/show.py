"""Printing: plain lines, tables, and JSON for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table

from diffvit.errors import InputError

NONE = "-"
_WIDE = 140  # columns; off a terminal rich assumes 80, and a log or a file has room
_LEAST = 24  # columns that the first column of a table may be shortened to


def line(text: str = "") -> None:
    """One line, never wrapped: paths and commands stay whole."""
    print(text, flush=True)


def warn(lines: Iterable[str]) -> None:
    """Lines on standard error."""
    for text in lines:
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Lines:
    """A line on standard error at most every two seconds, while something is computed."""

    def __init__(self, what: str) -> None:
        self.what, self.start, self.last = what, time.monotonic(), 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell it."""
        now = time.monotonic()
        if done < total and now - self.last >= 2 and now - self.start >= 2:
            self.last = now
            print(f"{self.what}: {done:,} of {total:,} ({now - self.start:.0f} s)", file=sys.stderr, flush=True)


def pairs(values: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        line(f"{name:<{width}}  {value}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A table; the first column is text, the others are numbers."""
    grid = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        grid.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False).print(grid)


def shortened(text: str, width: int) -> str:
    """Text of at most so many columns: a long one loses its middle; what cannot be printed becomes a ``?``."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    if cell_len(text) <= width:
        return text
    left, right = chop_cells(text, width // 2), chop_cells(text[::-1], (width - 1) // 2)
    return f"{left[0]}…{right[0][::-1]}"


def one_line_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table no line of which is ever wrapped: the first column is shortened, and the last ones may be left out."""
    room = (Console().width if sys.stdout.isatty() else _WIDE) - 4  # the frame of the first column
    widths = [max(map(cell_len, each)) for each in zip(columns, *rows, strict=True)]
    first = min(widths[0], _LEAST)
    count = 1
    while count < len(columns) and (count == 1 or first + sum(widths[1 : count + 1]) + 3 * count <= room):
        count += 1
    first = max(1, min(widths[0], room - sum(widths[1:count]) - 3 * (count - 1)))
    table(columns[:count], [[shortened(row[0], first), *row[1:count]] for row in rows])
    if count < len(columns):
        line(f"{count - 1} of {len(columns) - 1} classes fit into the width; --out and --json have all")


def refuse_bad(verb: str, bad: Sequence[InputError], read: int, kept: str) -> None:
    """End a command some of whose images could not be read: a line for each on standard error, then an InputError."""
    if len(bad) == 1 and not read:
        raise bad[0]
    if bad:
        print(*(f"error: {error.line}" for error in bad), sep="\n", file=sys.stderr)
        why = f"{len(bad):,} of {read + len(bad):,} images cannot be read"
        raise InputError(verb, why, kept if read else "")


def percent(value: float | None) -> str:
    """A fraction as percent."""
    return NONE if value is None else f"{value:.2%}"
