"""How much is done at a time: a few questions at once, some that wait, and a clear word to all others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from diffvit.errors import EnvironmentFault

PATIENCE = 20.0  # seconds that a question waits for its turn
Answer = TypeVar("Answer")


class Busy(EnvironmentFault):
    """Too many ask at a time."""

    def __init__(self, waiting: int) -> None:
        super().__init__("diffvit", f"is busy ({waiting} questions are waiting)", "Ask again in a few seconds.")


class Gate:
    """Does ``at_once`` things at a time; ``waiting`` more wait for their turn, and whoever comes then is told so.

    The work is done by threads of its own, always the same: a server's many threads would each keep memory for it.

    Args:
        at_once: things that are done at a time.
        waiting: things before it.
        patience: seconds to wait for a turn.
    """

    def __init__(self, at_once: int, waiting: int, patience: float = PATIENCE) -> None:
        self._room = threading.Semaphore(at_once + waiting)
        self._workers = ThreadPoolExecutor(at_once, thread_name_prefix="diffvit-gate")
        self._waiting, self._patience = waiting, patience

    def call(self, work: Callable[[], Answer]) -> Answer:
        """What the work gives, when its turn has come.

        Raises:
            Busy: too many wait already, or the turn did not come; nothing was done.
            Exception: whatever the work raises.
        """
        if not self._room.acquire(blocking=False):
            raise Busy(self._waiting)
        future = None
        try:
            future = self._workers.submit(work)
            try:
                return future.result(self._patience)
            except TimeoutError:
                if future.cancel():
                    raise Busy(self._waiting) from None
                return future.result()  # it has begun, or ended with a timeout of its own
        finally:
            # A fault knows this frame, and the future knows the fault: what the work held would stay until the next
            # collection.
            del future
            self._room.release()
