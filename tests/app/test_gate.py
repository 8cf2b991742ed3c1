from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from diffvit.app.gate import Busy, Gate


def test_no_more_than_so_many_are_inside_and_all_who_fit_get_their_turn() -> None:
    gate, lock = Gate(2, 50), threading.Lock()
    inside, most, workers = 0, 0, set[int]()

    def work(number: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            workers.add(threading.get_ident())
        time.sleep(0.005)
        with lock:
            inside -= 1
        return number

    with ThreadPoolExecutor(40) as visitors:
        found = list(visitors.map(lambda number: gate.call(lambda: work(number)), range(40)))
    assert found == list(range(40))
    assert (most, len(workers)) == (2, 2)  # always the same threads


def test_who_finds_too_many_waiting_is_told_at_once() -> None:
    gate, release, ready = Gate(1, 1, patience=30), threading.Event(), threading.Event()

    def hold() -> bool:
        ready.set()
        return release.wait(30)

    with ThreadPoolExecutor(2) as visitors:
        first = visitors.submit(gate.call, hold)
        assert ready.wait(10)
        second = visitors.submit(gate.call, lambda: "second")
        deadline = time.monotonic() + 10
        while gate._room.acquire(blocking=False):  # until the second waits
            gate._room.release()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with pytest.raises(Busy) as caught:
            gate.call(lambda: pytest.fail("two were inside"))
        assert str(caught.value) == "diffvit: is busy (1 questions are waiting). Ask again in a few seconds."
        release.set()
        assert (first.result(10), second.result(10)) == (True, "second")
    assert gate.call(lambda: "third") == "third"


def test_a_fault_inside_gives_the_turn_back() -> None:
    gate = Gate(1, 0)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            gate.call(lambda: 1 // 0)
    assert gate.call(lambda: 1) == 1


def test_what_a_failed_work_held_is_free_at_once() -> None:
    class Large:
        pass

    gate, alive = Gate(1, 0), weakref.WeakSet[Large]()

    def work() -> None:
        held = Large()
        alive.add(held)
        raise ValueError("failed while it held something")

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            gate.call(work)
        gate.call(lambda: None)  # the worker has let go of the first by then
        assert not alive
    finally:
        gc.enable()


def test_patience_ends_for_who_waits_and_not_for_who_has_begun() -> None:
    gate, done = Gate(1, 1, patience=0.05), []
    with ThreadPoolExecutor(2) as visitors:
        began = threading.Event()

        def slow() -> str:
            began.set()
            time.sleep(0.5)
            return "slow"

        first = visitors.submit(gate.call, slow)
        assert began.wait(10)
        with pytest.raises(Busy):
            gate.call(lambda: done.append("never"))
        assert first.result(10) == "slow"  # longer than the patience
    with pytest.raises(TimeoutError, match="its own"):
        gate.call(_times_out)
    assert done == []


def _times_out() -> None:
    raise TimeoutError("its own")
