"""Training into a run folder, stopping it, and going on as if nothing had happened."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import diffvit
from diffvit.cli.main import run as command
from diffvit.config import config_hash
from diffvit.data import sources
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Interrupted, RunBusyError
from diffvit.training.loop import Trainer, train
from diffvit.training.run_dir import RunDir
from tests.training.small import Recorder, full, pictures, small

TIMING = ("seconds", "images_per_second", "train_seconds", "data_seconds", "compile_seconds")


EVERYTHING = {  # on, as small as it gets: 3 steps an epoch, the last with fewer images
    **{"shapes": {"train": 50}, "validation_size": 10, "epochs": 3, "ema": 0.9, "label_smoothing": 0.1},
    "model": {"depth": 2, "drop_path": 0.2},
    "augment": {"flip": True, "crop": 2, "mixup": 0.2, "cutmix": 1.0, "erasing": 0.3, "policy": "randaugment"},
    "optimizer": {"name": "muon", "grad_clip": 1.0},
}
config = partial(small, EVERYTHING)


@pytest.fixture(autouse=True)
def _every_step_is_shown(monkeypatch):
    monkeypatch.setattr("diffvit.training.loop._SHOWN_EVERY", 0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(config(), out=tmp_path_factory.mktemp("whole") / "run")


def without_timing(values):
    return {key: value for key, value in values.items() if key not in TIMING}


def everything(run):
    """All that a run computed, without timing and whereabouts."""
    newest = max(run.checkpoints.glob("step-*"))
    tensors = {file.name: file.read_bytes() for file in newest.iterdir()}
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    return {
        "checkpoint": tensors,
        "model": (run.path / "model.safetensors").read_bytes(),
        "rows": [without_timing(row) for row in run.metrics],
        "result": without_timing(run.result),
        "evaluation": {key: value for key, value in without_timing(evaluation).items() if key != "run"},
    }


def test_what_a_run_leaves(finished):
    made = {"config.yaml", "environment.json", "evaluation.json", "metrics.jsonl", "model.safetensors", "result.json"}
    assert {path.name for path in finished.path.iterdir()} == made | {".lock", "checkpoints"}
    assert finished.config == config()
    rows = finished.metrics
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert [row["images_seen"] for row in rows] == [40, 80, 120]
    assert all(0 <= row["val_accuracy"] <= 1 and row["val_loss"] > 0 for row in rows)
    assert all(row["train_loss"] > 0 and row["gradient_norm"] > 0 and row["lr"] < row["muon_lr"] for row in rows)
    assert rows[0]["lambda"] == []
    assert sorted(path.name for path in finished.checkpoints.iterdir()) == ["step-00000006", "step-00000009"]


def test_the_result_and_what_it_ran_on(finished):
    result, facts = finished.result, finished.environment
    assert (facts["threads"], facts["processes"], facts["precision"], facts["device"]) == (1, 1, "fp32", "cpu")
    assert [facts["data"][key] for key in ("train", "validation", "test")] == [40, 10, 20]
    assert (len(facts["classes"]), len(facts["mean"]), len(facts["std"])) == (10, 3, 3)
    assert facts["torch"] == torch.__version__
    model = diffvit.load(finished.path)
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["config_hash"] == config_hash(config())
    assert (result["epochs"], result["seed"], result["attention"]) == (3, 0, "softmax")
    assert result["val_accuracy"] == finished.metrics[-1]["val_accuracy"]
    assert result["flops_per_image"] > 0
    assert result["train_seconds"] == pytest.approx(sum(row["seconds"] for row in finished.metrics))
    assert result["images_per_second"] == pytest.approx(120 / result["train_seconds"])


def test_the_model_is_the_average_where_there_is_one(finished):
    newest = max(finished.checkpoints.iterdir())
    saved, average = load_file(finished.path / "model.safetensors"), load_file(newest / "ema.safetensors")
    weights = load_file(newest / "model.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in average)
    assert not torch.equal(saved["head.weight"], weights["head.weight"])


def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(finished, tmp_path):
    again = train(config(), out=tmp_path / "again")
    assert everything(again) == everything(finished)
    other = train(config(seed=1), out=tmp_path / "other")
    assert everything(other)["rows"] != everything(finished)["rows"]


def test_a_run_stopped_by_signals_at_every_step_goes_on_bit_for_bit(finished, tmp_path):
    out = tmp_path / "run"
    for at in range(1, 10):
        number = signal.SIGTERM if at % 2 else signal.SIGINT
        progress = Recorder(at, partial(os.kill, os.getpid(), number))
        with pytest.raises(Interrupted, match=rf"after step {at} of 9.*--resume {out}") as caught:
            train(config(), out=out, resume=at > 1, progress=progress)
        assert (caught.value.exit_code, progress.closed) == (128 + number, True)
        assert progress.steps[-1]["step"] == at
        assert at == 1 or any(f"after step {at - 1}" in line for line in progress.lines)
    assert everything(train(config(), out=out, resume=True)) == everything(finished)


def test_a_signal_while_it_compiles_stops_before_the_first_step(finished, tmp_path, monkeypatch):
    def warm_up(trainer, stopped):
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        return 1.0

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "warm_up", warm_up)
        with pytest.raises(Interrupted, match=r"after step 0 of 9"):
            train(config(), out=tmp_path / "run")
    assert everything(train(config(), out=tmp_path / "run", resume=True)) == everything(finished)


class Crash(BaseException):
    """Stands for a process that is suddenly gone."""


def crash():
    raise Crash


def test_rows_later_than_the_checkpoint_are_written_again(finished, tmp_path):
    rare = config(checkpoint_every=2)
    with pytest.raises(Crash):
        train(rare, out=tmp_path / "run", progress=Recorder(4, crash))
    assert len(RunDir.open(tmp_path / "run").metrics) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
    run = train(rare, out=tmp_path / "run", resume=True)
    assert [row["epoch"] for row in run.metrics] == [1, 2, 3]
    assert everything(run) == everything(finished)


def test_a_damaged_checkpoint_is_skipped_and_said(finished, tmp_path):
    with pytest.raises(Crash):
        train(config(), out=tmp_path / "run", progress=Recorder(7, crash))
    damaged = tmp_path / "run" / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    progress = Recorder()
    run = train(config(), out=tmp_path / "run", resume=True, progress=progress)
    assert any(line.startswith("warning: ") and "step-00000006" in line for line in progress.lines)
    assert any("after step 3" in line for line in progress.lines)
    assert everything(run) == everything(finished)


def test_a_kill_in_the_final_evaluation(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("diffvit.training.loop.save_model", lambda *_: crash())
        with pytest.raises(Crash):
            train(config(), out=tmp_path / "run")
    assert not RunDir.open(tmp_path / "run").finished
    assert everything(train(config(), out=tmp_path / "run", resume=True)) == everything(finished)


def test_a_complete_run_says_so(finished, monkeypatch):
    before = everything(finished)
    monkeypatch.setattr(sources, "load", crash)
    progress = Recorder()
    run = train(config(), out=finished.path, resume=True, progress=progress)
    assert run.path == finished.path
    train(config(data_dir=finished.path / "other"), out=finished.path, resume=True, progress=progress)
    line = f"{finished.path} is complete: nothing to do"
    assert progress.lines == [line, f"{line}; {finished.path / 'other'} was not looked at"]
    assert everything(run) == before


def interrupted(tmp_path):
    with pytest.raises(Interrupted):
        train(config(), out=tmp_path / "run", progress=Recorder(4, lambda: os.kill(os.getpid(), 15)))
    return tmp_path / "run"


def test_a_resume_with_anything_else_is_refused_in_one_line(tmp_path):
    out = interrupted(tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    other = config(epochs=4, threads=2, precision="bf16", shapes={"seed": 1})
    with pytest.raises(ConfigError) as caught:
        train(other, out=out, resume=True)
    line = str(caught.value)
    for found in ("epochs 3 vs 4", "threads 1 vs 2", "precision fp32 vs bf16", "shapes.seed 0 vs 1", "fingerprint"):
        assert found in line
    assert "\n" not in line
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    facts = RunDir(out).environment
    for changed, why in (({"torch": "2.0.0"}, "torch version 2.0.0 vs"), ({"processes": 2}, "processes 2 vs 1")):
        RunDir(out).write_json("environment.json", {**facts, **changed})
        with pytest.raises(ConfigError, match=why):
            train(config(), out=out, resume=True)
    RunDir(out).write_json("environment.json", {**facts, "hardware": "another machine"})
    progress = Recorder()
    train(config(checkpoint_every=3), out=out, resume=True, progress=progress)
    assert any("another machine" in line for line in progress.lines)


def test_a_folder_decides_what_is_not_given_and_a_resume_says_which_classes_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = pictures(tmp_path / "pets", ("cat", "cow", "dog"), train=12)
    second = pictures(tmp_path / "more", ("cat", "cow", "dog"), train=40)
    plain = config().model_dump(include={"batch_size", "device", "threads", "precision"})
    sizes = config().model.model_dump(include={"image_size", "patch_size", "embed_dim", "depth", "num_heads"})
    Path("c.yaml").write_text(yaml.safe_dump({**plain, "epochs": 1, "data": "folder", "model": sizes}))
    start = ["train", "c.yaml", "--data-dir", str(first), "--out"]
    assert command([*start, "no", "--test-size", "0.3"]) == 2
    assert "test_size: has no effect: folder pets has test images of its own" in capsys.readouterr().err
    assert command([*start, "run", "--quiet"]) == 0
    assert RunDir(Path("run")).config.validation_size == 3
    more = ["train", "--continue", "run", "--data-dir", str(second), "--quiet", "--out"]
    for out, flags, size in (("on", [], 12), ("given", ["--validation-size", "3"], 3)):
        assert command([*more, out, *flags]) == 0
        assert RunDir(Path(out)).environment["data"]["validation"] == size
    pictures(second, ("eel",))
    capsys.readouterr()
    assert command([*more, "eels"]) == 2
    assert "3 vs 4 classes: cat, cow, dog, eel). Go on with its weights and a new head" in (
        line := capsys.readouterr().err
    )
    assert command([*more, "eels", *line.split(": ")[-1].split()]) == 0
    assert "head.weight" in RunDir(Path("eels")).environment["init_from"]["fresh"]
    assert command(["train", "--resume", "run", "--data-dir", str(second)]) == 0
    assert f"{second} was not looked at" in capsys.readouterr().out
    Path("run/result.json").unlink()
    (first / "train" / "cow").rename(first / "train" / "hen")
    (first / "test" / "cow").rename(first / "test" / "hen")
    pictures(first, ("ant",))
    assert command(["train", "--resume", "run"]) == 2
    assert (
        "folder pets: has other classes than when the run began (new: ant, hen; gone: cow)" in capsys.readouterr().err
    )


def test_a_resume_keeps_the_recorded_channel_statistics(tmp_path):
    out = interrupted(tmp_path)
    facts = RunDir(out).environment
    recorded = [value + 1e-6 for value in facts["mean"]]
    RunDir(out).write_json("environment.json", {**facts, "mean": recorded})
    run = train(config(), out=out, resume=True)
    assert run.environment["mean"] == recorded
    assert json.loads((run.path / "evaluation.json").read_text())["accuracy"] == diffvit.evaluate(run)["accuracy"]


def test_a_full_disk_damages_nothing(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(Crash):
        train(config(), out=out, progress=Recorder(7, crash))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match=r"no space left on device.*--resume"):
            train(config(), out=out, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train(config(), out=out, resume=True).finished


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            EnvironmentFault,
            "memory: is used up.*smaller batch_size or a larger accumulate",
        ),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_no_memory_is_one_clear_line_and_other_faults_stay_what_they_are(tmp_path, error, kind, why):
    def fail():
        raise error

    with pytest.raises(kind, match=why):
        train(config(), out=tmp_path / "run", progress=Recorder(1, fail))


def test_differential_attention_records_its_lambdas(tmp_path):
    run = train(config(epochs=1, ema=0.0, model={"attention": "differential"}), out=tmp_path / "run")
    assert run.metrics[0]["lambda"] == pytest.approx([0.2, 0.3555], abs=0.2)
    assert run.result["attention"] == "differential"
    assert diffvit.load(run.path).lambdas() == run.metrics[0]["lambda"]


def test_data_that_fell_back_and_is_not_validated_in_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "resolve_auto", lambda *_, **__: "shapes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffvit.training.environment.missed", lambda *_: "slower than it could be")
    progress, chosen = Recorder(), config(data="auto", epochs=1, seed=5, validation_size=0)
    run = train(chosen, progress=progress)
    assert (run.path.parent.name, run.path.name) == ("runs", f"auto-softmax-{config_hash(chosen)}-s5")
    assert "CIFAR-10 was not found: training on the built-in shapes" in progress.lines[0]
    assert progress.lines[1].startswith("data: shapes")
    assert "50 to train" in progress.lines[1]
    assert progress.lines[2] == "slower than it could be"
    assert progress.started[:2] == (4, 1)
    assert "ViT of" in progress.started[2]
    assert progress.closed
    row = run.metrics[0]
    assert (row["val_loss"], row["val_accuracy"], run.result["val_accuracy"]) == (None, None, None)
    assert (row["images_seen"], row["step"], run.environment["data"]["validation"]) == (50, 4, 0)
    assert run.result["data"].startswith("shapes")


@pytest.mark.parametrize(("damage", "why"), [(None, "too few images to test"), (b"not an image", "is not an image")])
def test_what_the_end_needs_is_checked_before_the_first_step(tmp_path, damage, why):
    pictures(tmp_path / "photos", "ab", test=1 if damage else 0)
    if damage:
        (tmp_path / "photos" / "test" / "b" / "0.png").write_bytes(damage)
    given = {"data": "folder", "data_dir": str(tmp_path / "photos"), "validation_size": 0, "model": {"num_classes": 2}}
    progress = Recorder()
    with pytest.raises(InputError, match=why):
        train(config(**given), out=tmp_path / "runs" / "run", progress=progress)
    assert progress.started is None
    assert not (tmp_path / "runs").exists()


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def stop(*_, **__):
    raise KeyboardInterrupt


REFUSED = {
    "no such data": (InputError, {"data": "cifar10", "data_dir": "/nowhere"}, "no such data folder"),
    "data without a place": (InputError, {"data": "folder"}, "data_dir"),
    "too much kept apart": (InputError, {"validation_size": 50}, "leaves nothing to train on"),
    "classes": (ConfigError, {"model": {"num_classes": 7}}, "7 vs 10 classes.*set it to 10"),
    "channels": (InputError, {"model": {"in_chans": 2}}, "2 channels .found 3, allowed 1 and 3"),
    "memory": (EnvironmentFault, {}, "is used up"),
    "device": (EnvironmentFault, {"device": "cuda"}, "no CUDA device"),
    "Ctrl-C": (KeyboardInterrupt, {}, None),
}


@pytest.mark.parametrize("where", ["new/deep/run", "empty", "begun"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_start_leaves_nothing(tmp_path, monkeypatch, case, where):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)  # as a process that was killed leaves it
    (tmp_path / "begun" / ".lock").touch()
    before = set(contents(tmp_path))
    kind, changes, why = REFUSED[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if case == "memory":
        monkeypatch.setattr(Trainer, "__init__", lambda *_: (_ for _ in ()).throw(MemoryError()))
    if case == "Ctrl-C":
        monkeypatch.setattr(sources, "load", stop)
    with pytest.raises(kind, match=why):
        train(config(**changes), out=tmp_path / where)
    assert set(contents(tmp_path)) == before


def test_a_refused_start_leaves_what_was_there(finished, tmp_path):
    run = RunDir(shutil.copytree(finished.path, tmp_path / "run"))
    (run.path / "result.json").unlink()
    (run.path / ".lock").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear to somebody")
    before = contents(tmp_path)
    for kind, out, resume, changes in [
        (InputError, "other", False, {}),
        (InputError, "run", False, {}),
        (InputError, "other", True, {}),
        (ConfigError, "run", True, {"epochs": 4}),
        (InputError, "other/thesis.tex", False, {}),
    ]:
        with pytest.raises((kind, EnvironmentFault)):
            train(config(**changes), out=tmp_path / out, resume=resume)
        assert contents(tmp_path) == before
    with RunDir(tmp_path / "busy").lock():
        before = contents(tmp_path)
        with pytest.raises(RunBusyError):
            train(config(), out=tmp_path / "busy")
        assert contents(tmp_path) == before
    train(config(), out=run.path, resume=True)
