"""How every command ends that writes a generated document, or checks one: ``python -m ... [--check]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from diffvit.errors import DiffvitError


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
