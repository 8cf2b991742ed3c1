"""Run folders."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffvit.cli.main import run as main
from diffvit.config import ClipConfig, Config, parse
from diffvit.errors import EnvironmentFault, InputError, RunBusyError
from diffvit.training.load import locate
from diffvit.training.run_dir import RunDir


def begun(path, config=None):
    run = RunDir.create(path)
    run.begin(config or Config(), {})
    return run


def far_enough(*_, **__):
    raise InputError("far", "enough")


@pytest.mark.parametrize(("kind", "command"), [(Config, "diffvit train"), (ClipConfig, "diffvit clip train")])
def test_every_hint_names_the_command_that_takes_the_run_up(tmp_path, monkeypatch, capsys, kind, command):
    run = begun(tmp_path / "a run", kind(epochs=2))
    wanted = f"{command} --resume '{run.path}'"
    assert run.resume_command == wanted
    for fails in (lambda: run.result, lambda: RunDir.create(run.path), lambda: locate(run)):
        with pytest.raises(InputError, match=re.escape(wanted)):
            fails()
    assert wanted in run.kept
    args = wanted.removeprefix("diffvit ").replace("'", "").split(" --resume ")
    with monkeypatch.context() as patched:  # far enough to see that it is the right kind of run
        patched.setattr("diffvit.training.loop.train", far_enough)
        assert main([*args[0].split(), "--resume", args[1]]) == 3
    assert "far: enough" in capsys.readouterr().err


def test_create_takes_an_empty_folder_and_what_a_run_killed_in_its_first_moment_left(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunDir.create(tmp_path / "empty").path.is_dir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".config.yaml.tmp").write_text("epo")
    with pytest.raises(InputError, match=r"no config\.yaml"):
        RunDir.open(tmp_path / "run")
    config = parse({"epochs": 3, "model": {"attention": "differential"}, "data_dir": str(tmp_path)})
    with RunDir(tmp_path / "run").lock():
        begun(tmp_path / "run", config)
    assert RunDir.open(tmp_path / "run").config == config


def test_a_run_that_is_cleared_is_a_run_until_the_last_file_is_gone(tmp_path, monkeypatch):
    run, gone, unlink = begun(tmp_path / "run"), [], Path.unlink
    (run.path / "a.json").touch()
    (run.path / "z.json").touch()
    monkeypatch.setattr(Path, "unlink", lambda path: (gone.append(path.name), unlink(path)))
    run.clear()
    assert sorted(gone[:-1]) == ["a.json", "environment.json", "z.json"]
    assert gone[-1] == "config.yaml"


def test_create_refuses_what_is_there_and_open_what_is_no_run(tmp_path):
    begun(tmp_path / "run")
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        RunDir.create(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(InputError, match="not empty"):
        RunDir.create(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunDir.create(tmp_path / "file")
    with pytest.raises(EnvironmentFault):
        RunDir.create(tmp_path / "file" / "below")
    for path, why in [("other", "no config.yaml"), ("none", "no such"), ("file", "is a file")]:
        with pytest.raises(InputError, match=why):
            RunDir.open(tmp_path / path)


def test_damaged_files_are_input_errors(tmp_path):
    run = begun(tmp_path / "run")
    (run.path / "config.yaml").write_text("epochs: many")
    with pytest.raises(InputError, match="epochs"):
        _ = RunDir.open(run.path).config
    (run.path / "environment.json").unlink()
    for content, why in ((None, r"no environment\.json"), ("{", "cannot be read as JSON"), ("[]", "JSON object")):
        if content:
            (run.path / "environment.json").write_text(content)
        with pytest.raises(InputError, match=why):
            _ = run.environment


def test_rows(tmp_path):
    run = begun(tmp_path / "run")
    assert run.metrics == []
    rows = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2, 3)]
    for row in rows:
        run.append_row(row)
    for kept in (3, 1, 0):
        run.truncate_rows(kept)
        assert run.metrics == rows[:kept]


def test_rows_cut_short_by_a_kill_damaged_and_lost(tmp_path):
    run = begun(tmp_path / "run")
    run.append_row({"epoch": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train')
    assert run.metrics == [{"epoch": 1}]
    run.truncate_rows(1)
    run.append_row({"epoch": 2})
    assert run.metrics == [{"epoch": 1}, {"epoch": 2}]
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\nnonsense\n{"epoch": 3}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        _ = run.metrics
    with pytest.raises(InputError, match=r"lost rows \(3 epochs vs 4"):
        run.truncate_rows(4)


def test_the_lock_keeps_a_second_one_out(tmp_path):
    with RunDir(tmp_path / "run").lock():
        with pytest.raises(RunBusyError, match=f"process {os.getpid()}") as caught, RunDir(tmp_path / "run").lock():
            pass
        assert caught.value.exit_code == 6
    with RunDir(tmp_path / "run").lock():
        pass


def test_a_lock_file_that_goes_while_it_is_opened_lets_nobody_in_twice(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "run")
    refused, winner, real = run.lock(), run.lock(), fcntl.flock
    refused.__enter__()

    def flock(handle, how):  # between another process's open and its lock, the refused start ends and a third begins
        monkeypatch.setattr(fcntl, "flock", real)
        assert refused.__exit__(InputError, InputError("data", "is bad"), None) is not True
        assert not run.path.exists()
        winner.__enter__()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunBusyError), run.lock():
        pass
    winner.__exit__(None, None, None)


HURDLES = """
import os, random, sys, time
from pathlib import Path
from diffvit.errors import InputError, RunBusyError
from diffvit.training.run_dir import RunDir
from tests.training.small import full

base, draws, held = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with RunDir(base / "runs" / "run").lock():
            os.close(os.open(base / "inside", os.O_CREAT | os.O_EXCL))  # fails where another is inside
            RunDir.create(base / "runs" / "run")
            os.unlink(base / "inside")
            held += 1
            raise InputError("data", "is bad")
    except RunBusyError:
        pass
    except InputError as error:
        assert error.what == "data", error
    time.sleep(draws.random() * 0.001)
print(held)
"""


def test_refused_starts_in_many_processes_never_hold_one_folder_together(tmp_path):
    running = [
        subprocess.Popen([sys.executable, "-c", HURDLES, tmp_path, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    held = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum(map(int, held)) > 10
    with RunDir(tmp_path / "runs" / "run").lock():
        pass
