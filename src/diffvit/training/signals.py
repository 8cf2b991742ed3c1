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

    Within another one, a request takes over what the outer has seen, and tells it what it sees.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            self._outer = outer if isinstance(outer, StopRequest) else None
            self._former = {number: signal.signal(number, self._remember) for number in _SIGNALS}
            if self._outer:
                self.signal = self._outer.signal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former, self._outer = {}, None

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (the signature is signal's)
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._outer:
            self._outer.signal = self._outer.signal or number
