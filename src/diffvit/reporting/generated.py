"""Generated documents and parts of documents: ``python -m ... [--check]`` writes them, or checks them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffvit.errors import DiffvitError, InputError
from diffvit.training.files import disk_faults, replace


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a generated part of a page."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def with_block(page: Path, name: str, text: str) -> str:
    """A page with this text between its two :func:`markers`.

    Raises:
        InputError: the page cannot be read, or does not hold the two markers once each, in this order.
    """
    start, end = markers(name)
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(page), f"cannot be read ({error.__class__.__name__})") from None
    if old.count(start) != 1 or old.count(end) != 1 or old.index(start) > old.index(end):
        raise InputError(str(page), f"must hold {start} and then {end}, once each")
    return f"{old.split(start)[0]}{start}\n{text}\n{end}{old.split(end)[1]}"


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


def finish(update: Callable[[], Sequence[str]], *, check: bool) -> int:
    """Run ``update``, tell what was out of date, and give the exit code.

    Args:
        update: returns one line for each thing that was out of date.
        check: whether it only looked.

    Returns:
        0; 1 where a check found something out of date; the fault's own code, with its line on standard error, for a
        :class:`DiffvitError`.
    """
    try:
        stale = update()
    except DiffvitError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for line in stale:
        sys.stdout.write(f"out of date: {line}. Run: make docs\n" if check else f"updated: {line}\n")
    return 1 if stale and check else 0
