"""What a training shows, and how it is asked to stop."""

import io
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from rich.console import Console

from diffvit.training.progress import Progress, StopRequest, make_progress, usual_progress

STEP = {"step": 5, "epoch": 1, "loss": 2.25, "accuracy": 0.125, "images_per_second": 431.2}
ROW = {"epoch": 1, "step": 10, "images_per_second": 400.0, "seconds": 12.3}
ROW |= {"train_loss": 2.0, "train_accuracy": 0.25, "val_loss": 1.5, "val_accuracy": 0.5}


def play(progress):
    progress.message("data: something [with brackets]")
    progress.start(20, 2, "a title")
    progress.step(STEP)
    progress.epoch(ROW)
    progress.step({**STEP, "step": 15, "epoch": 2})
    progress.epoch({**ROW, "epoch": 2, "step": 20, "val_loss": None, "val_accuracy": None})
    progress.close()
    progress.close()


def console(width=None):
    """A terminal where a width is given."""
    return Console(file=io.StringIO(), force_terminal=width is not None, width=width, color_system=None)


def test_off_a_terminal_come_lines():
    shown = console()
    play(Progress(shown, interval=0.0))
    assert shown.file.getvalue().splitlines() == [
        "data: something [with brackets]",
        "a title",
        "epoch 1/2 step 5/20 loss 2.250 accuracy 12.5% 431 images/s",
        "epoch 1/2 loss 2.000 accuracy 25.0% 400 images/s | 12 s | validation loss 1.500 accuracy 50.0%",
        "epoch 2/2 step 15/20 loss 2.250 accuracy 12.5% 431 images/s",
        "epoch 2/2 loss 2.000 accuracy 25.0% 400 images/s | 12 s",
    ]
    play(Progress(seldom := console(), interval=3600.0))
    assert "step" not in seldom.file.getvalue()
    clip = Progress(without := console(), interval=0.0)
    clip.step({**STEP, "accuracy": None})  # an objective without accuracy
    clip.epoch({**ROW, "train_accuracy": None})
    assert "loss 2.250 431 images/s" in without.file.getvalue()


@pytest.mark.parametrize("width", [140, 20])
def test_on_a_terminal_a_bar_shows_figures_and_leaves_the_epochs(width):
    shown = console(width)
    play(Progress(shown))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.file.getvalue())
    for part in ("data: something [with brackets]", "a title", "validation loss 1.500", "epoch 2/2 loss"):
        assert part in text
    assert text.count("epoch 1/2 loss 2.000") == 1
    if width == 140:
        assert "left" in text
        assert "20/20" in text


def test_in_a_notebook_one_bar_is_updated_in_place(capsys, monkeypatch):
    """IPython's display is replaced: every update goes to the one handle, and no line is printed for an epoch."""
    assert type(usual_progress()) is Progress  # no notebook here
    shown = []

    def display(thing, raw, display_id=None):
        assert raw  # as a dict of types
        shown.append(thing)
        return SimpleNamespace(update=display)

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=True), display=None)
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    progress = usual_progress()
    play(progress)
    assert capsys.readouterr().out.splitlines() == ["data: something [with brackets]", "a title"]
    texts = [thing["text/html"] for thing in shown]
    assert len(texts) == 5
    assert all("\n" not in text and text.count("<progress ") == 1 for text in texts)
    assert "value=20 max=20" in texts[-1]
    assert (
        "epoch 2/2 loss 2.000 accuracy 25.0% 400 images/s | validation loss 1.500 accuracy 50.0%"
        in shown[-1]["text/plain"]
    )


def test_quiet_shows_nothing(capsys):
    play(Progress())
    play(make_progress(quiet=True))
    assert capsys.readouterr() == ("", "")
    play(make_progress())
    assert capsys.readouterr().out.startswith("data: something [with brackets]\na title\n")


def test_after_the_first_signal_a_launchers_sigterm_changes_nothing_and_ctrl_c_acts_at_once():
    former = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_another_thread_may_use_it_and_a_request_within_another_tells_it_what_it_sees():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: StopRequest().__enter__().signal).result() == 0
    former = signal.getsignal(signal.SIGTERM)
    with StopRequest() as outer:
        assert outer.signal == 0
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (inner.signal, outer.signal) == (signal.SIGTERM, signal.SIGTERM)
        with StopRequest() as later:
            assert later.signal == signal.SIGTERM
    with StopRequest() as new:
        assert new.signal == 0
    assert signal.getsignal(signal.SIGTERM) is former
