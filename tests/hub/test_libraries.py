"""Importing timm changes what belongs to the whole process, and threads do it at the same time."""

import contextlib
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from diffvit.hub import libraries


def test_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch):
    both = threading.Barrier(2)
    libraries.library("timm")

    def slow_import():
        """Waits until the other thread is here too, and leaves before it."""
        with contextlib.suppress(threading.BrokenBarrierError):
            time.sleep(0.1 * both.wait(0.3))

    monkeypatch.setattr(libraries, "import_torchvision", slow_import)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(4):
                list(pool.map(libraries.library, ["timm"] * 2))
        assert warnings.filters == before
