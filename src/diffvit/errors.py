"""Every error a user can meet: one line that says what, why, what was kept and what to do next.

The exit codes are part of the command line's contract:
0 done, 2 usage or configuration, 3 bad or missing run, image, data or weights file, 4 environment (disk, memory,
device, network), 5 non-finite training, 6 run folder locked, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

Size = int | tuple[int, int]  # of an image, pixels: the side of a square, or height and width
_COMMAND_OR_FLAG = re.compile(r"\bdiffvit [a-z].*?(?=, |; | \(|\. |\.?$)|(?<![\w/-])--([a-z][\w.-]*\w)")


class DiffvitError(Exception):
    """A fault with one clear line, ``line``; ``str(error)`` is the same with Python's names: ``batch_size``, no flag.

    ``what`` is the thing at fault, as the user knows it (a key, a path, a flag), ``why`` what is wrong, with what was
    found against what is allowed, and ``hint`` what was kept and what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        line = f"{what}: {why}".rstrip(".")
        line += "" if line.endswith("?") else "."
        self.line = " ".join(f"{line} {hint}".split())
        super().__init__(self.line)

    def __str__(self) -> str:
        return _COMMAND_OR_FLAG.sub(lambda found: found[1].replace("-", "_") if found[1] else found[0], self.line)


class ConfigError(DiffvitError):
    """Wrong usage or configuration."""

    exit_code = 2


class InputError(DiffvitError):
    """A bad or missing run, image, data or weights file."""

    exit_code = 3


class EnvironmentFault(DiffvitError):
    """The machine cannot do it: disk, memory, device or network."""

    exit_code = 4


class NonFiniteError(DiffvitError):
    """Training met a NaN or an infinity and stopped; no state after it was saved."""

    exit_code = 5


class RunBusyError(DiffvitError):
    """Another process holds the run folder."""

    exit_code = 6


class Interrupted(DiffvitError):
    """A signal stopped the run after its state was saved. ``exit_code`` is 128 + the signal's number."""

    def __init__(self, signal_number: int, what: str, why: str, hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.exit_code = 128 + signal_number


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is used up, an accelerator's or the machine's, for which torch has no exception of its own."""
    said = "out of memory" in str(error) or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)


def few(names: Sequence[object], most: int = 5) -> str:
    """The first names, with commas, and dots where there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """``" did you mean 'epochs'?"`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.6)
    return f" did you mean {close[0]!r}?" if close else ""


def suggestion(found: str, allowed: Iterable[str]) -> str:
    """``"Did you mean 'epochs'?"`` for the closest allowed name, or an empty string."""
    return did_you_mean(found, allowed).replace(" did", "Did", 1)


def check_choice(what: str, found: str, allowed: Iterable[str]) -> None:
    """Raise a ConfigError that lists the allowed names and the closest one, unless ``found`` is one of them."""
    names = list(allowed)
    if found not in names:
        raise ConfigError(what, f"no {what} {found!r} (have {', '.join(names)})", suggestion(str(found), names))


def checked_size(name: str, found: Any) -> Size:
    """The size of an image from a whole number, a pair (height, width), or text such as ``32,64`` or ``[32, 64]``.

    Two equal sides are one number. ConfigError, which calls it ``name``, for anything else.
    """
    if isinstance(found, str):
        found = [int(part) if part.strip().isdecimal() else part for part in found.strip("[( )]").split(",")]
    whole = found if isinstance(found, list | tuple) else [found]
    if len(whole) not in (1, 2) or not all(isinstance(side, Integral) and int(side) >= 1 for side in whole):
        raise ConfigError(name, f"must be the side of a square, or height,width, in whole pixels (found {found!r})")
    height, width = int(whole[0]), int(whole[-1])
    return height if height == width else (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Height and width, pixels."""
    return (size, size) if isinstance(size, int) else size
