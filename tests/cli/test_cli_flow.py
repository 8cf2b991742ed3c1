"""A newcomer's session on a tiny model: train twice, evaluate, predict, compare, stop and go on."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.cells import cell_len

from diffvit.app.images import TestImages
from diffvit.app.models import Models, list_models
from diffvit.cli import show
from diffvit.cli.main import run
from diffvit.config import merge, parse
from diffvit.files import read_csv
from diffvit.training.run_dir import RunDir
from tests.training.small import SMALL, Recorder, pictures

TINY = merge(SMALL, {"validation_size": 20, "batch_size": 20, "shapes": {"train": 60}})


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A folder with tiny.yaml and the finished runs of both models."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", "tiny.yaml", "--quiet"]) == 0
        patch.setattr("diffvit.reporting.render.run_report", plain_report)
        assert run(["train", "tiny.yaml", "--quiet", "--model.attention", "differential", "--out", "runs/twin"]) == 0
    return folder


def plain_report(run):
    """Stands in for the real report, which takes a second to draw."""
    path = run.path / "report.html"
    path.write_text("a report")
    return path


@pytest.fixture(autouse=True)
def _in_the_session(session, monkeypatch):
    monkeypatch.chdir(session)
    monkeypatch.setattr("diffvit.reporting.render.run_report", plain_report)


def succeeds(command, capsys):
    """Standard output of a command that must succeed without a word on standard error."""
    code = run(command)
    out, err = capsys.readouterr()
    assert err == ""
    assert code == 0
    return out


def last_json(out):
    return json.loads(out.splitlines()[-1])


def test_training_leaves_a_run_with_curves_and_a_report_in_a_folder_named_after_it():
    names = {path.name for path in Path("runs/shapes-softmax-s0").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "model.safetensors", "result.json", "curves.png", "report.html"} <= names
    assert "data:image/png" in Path("runs/shapes-softmax-s0/report.html").read_text()
    assert RunDir.open("runs/shapes-softmax-s0").config == parse(TINY)
    assert RunDir.open("runs/twin").config.model.attention == "differential"


def test_training_says_what_came_out_and_what_to_try_next(capsys):
    out = succeeds(["train", "tiny.yaml", "--model.pool", "mean", "--out", "runs/spoken", "--json"], capsys)
    result = last_json(out)
    assert result["run"] == "runs/spoken"
    assert Path(result["report"]).is_file()
    assert result["test_accuracy"] == RunDir.open("runs/spoken").result["test_accuracy"]
    for words in ("epoch 1/1", "test accuracy", "run folder     runs/spoken", "report         runs/spoken/report.html"):
        assert words in out
    assert "diffvit train runs/spoken/config.yaml --model.attention differential --out runs/spoken-differential" in out


def test_a_taken_name_gets_a_number_and_many_processes_must_be_given_one(monkeypatch, capsys):
    out = succeeds(["train", "tiny.yaml", "--quiet", "--json"], capsys)
    assert len(out.splitlines()) == 1
    assert last_json(out)["run"] == "runs/shapes-softmax-s0-2"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", "tiny.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: --out: is needed when several processes train together.")


def test_flags_beat_variables_and_variables_beat_the_file(monkeypatch, capsys):
    monkeypatch.setenv("DIFFVIT_MODEL__DEPTH", "2")
    monkeypatch.setenv("DIFFVIT_SEED", "5")
    flags = ["--seed", "3", "--model.no-qkv-bias", "--augment.flip", "--optimizer.name", "muon"]
    succeeds(["train", "tiny.yaml", *flags, "--out", "runs/layers", "--quiet"], capsys)
    given = {"seed": 3, "augment": {"flip": True}, "optimizer": {"name": "muon"}}
    assert RunDir.open("runs/layers").config == parse(
        {**TINY, **given, "model": {**TINY["model"], "depth": 2, "qkv_bias": False}}
    )


def test_evaluate_shows_the_figures_and_every_class(capsys):
    out = succeeds(["evaluate", "runs/twin", "--json"], capsys)
    found = last_json(out)
    assert found["accuracy"] == RunDir.open("runs/twin").result["test_accuracy"]
    assert {"top5", "calibration_error", "per_class_accuracy", "confusion", "flops_per_image"} <= set(found)
    for word in ("accuracy", "top-5", "calibration error", "images/s", *found["classes"]):
        assert word in out
    validation = last_json(succeeds(["evaluate", "runs/twin", "--split", "validation", "--json"], capsys))
    assert (validation["split"], validation["images"]) == ("validation", 20)


def test_figures_are_printed_where_the_run_folder_cannot_be_written(capsys):
    Path("runs/twin/.evaluation.json.tmp").mkdir()  # as in a read-only folder, also for root
    code = run(["evaluate", "runs/twin", "--json"])
    Path("runs/twin/.evaluation.json.tmp").rmdir()
    out, err = capsys.readouterr()
    assert last_json(out)["accuracy"] == RunDir.open("runs/twin").result["test_accuracy"]
    assert "balanced accuracy" in out
    assert err.startswith("error: runs/twin/evaluation.json: cannot be written (is a directory).")
    assert (code, err.count("\n")) == (4, 1)


def test_few_numbered_folders_have_no_top_5_and_are_listed_as_people_count(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "set", ("1", "2", "10", "100"), 5, 5)
    few = {**TINY, "data": "folder", "data_dir": "set", "validation_size": 0}
    Path("few.yaml").write_text(yaml.safe_dump({**few, "model": {**TINY["model"], "num_classes": 4}}))
    succeeds(["train", "few.yaml", "--out", "few", "--quiet"], capsys)
    assert RunDir.open("few").result["test_top5"] is None

    def listed(out):
        return [line.split()[1] for line in out.splitlines() if line.startswith("│")]

    out = succeeds(["evaluate", "few", "--json"], capsys)
    assert listed(out) == ["1", "2", "10", "100"]
    assert last_json(out)["classes"] == ["1", "10", "100", "2"]
    assert "top-5" not in out
    out = succeeds(["data", "info", "folder", "--data-dir", "set", "--image-size", "16"], capsys)
    assert listed(out) == ["1", "2", "10", "100"]
    out = succeeds(["compare", "few", "--out", "seen"], capsys)
    assert "top-5" not in out
    page = Path("seen/report.md").read_text()
    assert "Top-5" not in page
    assert page.index("| 2 |") < page.index("| 10 |") < page.index("| 100 |")


def test_predict_names_the_likeliest_classes_of_every_image(capsys, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(show, "Lines", lambda what: lambda done, total: shown.append((what, done, total)))
    files = [tmp_path / "red [1].png", tmp_path / "blue.jpg"]
    for file, colour in zip(files, ("red", "blue"), strict=True):
        Image.new("RGB", (40, 30), colour).save(file)
    out = succeeds(["predict", "runs/twin", *map(str, files), "--json"], capsys)
    found = last_json(out)["images"]
    assert [image["image"] for image in found] == [str(file) for file in files]
    for image in found:
        chances = [chance for _, chance in image["top"]]
        assert len(chances) == 5
        assert chances == sorted(chances, reverse=True)
    assert "red [1].png" in out
    found = last_json(succeeds(["predict", "runs/twin", str(files[0]), "--top", "2", "--json"], capsys))["images"]
    assert len(found[0]["top"]) == 2
    succeeds(["predict", "runs/twin", *map(str, files), "--quiet"], capsys)
    assert shown == []
    succeeds(["predict", "runs/twin", *map(str, files)], capsys)
    assert shown == [("images", 2, 2)]


def test_predict_takes_folders_and_patterns_writes_a_table_and_names_bad_files_last(capsys, tmp_path):
    name = "a long name with blanks " * 4
    for file, colour in ((tmp_path / "d" / "e" / f"{name}.png", "red"), (tmp_path / "d" / "blue.jpg", "blue")):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(file)
    (tmp_path / "d" / "bad.png").write_text("no image")
    for suffix in ("csv", "jsonl"):
        out = tmp_path / "new" / f"found.{suffix}"
        assert run(["predict", "runs/twin", str(tmp_path / "d"), f"{tmp_path}/*.gif", "--out", str(out), "--json"]) == 3
        said, errors = capsys.readouterr()
        assert len(errors.splitlines()) == 3
        assert errors.startswith(f"error: {tmp_path}/d/bad.png: ")
        found = last_json(said)
        assert [Path(each["image"]).stem for each in found["images"]] == ["blue", name]
        assert [Path(each["image"]).name for each in found["bad"]] == ["bad.png", "*.gif"]
        lines = [line for line in said.splitlines() if line.startswith("│")]
        assert len(lines) == 2
        assert "…" in lines[1]
        rows = read_csv(out) if suffix == "csv" else [json.loads(line) for line in out.read_text().splitlines()]
        for row, image in zip(rows, found["images"], strict=True):
            pairs = [[row[f"class_{rank}"], row[f"probability_{rank}"]] for rank in range(1, 6)]
            assert (row["image"], pairs) == (image["image"], image["top"])
    assert run(["predict", "runs/twin", str(tmp_path / "d"), "--out", "a.txt"]) == 2


@pytest.mark.parametrize("width", [30, 60, 140])
def test_a_table_of_long_names_is_never_wrapped(width, capsys, monkeypatch):
    monkeypatch.setattr(show, "_WIDE", width)
    rows = [["/".join(["文件夹", "folder"] * count), *["class 12.3%"] * 5] for count in range(1, 20)]
    show.one_line_table(["image", *"12345"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("│") for line in lines) == len(rows)
    assert all(cell_len(line) <= width for line in lines[:-1])


def test_compare_shows_the_runs_side_by_side_and_writes_a_report(capsys):
    out = succeeds(["compare", "runs/shapes-softmax-s0", "runs/twin", "--out", "compared", "--json"], capsys)
    found = last_json(out)
    assert [row["attention"] for row in found["rows"]] == ["softmax", "differential"]
    assert Path(found["report"]) == Path("compared/report.html")
    assert Path("compared/report.html").is_file()
    accuracy = f"{found['rows'][0]['test_accuracy']:.2%} ("
    for word in ("Diff-ViT", "Test accuracy", accuracy, "report  compared/report.html"):
        assert word in out


def test_ctrl_c_says_how_to_go_on_and_so_it_goes(monkeypatch, capsys):
    interrupt = partial(signal.raise_signal, signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr("diffvit.training.progress.make_progress", lambda quiet: Recorder(epoch=1, action=interrupt))
        assert run(["train", "tiny.yaml", "--epochs", "2", "--out", "runs/stopped"]) == 130
    err = capsys.readouterr().err
    assert err.startswith("error: runs/stopped: stopped by Ctrl-C")
    assert "diffvit train --resume runs/stopped" in err
    assert err.count("\n") == 1

    assert run(["train", "--resume", "runs/stopped", "--epochs", "3", "--model.depth", "2"]) == 2
    err = capsys.readouterr().err
    assert "(began with vs asked for: epochs 2 vs 3, model.depth 1 vs 2)" in err
    monkeypatch.setenv("DIFFVIT_EPOCHS", "5")
    assert run(["train", "--resume", "runs/stopped"]) == 2
    assert "epochs 2 vs 5" in capsys.readouterr().err
    monkeypatch.delenv("DIFFVIT_EPOCHS")

    same = ["--epochs", "2", "--checkpoint-every", "2", "--out", "runs/stopped", "--device", "cpu"]
    out = succeeds(["train", "--resume", "runs/stopped", *same, "--json"], capsys)
    assert last_json(out)["epochs"] == 2
    assert [row["epoch"] for row in RunDir.open("runs/stopped").metrics] == [1, 2]
    assert run(["train", "tiny.yaml", "--resume", "runs/twin"]) == 2  # also a finished run keeps its settings
    assert "model.attention differential vs softmax" in capsys.readouterr().err


def test_a_run_that_is_there_held_or_not_finite_has_its_line_and_code(capsys):
    burst = ["--optimizer.lr", "1e30", "--schedule.warmup", "0", "--epochs", "3", "--out", "runs/burst", "--quiet"]
    with RunDir.open("runs/twin").lock():
        held = run(["train", "--resume", "runs/twin"])
    assert (held, run(["train", "tiny.yaml", "--out", "runs/twin"]), run(["train", "tiny.yaml", *burst])) == (6, 3, 5)
    busy, there, burst_ = capsys.readouterr().err.splitlines()
    assert busy.startswith("error: runs/twin: another process")
    assert there.startswith("error: runs/twin: already holds a run.")
    assert "diffvit train --resume runs/twin" in there
    assert "loss or gradient is not finite" in burst_
    assert "--optimizer.lr" in burst_
    assert not RunDir.open("runs/burst").finished


def test_the_next_command_of_a_run_whose_twin_is_there_compares_them(session, capsys):
    for old, new in (("runs/shapes-softmax-s0", "runs/pair"), ("runs/twin", "runs/pair-differential")):
        shutil.copytree(old, new)
    out = succeeds(["train", "--resume", "runs/pair"], capsys)
    assert "diffvit compare runs/pair runs/pair-differential" in out


@pytest.fixture(scope="module")
def photos(session):
    """A folder with photos/ of two classes, and runs/photos, trained on them by a relative path."""
    place = session / "apart"
    pictures(place / "photos", ("dark", "light"), 8, 4)
    (place / "cifar").mkdir()
    flags = ["--data", "folder", "--data-dir", "photos", "--validation-size", "0", "--model.num-classes", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("diffvit.reporting.render.run_report", plain_report)
        patch.setenv("DIFFVIT_DATA", "cifar")
        assert run(["train", "../tiny.yaml", *flags, "--out", "runs/photos", "--quiet"]) == 0
    return place


def test_a_run_on_a_folder_keeps_it_whatever_the_variable_says(photos, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained, accuracy = photos / "runs" / "photos", RunDir(photos / "runs" / "photos").result["test_accuracy"]
    assert RunDir.open(trained).config.data_dir == photos / "photos"
    for variable in (str(photos / "cifar"), ""):
        monkeypatch.setenv("DIFFVIT_DATA", variable)
        found = last_json(succeeds(["evaluate", str(trained), "--json"], capsys))
        assert (found["accuracy"], found["images"], found["data"]) == (accuracy, 8, "folder photos")
        assert len(TestImages(Models(list_models([str(trained)])), None).images("photos")) == 8
    monkeypatch.setenv("DIFFVIT_DATA", str(photos / "cifar"))
    succeeds(["attention", str(trained), "--index", "0", "--out", "looked"], capsys)
    monkeypatch.setenv("DIFFVIT_DATA", "")
    succeeds(["train", str(trained / "config.yaml"), "--out", "again", "--quiet"], capsys)
    assert RunDir.open("again").result["test_accuracy"] == accuracy
    assert run(["evaluate", str(trained), "--data-dir", str(photos / "cifar")]) == 3  # the flag says otherwise
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_before_with_a_relative_folder_still_loads(photos, monkeypatch, capsys, tmp_path):
    old = Path(shutil.copytree(photos / "runs" / "photos", tmp_path / "old"))
    written = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(written.replace(str(photos / "photos"), "photos"))
    monkeypatch.chdir(photos)
    found = last_json(succeeds(["evaluate", str(old), "--json"], capsys))
    assert found["accuracy"] == RunDir(old).result["test_accuracy"]
