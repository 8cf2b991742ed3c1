"""Rows in CSV files: numbers keep every digit, and come back as what they were."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffvit.errors import InputError
from diffvit.training.files import disk_faults, replace

Row = dict[str, Any]
# Read back as they stand: "3.11" is a version and "123456789012" a hash, not numbers.
_TEXT_COLUMNS = {
    *("run", "config_hash", "attention", "data", "device", "precision", "hardware", "diffvit", "python", "torch"),
    *("commit", "fingerprint", "source", "data_note", "test_fingerprint", "correct"),
}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV with every column that any of them has; None is an empty cell, numbers keep every digit."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(name)) for name in columns] for row in rows])
    return buffer.getvalue().encode()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A file of :func:`to_csv`."""
    with disk_faults(path):
        replace(path, to_csv(rows))


def read_csv(path: Path) -> list[Row]:
    """Rows of :func:`write_csv`, values typed again.

    Raises:
        InputError: unreadable, or a line that does not have the header's columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), f"cannot be read as CSV ({error.__class__.__name__})") from None
    header = lines[0] if lines else []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise InputError(str(path), f"line {number} has {len(line)} cells (vs {len(header)} columns)")
    return [{name: _value(name, cell) for name, cell in zip(header, line, strict=True)} for line in lines[1:]]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _value(column: str, cell: str) -> Any:
    if cell == "":
        return None
    if column in _TEXT_COLUMNS:
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell
