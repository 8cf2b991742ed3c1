"""Stopping on request."""

import os
import signal
import threading

import pytest

from diffvit.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_remembered(number):
    former = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is former


def test_a_launchers_sigterm_after_ctrl_c_changes_nothing():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGINT


def test_a_second_ctrl_c_acts_at_once():
    former = signal.getsignal(signal.SIGINT)
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_other_threads_may_use_it():
    seen = []

    def body():
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_request_within_another_tells_it_what_it_sees():
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (inner.signal, outer.signal) == (signal.SIGTERM, signal.SIGTERM)
        with StopRequest() as later:
            assert later.signal == signal.SIGTERM
    with StopRequest() as new:
        assert new.signal == 0
