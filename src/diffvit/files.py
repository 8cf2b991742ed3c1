"""Atomic writes of files as bytes, JSON or CSV: whole or not at all, also when killed; and the cache folder."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffvit.errors import EnvironmentFault, InputError

Row = dict[str, Any]
# Read back from CSV as they stand: "3.11" is a version and "123456789012" a hash, not numbers.
_TEXT_COLUMNS = {
    *("run", "config_hash", "attention", "data", "device", "precision", "hardware", "diffvit", "python", "torch"),
    *("commit", "fingerprint", "source", "data_note", "test_fingerprint", "correct"),
}


def cache_folder() -> Path:
    """The folder of the user's cache, ``$XDG_CACHE_HOME/diffvit`` or ``~/.cache/diffvit``; it may not exist."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache"
    return base / "diffvit"


@contextlib.contextmanager
def disk_faults(what: Path | str, kept: str = "") -> Iterator[None]:
    """Turn an OSError inside the block (full disk, no permission, missing folder) into an EnvironmentFault.

    ``kept`` is its hint: what the user still has, and what to do.
    """
    try:
        yield
    except OSError as error:
        why = f"cannot be written ({(error.strerror or str(error)).lower()})"
        raise EnvironmentFault(str(what), why, kept) from error


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary file beside ``path``; what is written there is flushed and takes ``path``'s place at the end.

    When the block raises or the disk refuses, the temporary file is removed and ``path`` stays as it was. Its default
    name is a new one, so that many processes may write the same file; then the folder is made where need be.
    """
    if temporary is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, under the temporary name ``.NAME.tmp`` first, or raise OSError; its folder must be there."""
    with replacing(path, path.with_name(f".{path.name}.tmp")) as temporary:
        temporary.write_bytes(content)


def write_file(path: Path, content: bytes, kept: str = "") -> Path:
    """Write a file whole, by :func:`replace`; its folder is made where need be.

    EnvironmentFault where the disk refuses; ``kept`` is its hint.
    """
    with disk_faults(path, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content)
    return path


def brought_up_to_date(wanted: Mapping[Path, tuple[bytes, str]], *, check: bool) -> list[str]:
    """Write the files (unless ``check``) whose content differs from ``wanted``; returns a line for each.

    ``wanted`` has, for each file, its content and the words of that line.
    """
    stale = [path for path, (content, _) in wanted.items() if not path.exists() or path.read_bytes() != content]
    for path in () if check else stale:
        write_file(path, wanted[path][0])
    return [f"{path}: {wanted[path][1]}" for path in stale]


def write_files(out: Path, files: Mapping[str, bytes], kept: str = "") -> list[Path]:
    """Write files by name into a folder, each whole; returns their paths.

    Raises:
        EnvironmentFault: one cannot be written; ``kept`` says what there is all the same.
    """
    return [write_file(out / name, content, kept) for name, content in files.items()]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or a folder's entries (names created, renamed, removed), are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, indent: int | None = 2) -> bytes:
    """JSON bytes with a final newline; NaN and infinities, which JSON does not know, become null."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), indent=indent, ensure_ascii=False)
    return f"{text}\n".encode()


def finite(value: Any) -> Any:
    """The value, NaN and infinities inside it as None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV with every column that any of them has; None is an empty cell, numbers keep every digit."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(name)) for name in columns] for row in rows])
    return buffer.getvalue().encode()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A file of :func:`to_csv`; its folder is made where need be."""
    write_file(path, to_csv(rows))


def read_csv(path: Path) -> list[Row]:
    """Rows of :func:`write_csv`, values typed again; InputError where a line does not have the header's columns."""
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
