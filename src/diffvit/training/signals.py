"""Stopping at a good moment: the first SIGINT or SIGTERM is remembered; only a second Ctrl-C acts at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets :attr:`signal`, which is 0 until then.

    A launcher that got Ctrl-C sends its processes SIGTERM on top of the terminal's SIGINT, so SIGTERM after a first
    signal is ignored; a second SIGINT raises KeyboardInterrupt. Outside the main thread, where Python allows no
    handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (the signature is signal's)
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
