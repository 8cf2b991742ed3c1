"""Faults that are nobody's typing error: memory, disk, signals, bugs."""

from __future__ import annotations

import errno
import warnings

import pytest
import torch

from diffvit.cli.faults import explain, own_warnings
from diffvit.cli.main import run
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Interrupted, NonFiniteError, RunBusyError

CODES: dict[str, tuple[BaseException, int, str]] = {
    "config": (ConfigError("a", "b"), 2, "a: b."),
    "input": (InputError("a", "b"), 3, "a: b."),
    "environment": (EnvironmentFault("a", "b"), 4, "a: b."),
    "non-finite": (NonFiniteError("a", "b"), 5, "a: b."),
    "busy": (RunBusyError("a", "b"), 6, "a: b."),
    "SIGINT": (Interrupted(2, "a", "b"), 130, "a: b."),
    "SIGTERM": (Interrupted(15, "a", "b"), 143, "a: b."),
    "Ctrl-C elsewhere": (KeyboardInterrupt(), 130, "interrupted by Ctrl-C."),
    "memory": (MemoryError(), 4, "memory: is used up."),
    "memory on a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        4,
        "memory: is used up.",
    ),
    "memory in torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: 12"), 4, "memory: is used up."),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "runs/a/x"),
        4,
        "runs/a/x: No space left on device.",
    ),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "runs"), 4, "runs: Permission denied."),
    "bug": (
        KeyError("no\nsuch"),
        1,
        "This is a bug in diffvit: please report it with the traceback that `diffvit train",
    ),
    "bug in torch": (RuntimeError("mat1 and mat2\nshapes"), 1, "RuntimeError: mat1 and mat2 shapes. This is a bug"),
    "bug with a path": (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "This is a bug"),
}


@pytest.mark.parametrize("case", CODES)
def test_every_exception_has_its_code_and_one_line(case: str) -> None:
    error, code, expected = CODES[case]
    found, line = explain(error, ["train", "--epochs", "3"])
    assert found == code
    assert expected in line
    assert len(line.splitlines()) == 1


def test_a_bug_shows_its_traceback_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("diffvit.reporting.render.compare", broken)
    assert run(["compare", "a"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ZeroDivisionError: by nought. This is a bug")
    assert err.count("\n") == 1
    assert "diffvit compare ... --debug" in err
    assert run(["compare", "a", "--debug"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_our_warnings_are_one_line_and_those_of_libraries_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with own_warnings():
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="diffvit.training.checkpoint")
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="lightning_fabric.fabric")
    assert capsys.readouterr().err == "warning: ours\n"
