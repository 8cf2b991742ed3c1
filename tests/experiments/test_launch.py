"""Who starts workers: this machine, where killed ones come again, and Slurm through submitit."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from diffvit.cli.main import run
from diffvit.experiments.launch import Job, run_here, submit, worker_command

WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""


# Tells its number in a file; waits the first time.
WAITS_ONCE = """
import os, sys, time
first = not os.path.exists(sys.argv[1])
with open(sys.argv[1], "a") as file:
    print(os.getpid(), file=file, flush=True)
if first:
    time.sleep(60)
print("done")
"""


def test_a_worker_killed_while_the_table_is_shown_comes_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    killed: list[int] = []

    def look() -> None:
        told = starts.read_text().split() if starts.exists() else []
        if told and not killed:
            killed.append(int(told[0]))
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.2)  # gone before the look ends

    command = [sys.executable, "-c", WAITS_ONCE, str(starts)]
    assert run_here(command, 1, tmp_path / "logs", look, every=0.05) == [0]
    assert len(starts.read_text().split()) == 2
    assert (tmp_path / "logs" / "worker-1.log").read_text() == "done\n"


def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop_when_ready() -> None:
        logs = [tmp_path / f"worker-{place}.log" for place in (1, 2)]
        while not all(log.is_file() and "ready" in log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_ready)
    thread.start()
    start = time.monotonic()
    assert run_here([sys.executable, "-c", WAITS], 2, tmp_path, lambda: None, every=0.1) == [128 + signal.SIGTERM] * 2
    thread.join()
    assert time.monotonic() - start < 30
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_worker_is_left_where_showing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The display broke (a terminal went away): the workers are stopped, and waited for."""
    logs = [tmp_path / f"worker-{place}.log" for place in (1, 2)]

    def show() -> None:
        if all(log.is_file() and "ready" in log.read_text() for log in logs):
            raise BrokenPipeError

    started: list[Any] = []
    real = subprocess.Popen

    def popen(*given: Any, **more: Any) -> Any:
        started.append(real(*given, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BrokenPipeError):
        run_here([sys.executable, "-c", WAITS], 2, tmp_path, show, every=0.05)
    assert [worker.returncode for worker in started] == [7, 7]
    assert signal.getsignal(signal.SIGTERM) == before


SBATCH = """#!/bin/sh
cp "$1" "{folder}/seen.sh"
echo "Submitted batch job 4711"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has Slurm's commands, which only keep what they are given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("srun", "#!/bin/sh\n"), ("sacct", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return tmp_path


def test_a_cluster_gets_a_job_array(slurm: Path) -> None:
    commands = [worker_command(["depth", "--tier", "full", "--cell", f"cell-{number}"]) for number in range(5)]
    jobs = submit(commands, slurm / "jobs", at_once=3)
    assert [job.job_id for job in jobs] == [f"4711_{number}" for number in range(5)]
    lines = (slurm / "seen.sh").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"job-name=diffvit-study", "array=0-4%3", "time=240", "cpus-per-task=8", "gpus-per-node=1"} <= asked
    assert {"mem=32GB", "nodes=1", "signal=USR2@120"} <= asked
    assert any(line.startswith("srun") and "submitit.core._submit" in line for line in lines)


@pytest.mark.timeout(180)
def test_a_study_goes_through_submitit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffvit.experiments.launch.submit", functools.partial(submit, cluster="local"))
    Path("mine.yaml").write_text("question: a?\nattentions: [softmax]\narms: {a: {}}\n")
    command = ["study", "run", "mine.yaml", "--tier", "smoke", "--workers", "2", "--device", "cpu"]
    assert run([*command, "--launcher", "slurm"]) == 0
    assert "submitted 1 job" in capsys.readouterr().out
    while not list(tmp_path.glob("runs/studies/smoke/*/result.json")):
        time.sleep(0.2)  # the test's own time limit ends it
    assert run(["study", "report", "mine.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == []


def test_a_job_out_of_time_is_queued_again_after_its_worker_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import sys; sys.stdout = open({str(tmp_path / 'out')!r}, 'w')\n{WAITS}"]
    job, codes = Job(), list[int]()
    thread = threading.Thread(target=lambda: codes.append(job(command)))
    thread.start()
    while not (tmp_path / "out").is_file() or "ready" not in (tmp_path / "out").read_text():
        time.sleep(0.02)
    again = job.checkpoint(command)
    thread.join()
    assert codes == [7]
    assert isinstance(again.function, Job)
    assert again.args == (command,)
