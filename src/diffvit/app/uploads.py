"""Pictures that visitors brought: checked by the project's own decoder, kept in memory alone, never on a disk."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from diffvit.app.kept import Kept
from diffvit.data.images import decode
from diffvit.errors import InputError

MAX_BYTES = 8 * 2**20  # of one file
MIN_SIDE = 8  # pixels
SECONDS = 3600.0  # that a picture is kept
BUDGET = 32 * 2**20  # bytes of all of them
_LETTERS = 40  # of a name


@dataclass(frozen=True)
class Upload:
    """A file as it came.

    Args:
        name: what its sender called it, made harmless; it names no path.
        data: the encoded bytes.
        width: pixels.
        height: pixels.
        since: when it came, monotonic seconds.
    """

    name: str
    data: bytes
    width: int
    height: int
    since: float


class Uploads:
    """Pictures by a token that nobody can guess.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._files: Kept[Upload] = Kept(BUDGET, lambda each: len(each.data))
        self._clock = clock

    def __len__(self) -> int:
        return len(self._files)

    def add(self, data: bytes, name: str) -> str:
        """Check a picture and keep it; its token.

        Raises:
            InputError: too large, too small, or not an image that can be decoded.
        """
        name = harmless(name)
        if len(data) > MAX_BYTES:
            raise InputError(name, f"is too large (over {MAX_BYTES >> 20} MiB)")
        _, height, width = decode(data, name=name).shape
        if min(height, width) < MIN_SIDE:
            raise InputError(name, f"is too small ({width} x {height} vs at least {MIN_SIDE} pixels a side)")
        token = secrets.token_urlsafe(16)
        self._files.keep(token, Upload(name, data, width, height, self._clock()))
        return token

    def pixels(self, token: str) -> tuple[str, UInt8[np.ndarray, "3 h w"]]:
        """A picture's name and its pixels, decoded anew.

        Raises:
            InputError: it is no longer here.
        """
        found = self._files.find(token)
        if found is None or self._clock() - found.since > SECONDS:
            raise InputError("the picture", "is no longer kept", "Choose it again.")
        return found.name, decode(found.data, name=found.name)


def harmless(name: str) -> str:
    """A file's name without folders and without letters that do not print."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter for letter in last if letter.isprintable()).strip(". ")
    return shown[:_LETTERS] or "picture"
