"""Faults that are nobody's typing error: memory, disk, signals, bugs."""

import errno
import warnings

import pytest
import torch

from diffvit.cli.main import explain, own_warnings, run
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Interrupted, NonFiniteError, RunBusyError

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/x")
CODES = [
    (ConfigError("a", "b"), 2, "a: b."),
    (InputError("a", "b"), 3, "a: b."),
    (EnvironmentFault("a", "b"), 4, "a: b."),
    (NonFiniteError("a", "b"), 5, "a: b."),
    (RunBusyError("a", "b"), 6, "a: b."),
    (Interrupted(2, "a", "b"), 130, "a: b."),
    (Interrupted(15, "a", "b"), 143, "a: b."),
    (KeyboardInterrupt(), 130, "interrupted by Ctrl-C."),
    (MemoryError(), 4, "memory: is used up."),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "memory: is used up."),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 12"), 4, "memory: is used up."),
    (FULL, 4, "runs/a/x: No space left on device."),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), 4, "runs: Permission denied."),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 999), 3, "xxx...: is no path: it is too long."),
    (KeyError("no\nsuch"), 1, "a bug in diffvit: please report it with the traceback that `diffvit train"),
    (RuntimeError("mat1 and mat2\nshapes"), 1, "RuntimeError: mat1 and mat2 shapes. This is a bug"),
    (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "This is a bug"),
]


@pytest.mark.parametrize(("error", "code", "expected"), CODES)
def test_every_exception_has_its_code_and_one_line(error, code, expected):
    found, line = explain(error, ["train", "--epochs", "3"])
    assert found == code
    assert expected in line
    assert len(line.splitlines()) == 1


def test_the_command_line_names_flags_and_python_arguments():
    hint = "Go on with: diffvit train --resume a-b/c, or give another --out (--batch-size too). Is a --plugin missing?"
    error = InputError("--size", "is no --model.image-size=8. See diffvit data info DIR. --bad-files skip is", hint)
    assert explain(error)[1] == f"--size: {error.why}. {hint}"
    assert str(error) == (
        "size: is no model.image_size=8. See diffvit data info DIR. bad_files skip is. Go on with: "
        "diffvit train --resume a-b/c, or give another out (batch_size too). Is a plugin missing?"
    )


def test_a_bug_shows_its_traceback_only_on_demand(monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("diffvit.reporting.render.compare", broken)
    assert run(["compare", "a"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ZeroDivisionError: by nought. This is a bug")
    assert err.count("\n") == 1
    assert "diffvit compare ... --debug" in err
    assert run(["compare", "a", "--debug"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_our_warnings_are_one_line_and_those_of_libraries_are_silent(capsys):
    with own_warnings():
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="diffvit.training.checkpoint")
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="lightning_fabric.fabric")
    assert capsys.readouterr().err == "warning: ours\n"
