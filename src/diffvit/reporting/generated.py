"""Generated files: written where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffvit.files import disk_faults, replace


def brought_up_to_date(wanted: Mapping[Path, tuple[bytes, str]], *, check: bool) -> list[str]:
    """Write the files that are not as wanted, or only name them.

    Args:
        wanted: for each file its content, and what to say where it has another.
        check: write nothing.

    Returns:
        What was out of date, one line each.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    stale = [path for path, (content, _) in wanted.items() if not path.exists() or path.read_bytes() != content]
    for path in () if check else stale:
        with disk_faults(path):
            replace(path, wanted[path][0])
    return [f"{path}: {wanted[path][1]}" for path in stale]
