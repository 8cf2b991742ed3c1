"""A memory of bounded size for what was made last; threads may ask at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The values that were asked for last, by key.

    Args:
        budget: sum of the sizes that are kept.
        size: of a value; by default each counts one.
    """

    def __init__(self, budget: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        self._budget, self._size = budget, size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def find(self, key: Hashable) -> Value | None:
        """The value, if it is still here."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def keep(self, key: Hashable, value: Value) -> Value:
        """Keep a value, and let go of the oldest while there are too many; the last is always kept."""
        with self._lock:
            if key in self._values:
                self._used -= self._size(self._values.pop(key))
            self._values[key] = value
            self._used += self._size(value)
            while self._used > self._budget and len(self._values) > 1:
                _, old = self._values.popitem(last=False)
                self._used -= self._size(old)
        return value

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value; made where it is not here. Two that ask at once may both make it."""
        found = self.find(key)
        return self.keep(key, make()) if found is None else found
