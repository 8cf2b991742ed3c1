"""Bounds on the work and the memory of the server: a limiter for concurrent work and a cache of bounded size."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from diffvit.errors import EnvironmentFault

PATIENCE = 20.0  # seconds that a request waits for a free worker
Value = TypeVar("Value")


class Busy(EnvironmentFault):
    """The request was refused because too many others are waiting."""

    def __init__(self, waiting: int) -> None:
        super().__init__("diffvit", f"is busy ({waiting} requests are waiting)", "Try again in a few seconds.")


class Limiter:
    """Runs ``workers`` functions at a time; ``waiting`` more callers wait for ``patience`` seconds, others are refused.

    The work runs in a fixed set of threads. In the server's own threads, of which there are many, each would keep
    memory allocated for it.
    """

    def __init__(self, workers: int, waiting: int, patience: float = PATIENCE) -> None:
        self._slots = threading.Semaphore(workers + waiting)
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="diffvit-worker")
        self._waiting, self._patience = waiting, patience

    def call(self, function: Callable[[], Value]) -> Value:
        """Run the function as soon as a worker is free; returns its result.

        Raises:
            Busy: too many callers wait, or the function did not start in time. It was not run.
            Exception: whatever the function raises.
        """
        if not self._slots.acquire(blocking=False):
            raise Busy(self._waiting)
        future = None
        try:
            future = self._workers.submit(function)
            try:
                return future.result(self._patience)
            except TimeoutError:
                if future.cancel():
                    raise Busy(self._waiting) from None
                return future.result()  # it has started, or raised a TimeoutError of its own
        finally:
            # An exception refers to this frame, and the future to the exception: without this, whatever the function
            # held would stay allocated until the next garbage collection.
            del future
            self._slots.release()


class Cache(Generic[Value]):
    """The most recently used values by key, bounded in size; safe to use from several threads.

    The sizes of the values (one each by default) add up to at most ``budget``, but the newest is always kept. With
    ``parallel``, :meth:`get_or_make` makes several values at a time, at the risk of making the same one twice.
    """

    def __init__(self, budget: int, size: Callable[[Value], int] = lambda _: 1, *, parallel: bool = False) -> None:
        self._budget, self._size = budget, size
        self._making = contextlib.nullcontext() if parallel else threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value, or None if it is not in the cache."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: Value) -> Value:
        """Add a value, and drop the least recently used ones while the budget is exceeded; returns the value."""
        with self._lock:
            if key in self._values:
                self._used -= self._size(self._values.pop(key))
            self._values[key] = value
            self._used += self._size(value)
            while self._used > self._budget and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self._used -= self._size(oldest)
        return value

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value, made if it is not in the cache."""
        found = self.get(key)
        if found is not None:
            return found
        with self._making:
            found = self.get(key)  # another thread may have made it meanwhile
            return self.put(key, make()) if found is None else found
