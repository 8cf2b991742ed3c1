from __future__ import annotations

import threading
import time

import pytest

from diffvit.app.gate import Busy, Gate


def test_no_more_than_so_many_are_inside_and_all_who_fit_get_their_turn() -> None:
    gate, lock = Gate(2, 50), threading.Lock()
    inside, most, done = 0, 0, 0

    def ask() -> None:
        nonlocal inside, most, done
        with gate.turn():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1
                done += 1

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (2, 40)


def test_who_finds_too_many_waiting_is_told_at_once() -> None:
    gate, release, ready = Gate(1, 1, patience=30), threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        with gate.turn():
            ready.release()
            release.wait(30)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    holders[0].start()
    assert ready.acquire(timeout=10)
    holders[1].start()
    deadline = time.monotonic() + 10
    while gate._room.acquire(blocking=False):  # until the second waits
        gate._room.release()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(Busy) as caught, gate.turn():
        pytest.fail("two were inside")
    assert str(caught.value) == "diffvit: is busy (1 questions are waiting). Ask again in a few seconds."
    release.set()
    for holder in holders:
        holder.join(10)
    with gate.turn():
        pass


def test_a_fault_inside_gives_the_turn_back_and_patience_ends() -> None:
    gate = Gate(1, 1, patience=0.05)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), gate.turn():
            raise ZeroDivisionError
    with gate.turn(), pytest.raises(Busy), gate.turn():
        pytest.fail("two were inside")
    with gate.turn():
        pass
