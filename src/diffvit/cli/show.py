"""Printing: plain lines, tables, and JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from diffvit.files import finite

NONE = "-"


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
    # Off a terminal rich assumes 80 columns; a log or a file has room.
    Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False).print(grid)


def percent(value: float | None) -> str:
    """A fraction as percent."""
    return NONE if value is None else f"{value:.2%}"


def as_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line; what is not finite becomes null."""
    line(json.dumps(finite(values), allow_nan=False, default=str))
