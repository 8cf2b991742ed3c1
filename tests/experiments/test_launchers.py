"""Who starts workers: this machine, where killed ones come again, and Slurm through submitit."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from diffvit.cli.main import run
from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.experiments.launchers import LocalWorkers, SlurmOptions, Worker, slurm_executor, submit, worker_command

# Counts its starts in a file; kills itself the first time.
KILLED_ONCE = """
import os, signal, sys
with open(sys.argv[1], "a") as file:
    file.write("x")
if os.path.getsize(sys.argv[1]) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
print("done")
"""
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_worker_comes_again(tmp_path: Path) -> None:
    looks: list[int] = []
    workers = LocalWorkers([sys.executable, "-c", KILLED_ONCE, str(tmp_path / "starts")], 1, tmp_path / "logs")
    assert workers.run(lambda: looks.append(1), every=0.05) == [0]
    assert (tmp_path / "starts").read_text() == "xx"
    assert (tmp_path / "logs" / "worker-1.log").read_text() == "done\n"
    assert looks


# Tells its number in a file; waits the first time.
WAITS_ONCE = """
import os, sys, time
first = not os.path.exists(sys.argv[1])
with open(sys.argv[1], "a") as file:
    print(os.getpid(), file=file, flush=True)
if first:
    time.sleep(60)
"""


def test_a_worker_killed_while_the_table_is_shown_comes_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    workers = LocalWorkers([sys.executable, "-c", WAITS_ONCE, str(starts)], 1, tmp_path / "logs")

    killed: list[int] = []

    def look() -> None:
        told = starts.read_text().split() if starts.exists() else []
        if told and not killed:
            killed.append(int(told[0]))
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.2)  # gone before the look ends

    assert workers.run(look, every=0.05) == [0]
    assert len(starts.read_text().split()) == 2


def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    workers = LocalWorkers([sys.executable, "-c", WAITS], 2, tmp_path)

    def stop_when_ready() -> None:
        logs = [tmp_path / f"worker-{place}.log" for place in (1, 2)]
        while not all(log.is_file() and "ready" in log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_ready)
    thread.start()
    start = time.monotonic()
    assert workers.run(lambda: None, every=0.1) == [128 + signal.SIGTERM] * 2
    thread.join()
    assert time.monotonic() - start < 30
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


def test_a_cluster_gets_these_lines(slurm: Path) -> None:
    executor = slurm_executor(slurm / "jobs", SlurmOptions(minutes=90, partition="gpu", gpus=2, cpus=6, memory_gb=24))
    jobs = submit(executor, worker_command(["depth", "--tier", "full"]), 1)
    assert [job.job_id for job in jobs] == ["4711"]
    lines = (slurm / "seen.sh").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"job-name=diffvit-study", "time=90", "cpus-per-task=6", "gpus-per-node=2", "mem=24GB", "nodes=1"} <= asked
    assert "partition=gpu" in asked
    assert "signal=USR2@120" in asked
    assert any(line.startswith("srun") and "submitit.core._submit" in line for line in lines)


def test_workers_run_through_submitits_own_local_executor(tmp_path: Path) -> None:
    executor = slurm_executor(tmp_path / "jobs", SlurmOptions(gpus=0), cluster="local")
    command = [sys.executable, "-c", f"open({str(tmp_path / 'made')!r}, 'a').write('x')"]
    jobs = submit(executor, command, 2)
    assert [job.result() for job in jobs] == [0, 0]
    assert (tmp_path / "made").read_text() == "xx"


@pytest.mark.timeout(180)
def test_a_study_goes_through_submitit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    local = functools.partial(slurm_executor, cluster="local")
    monkeypatch.setattr("diffvit.experiments.launchers.slurm_executor", local)
    command = ["study", "run", "pooling", "--tier", "smoke", "--workers", "2", "--device", "cpu"]
    assert run([*command, "--launcher", "slurm"]) == 0
    assert "submitted 2 jobs (" in capsys.readouterr().out
    while len(list(tmp_path.glob("runs/studies/smoke/*/result.json"))) < 4:
        time.sleep(0.2)  # the test's own time limit ends it
    assert run(["study", "report", "pooling", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == []


def test_a_job_out_of_time_is_queued_again_after_its_worker_saved(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", f"import sys; sys.stdout = open({str(tmp_path / 'out')!r}, 'w')\n{WAITS}"])
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker()))
    thread.start()
    while not (tmp_path / "out").is_file() or "ready" not in (tmp_path / "out").read_text():
        time.sleep(0.02)
    again = worker.checkpoint()
    thread.join()
    assert codes == [7]
    assert isinstance(again.function, Worker)
    assert again.function.command == worker.command


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault) as caught:
        slurm_executor(tmp_path, SlurmOptions())
    assert str(caught.value).startswith("--launcher slurm: ")
    assert "--launcher local" in str(caught.value)


def test_an_impossible_option_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--launcher slurm"):
        slurm_executor(tmp_path, SlurmOptions(minutes="long"), cluster="local")  # type: ignore[arg-type]
