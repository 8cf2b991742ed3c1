"""Kills at any moment, also inside a save: what comes out is what would have come out."""

import itertools
import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest

from diffvit.config import Config, parse, resolve, to_yaml
from diffvit.errors import DiffvitError
from diffvit.training.loop import train
from diffvit.training.run_dir import RunDir

pytestmark = pytest.mark.system
EPOCHS = 8
TIMING = ("seconds", "images_per_second", "train_seconds", "data_seconds", "compile_seconds")


def train_once(file: Path, out: Path, ready: Any, kill_at_flush: int) -> None:
    """Train from the start where nothing is, else from where the run stands; ``ready`` is set before the first step.

    It kills itself just before it flushes for the given time, counted from 1: between two files.
    """
    flushes, real = itertools.count(1), os.fsync

    def flush(handle: int) -> None:
        if next(flushes) == kill_at_flush:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = flush
    try:
        resume = (out / "config.yaml").exists()
        train(resolve(file), out=out, resume=resume, on_ready=lambda run: ready.set())
    except DiffvitError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def config(**changes: object) -> Config:
    """Small, with everything on that could remember something between steps."""
    return parse(
        {
            "data": "shapes",
            "shapes": {"train": 380, "test": 40, "size": 16},
            "validation_size": 40,
            "epochs": EPOCHS,
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


@dataclass
class Training:
    """A process that trains; its log has what it says."""

    file: Path
    out: Path
    kill_at_flush: int = 0

    def __post_init__(self) -> None:
        self.ready, self.log = forked.Event(), self.out.with_suffix(".log")
        self.log.unlink(missing_ok=True)
        arguments = (self.file, self.out, self.ready, self.kill_at_flush)
        self.process = forked.start(train_once, *arguments, folder=self.out.parent, log=self.log)

    def wait_until_ready(self) -> None:
        assert self.ready.wait(120), self.log.read_text()

    def finish(self, *codes: int) -> int:
        """Wait for its end with one of these exit codes, by default 0."""
        code = forked.finish(self.process)
        assert code in (codes or (0,)), self.log.read_text()
        return code


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
    training = Training(folder / "config.yaml", folder / "run")
    training.wait_until_ready()
    began = time.monotonic()
    training.finish()
    return folder / "config.yaml", folder / "run", time.monotonic() - began


def test_twenty_kills_at_random_moments_change_no_bit(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    file, uninterrupted, seconds = whole
    expected, moments = everything(uninterrupted), random.Random(20)
    kills, stood, outs = 0, set(), [tmp_path / "run0"]
    while kills < 20 or not RunDir(outs[-1]).finished:
        if RunDir(outs[-1]).finished:  # it was quicker than the kills: go on with another
            outs.append(tmp_path / f"run{len(outs)}")
        training = Training(file, outs[-1])
        if kills < 20:
            training.wait_until_ready()
            time.sleep(moments.uniform(0.0, 3 * seconds / EPOCHS))  # up to three epochs; the first takes longest
            training.process.kill()
        killed = training.finish(0, -signal.SIGKILL) == -signal.SIGKILL
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
        Training(file, out, kill_at_flush=flush).finish(-signal.SIGKILL)
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert any(name.startswith("step-") for name in names)
    Training(file, out).finish()
    assert everything(out) == everything(uninterrupted)
    assert len(list((out / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_exits_with_its_signals_code(whole: tuple[Path, Path, float], tmp_path: Path, number: int):
    file, uninterrupted, seconds = whole
    training = Training(file, tmp_path / "run")
    training.wait_until_ready()
    time.sleep(seconds / EPOCHS)
    os.kill(training.process.pid, number)
    training.finish(128 + number)
    errors = training.log.read_text()
    assert errors.count("\n") == 1
    assert f"diffvit train --resume {tmp_path}/run" in errors
    Training(file, tmp_path / "run").finish()
    assert everything(tmp_path / "run") == everything(uninterrupted)


def test_a_second_process_is_kept_out(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    first = Training(whole[0], tmp_path / "run")
    first.wait_until_ready()
    second = Training(whole[0], tmp_path / "run")
    second.finish(6)
    assert f"another process is training here (process {first.process.pid})" in second.log.read_text()
    first.process.kill()
    first.process.join(60)


def test_a_full_disk_stops_with_one_line_and_damages_nothing(whole: tuple[Path, Path, float], tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses in the middle of a write."""
    file, uninterrupted, _ = whole
    out = tmp_path / "run"
    training = Training(file, out)
    while not any((out / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    training.finish(4)
    errors = training.log.read_text()
    assert errors.count("\n") == 1
    assert "cannot be written (file too large)" in errors
    assert json.loads((max((out / "checkpoints").glob("step-*")) / "manifest.json").read_bytes())["format"] == 1
    Training(file, out).finish()
    assert everything(out) == everything(uninterrupted)
