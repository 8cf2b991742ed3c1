"""Who starts workers (this machine, where killed ones come again; Slurm through submitit), and what a study shows."""

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
from diffvit.experiments.launch import Job, StudyProgress, run_here, submit, worker_command
from diffvit.experiments.report import write_report
from diffvit.experiments.results import results_of
from diffvit.experiments.runner import State
from diffvit.experiments.study import STUDIES, cells_of
from tests.experiments.study_rows import made_records

STUDY = STUDIES["pooling"]
CELLS = cells_of(STUDY, "short")
NAMES = [cell.name for cell in CELLS]
Captured = pytest.CaptureFixture[str]

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


def progress(tmp_path: Path, states: list[State], *, committed: int = 0, quiet: bool = False) -> StudyProgress:
    return StudyProgress(STUDY, "short", CELLS[committed:], committed, lambda: states[0], tmp_path / "reports", quiet)


def stand(done: int, running: int, failed: int = 0) -> State:
    first, second, third = NAMES[:done], NAMES[done : done + running], NAMES[done + running : done + running + failed]
    return State(
        dict.fromkeys(first, 0.7),
        dict.fromkeys(second, "process 5"),
        dict.fromkeys(third, "data: is gone."),
        NAMES[done + running + failed :],
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_the_plan_the_cells_as_they_are_done_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, terminal: bool
) -> None:
    monkeypatch.setattr("diffvit.experiments.launch.rate_of", lambda *_: 1e12)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    states = [stand(1, 0)]
    shown = progress(tmp_path, states)

    def said() -> list[str]:
        return capsys.readouterr().out.splitlines()

    shown.begin("cpu")
    first, second = said()[:2]
    assert first.startswith("pooling, tier short: ")
    assert second.startswith("8 cells, 0 of them in ")
    assert ", 1 done, 7 to do: about " in second
    states[0] = stand(2, 2)
    shown.show()
    shown.show()
    lines = said()
    assert sum(f"{NAMES[1]}: 70.00%" in line for line in lines) == 1  # each once
    assert not any(f"{NAMES[0]}: 70" in line for line in lines)  # not what was done before
    if not terminal:
        assert lines[1].startswith("2 of 8 done, 2 running; about ")
        assert len(lines) == 2
    states[0] = stand(6, 0, failed=2)
    found = shown.end()
    lines = said()
    assert lines[-2:] == [f"{name}: skipped after repeated errors: data: is gone." for name in NAMES[6:]]
    assert lines[-3].endswith("6 of 8 done, 0 running, 2 skipped")
    assert found.failed == dict.fromkeys(NAMES[6:], "data: is gone.")


@pytest.mark.parametrize(
    ("rows", "device", "said"),
    [(3, "cpu", "about "), (3, "cuda", "time not measured"), (0, "cpu", "time not measured")],
)
def test_the_time_is_estimated_from_committed_rows_of_such_a_device(
    tmp_path: Path, capsys: Captured, rows: int, device: str, said: str
) -> None:
    if rows:
        records = made_records(CELLS[:rows], lambda _: 0.7, kernels="torch")
        write_report(results_of(STUDY, "short", {CELLS: records}), tmp_path / "reports")
    shown = progress(tmp_path, [State(waiting=NAMES[rows:])], committed=rows)
    shown.begin(device)
    shown.show()
    _, plan, now = capsys.readouterr().out.splitlines()
    assert plan.startswith(f"8 cells, {rows} of them in ")
    assert f", 0 done, {8 - rows} to do: {said}" in plan
    assert now.startswith(f"0 of {8 - rows} done, 0 running")
    assert ("left" in now) == (said == "about ")


def test_quiet_says_nothing(tmp_path: Path, capsys: Captured) -> None:
    shown = progress(tmp_path, [stand(8, 0)], quiet=True)
    shown.begin("cpu")
    shown.show()
    assert len(shown.end().done) == 8
    assert capsys.readouterr().out == ""
