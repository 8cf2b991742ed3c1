"""Writing files so that a kill, a power cut or a full disk leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffvit.errors import EnvironmentFault


@contextlib.contextmanager
def disk_faults(what: Path | str, kept: str = "") -> Iterator[None]:
    """Turn what the operating system refuses inside (full disk, no permission, gone folder) into one clear line.

    Raises:
        EnvironmentFault: with ``kept`` as its hint.
    """
    try:
        yield
    except OSError as error:
        why = f"cannot be written ({(error.strerror or str(error)).lower()})"
        raise EnvironmentFault(str(what), why, kept) from error


def write_flushed(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the folder's entries (names created, renamed, removed) are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, content: bytes) -> None:
    """Write under a temporary name beside ``path``, flush, rename over it, flush the folder.

    Raises:
        OSError: nothing changed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_flushed(temporary, content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def to_json(value: Any, indent: int | None = 2) -> bytes:
    """JSON bytes with a final newline; NaN and infinities, which JSON does not know, become null."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False)
    return f"{text}\n".encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
