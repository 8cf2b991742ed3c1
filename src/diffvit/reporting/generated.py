"""Writing generated files that are out of date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffvit.files import disk_faults, replace


def brought_up_to_date(wanted: Mapping[Path, tuple[bytes, str]], *, check: bool) -> list[str]:
    """Write the files (unless ``check``) whose content differs from ``wanted``; returns a line for each.

    ``wanted`` has, for each file, its content and the words of that line.
    """
    stale = [path for path, (content, _) in wanted.items() if not path.exists() or path.read_bytes() != content]
    for path in () if check else stale:
        with disk_faults(path):
            replace(path, wanted[path][0])
    return [f"{path}: {wanted[path][1]}" for path in stale]
