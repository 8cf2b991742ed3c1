"""How much is done at a time: a few questions at once, some that wait, and a clear word to all others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from diffvit.errors import EnvironmentFault

PATIENCE = 20.0  # seconds that a question waits for its turn


class Busy(EnvironmentFault):
    """Too many ask at a time."""

    def __init__(self, waiting: int) -> None:
        super().__init__("diffvit", f"is busy ({waiting} questions are waiting)", "Ask again in a few seconds.")


class Gate:
    """Lets ``at_once`` callers in; ``waiting`` more wait for their turn, and whoever comes then is told so.

    Args:
        at_once: callers inside.
        waiting: callers before it.
        patience: seconds to wait for a turn.
    """

    def __init__(self, at_once: int, waiting: int, patience: float = PATIENCE) -> None:
        self._inside = threading.Semaphore(at_once)
        self._room = threading.Semaphore(at_once + waiting)
        self._waiting, self._patience = waiting, patience

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, it is the caller's turn.

        Raises:
            Busy: too many wait already, or the turn did not come.
        """
        if not self._room.acquire(blocking=False):
            raise Busy(self._waiting)
        try:
            if not self._inside.acquire(timeout=self._patience):
                raise Busy(self._waiting)
            try:
                yield
            finally:
                self._inside.release()
        finally:
            self._room.release()
