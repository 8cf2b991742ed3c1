"""Kills at any moment, also inside a save: what comes out is what would have come out."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffvit.config import Config, parse, to_yaml
from diffvit.training.run_dir import RunDir

pytestmark = pytest.mark.system
TIMING = ("seconds", "images_per_second", "train_seconds", "data_seconds", "compile_seconds")

# One process that trains: from the start where nothing is, else from where the run stands. It writes "ready" before
# the first step. KILL_AT_FLUSH=n: it kills itself just before it flushes for the n-th time, between two files.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from diffvit.config import resolve
from diffvit.errors import DiffvitError
from diffvit.training.loop import train

left, real = int(os.environ.get("KILL_AT_FLUSH", "0")), os.fsync
def flush(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = flush
out = Path(sys.argv[2])
try:
    resume = (out / "config.yaml").exists()
    train(resolve(Path(sys.argv[1])), out=out, resume=resume, on_ready=lambda run: print("ready", flush=True))
except DiffvitError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def config(**changes: object) -> Config:
    """Small, with everything on that could remember something between steps."""
    return parse(
        {
            "data": "shapes",
            "shapes": {"train": 700, "test": 40, "size": 16},
            "validation_size": 40,
            "epochs": 12,
            "batch_size": 32,
            "accumulate": 2,
            "ema": 0.95,
            "whiten": True,
            "threads": 1,
            "label_smoothing": 0.1,
            "model": {
                **{"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
                **{"attention": "differential", "drop_path": 0.2, "pos_embed": "sincos-2d+rope-2d"},
            },
            "augment": {
                **{"flip": True, "crop": 2, "color_jitter": 0.2, "policy": "randaugment", "erasing": 0.3},
                **{"mixup": 0.2, "cutmix": 1.0},
            },
            "optimizer": {"name": "muon", "split_qkv": True, "grad_clip": 1.0},
            **changes,
        }
    )


def start(file: Path, out: Path, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(file), str(out)]
    return subprocess.Popen(
        command, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> int:
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def everything(out: Path) -> dict[str, object]:
    """All that a finished run computed, without timing."""
    run = RunDir.open(out)
    newest = max(run.checkpoints.glob("step-*"))
    plain = [{key: value for key, value in row.items() if key not in TIMING} for row in [*run.metrics, run.result]]
    files = {file.name: file.read_bytes() for file in newest.iterdir()}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "progress.json"} < files.keys()
    return {"files": files, "figures": plain, "model": (run.path / "model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """The config's file, a run that nobody stopped, and how long its training took, seconds."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text(to_yaml(config()))
    process = start(folder / "config.yaml", folder / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert finish(process) == 0
    return folder / "config.yaml", folder / "run", time.monotonic() - began


def test_twenty_kills_at_random_moments_change_no_bit(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    file, uninterrupted, seconds = whole
    expected, moments = everything(uninterrupted), random.Random(20)
    kills, stood, outs = 0, set(), [tmp_path / "run0"]
    while kills < 20 or not RunDir(outs[-1]).finished:
        if RunDir(outs[-1]).finished:  # it was quicker than the kills: go on with another
            outs.append(tmp_path / f"run{len(outs)}")
        process = start(file, outs[-1])
        assert process.stdout is not None
        if kills < 20:
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 1.6 * seconds / 12))  # up to 1.6 epochs
            process.kill()
        killed = finish(process) == -signal.SIGKILL
        kills += killed
        if killed:
            stood.add(max((path.name for path in RunDir(outs[-1]).checkpoints.glob("step-*")), default="none"))
    assert kills == 20
    assert len(stood) > 3, f"the kills all fell on the same place: {stood}"
    for out in outs:
        assert everything(out) == expected


def test_kills_between_any_two_files_of_a_save_change_no_bit(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    file, uninterrupted, _ = whole
    out = tmp_path / "run"
    # A fresh run flushes config.yaml and environment.json (two each), then per epoch: its row, five files of the
    # checkpoint, the checkpoint's folder, the folder above.
    for flush in (1, 3, *range(5, 13), 2, 7):
        process = start(file, out, KILL_AT_FLUSH=str(flush))
        assert finish(process) == -signal.SIGKILL
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert any(name.startswith("step-") for name in names)
    assert finish(start(file, out)) == 0
    assert everything(out) == everything(uninterrupted)
    assert len(list((out / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_exits_with_its_signals_code(whole: tuple[Path, Path, float], tmp_path: Path, number: int):
    file, uninterrupted, _ = whole
    process = start(file, tmp_path / "run")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1
    assert f"diffvit train --resume {tmp_path}/run" in errors
    assert finish(start(file, tmp_path / "run")) == 0
    assert everything(tmp_path / "run") == everything(uninterrupted)


def test_a_second_process_is_kept_out(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    first = start(whole[0], tmp_path / "run")
    assert first.stdout is not None
    first.stdout.readline()
    second = start(whole[0], tmp_path / "run")
    _, errors = second.communicate(timeout=600)
    assert second.returncode == 6
    assert f"another process is training here (process {first.pid})" in errors
    first.kill()
    first.communicate(timeout=60)


def test_a_full_disk_stops_with_one_line_and_damages_nothing(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses in the middle of a write."""
    file, uninterrupted, _ = whole
    out = tmp_path / "run"
    process = start(file, out)
    assert process.stdout is not None
    process.stdout.readline()
    while not any((out / "checkpoints").glob("step-*")):
        time.sleep(0.05)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 4
    assert errors.count("\n") == 1
    assert "cannot be written (file too large)" in errors
    assert json.loads((max((out / "checkpoints").glob("step-*")) / "manifest.json").read_bytes())["format"] == 1
    assert finish(start(file, out)) == 0
    assert everything(out) == everything(uninterrupted)
