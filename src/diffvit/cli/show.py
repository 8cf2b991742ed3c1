"""Printing: plain lines, tables, and JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table

from diffvit.files import finite

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


def percent(value: float | None) -> str:
    """A fraction as percent."""
    return NONE if value is None else f"{value:.2%}"


def as_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line; what is not finite becomes null."""
    line(json.dumps(finite(values), allow_nan=False, default=str))
