"""The limiter of concurrent work and the cache of bounded size."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffvit.app.limits import Busy, Cache, Limiter


def test_the_limiter_runs_a_bounded_number_at_a_time_in_the_same_threads() -> None:
    limiter, lock = Limiter(2, 50), threading.Lock()
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
        found = list(visitors.map(lambda number: limiter.call(lambda: work(number)), range(40)))
    assert found == list(range(40))
    assert (most, len(workers)) == (2, 2)  # always the same threads


def test_a_call_is_refused_at_once_when_too_many_wait() -> None:
    limiter, release, ready = Limiter(1, 1, patience=30), threading.Event(), threading.Event()

    def hold() -> bool:
        ready.set()
        return release.wait(30)

    with ThreadPoolExecutor(2) as visitors:
        first = visitors.submit(limiter.call, hold)
        assert ready.wait(10)
        second = visitors.submit(limiter.call, lambda: "second")
        deadline = time.monotonic() + 10
        while limiter._slots.acquire(blocking=False):  # until the second waits
            limiter._slots.release()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with pytest.raises(Busy) as caught:
            limiter.call(lambda: pytest.fail("two were inside"))
        assert str(caught.value) == "diffvit: is busy (1 requests are waiting). Try again in a few seconds."
        release.set()
        assert (first.result(10), second.result(10)) == (True, "second")
    assert limiter.call(lambda: "third") == "third"


def test_what_a_failed_function_held_is_freed_at_once() -> None:
    class Large:
        pass

    limiter, alive = Limiter(1, 0), weakref.WeakSet[Large]()

    def work() -> None:
        held = Large()
        alive.add(held)
        raise ValueError("failed while it held something")

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            limiter.call(work)
        limiter.call(lambda: None)  # the worker has let go of the first by then
        assert not alive
    finally:
        gc.enable()


def test_patience_ends_for_a_waiting_call_and_not_for_a_running_one() -> None:
    limiter, done = Limiter(1, 1, patience=0.05), []
    with ThreadPoolExecutor(2) as visitors:
        began = threading.Event()

        def slow() -> str:
            began.set()
            time.sleep(0.5)
            return "slow"

        first = visitors.submit(limiter.call, slow)
        assert began.wait(10)
        with pytest.raises(Busy):
            limiter.call(lambda: done.append("never"))
        assert first.result(10) == "slow"  # longer than the patience
    with pytest.raises(TimeoutError, match="its own"):
        limiter.call(_times_out)
    assert done == []


def _times_out() -> None:
    raise TimeoutError("its own")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40))), st.integers(1, 100))
def test_the_cache_keeps_the_values_used_last_within_its_budget(asked: list[tuple[int, int]], budget: int) -> None:
    cache: Cache[tuple[int, int]] = Cache(budget, lambda value: value[1])
    model: list[tuple[int, int]] = []  # a naive list, oldest first
    for value in asked:
        found = cache.get(value[0])
        old = next((each for each in model if each[0] == value[0]), None)
        assert found == old
        cache.put(value[0], value)
        model = [each for each in model if each[0] != value[0]] + [value]
        while sum(size for _, size in model) > budget and len(model) > 1:
            model.pop(0)
        assert len(cache) == len(model)


@pytest.mark.parametrize(("parallel", "count"), [(False, 1), (True, 2)])
def test_threads_that_ask_for_the_same_value_share_it_unless_values_are_made_in_parallel(
    parallel: bool, count: int
) -> None:
    cache, made = Cache[object](4, parallel=parallel), list[object]()
    both = threading.Barrier(count)

    def make() -> object:
        both.wait(10)
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(cache.get_or_make, "key", make) for _ in range(2)]
    assert len(made) == count
    assert all(each.result() in made for each in found)
