"""docs/extending.md, run: its files as they stand there, its commands with a smaller model and fewer images."""

from __future__ import annotations

import csv
import json
import re
import shlex
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILES = {
    name: text
    for text, name in re.findall(r"```(?:python|yaml)\n(# (\S+\.(?:py|yaml))\n.*?)```", PAGE.read_text(), re.S)
}
COMMANDS = [
    line
    for block in re.findall(r"```\n(diffvit .*?)```", PAGE.read_text(), re.S)
    for line in block.strip().splitlines()
]
SMALL = "--model.embed-dim 32 --model.depth 2 --model.num-heads 4 --shapes.train 200 --shapes.test 100"
SMALL += " --validation-size 0 --threads 1"  # the suite runs one worker per core

pytestmark = pytest.mark.system


def started(folder: Path, command: str) -> ForkServerProcess:
    """A process with a command of the page; it prints into the folder's log."""
    words = shlex.split(command)[1:]
    words += shlex.split(SMALL) if words[0] == "train" and "--resume" not in words else []
    return forked.start(forked.diffvit, *words, folder=folder, log=folder / "log")


def diffvit(folder: Path, command: str, code: int = 0) -> str:
    """Run a command of the page; returns what it printed."""
    (folder / "log").write_bytes(b"")
    found = forked.finish(started(folder, command))
    said = (folder / "log").read_text()
    assert found == code, said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, and the runs of its commands."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for command in COMMANDS:
        if not command.startswith("diffvit app"):
            diffvit(folder, command)
    return folder


def test_the_page_has_its_files_and_commands() -> None:
    assert set(FILES) == {
        *("my_study.yaml", "my_metric.yaml"),
        *(f"my_{each}.py" for each in ("attention", "position", "data", "augmentation", "metric")),
    }
    assert all(text.count("\n") < 60 for text in FILES.values())
    used = {command.split()[1] for command in COMMANDS}
    assert used == {"train", "evaluate", "compare", "attention", "app", "study", "data"}


def test_the_attention_is_in_the_run_the_comparison_and_the_study(folder: Path) -> None:
    run = folder / "runs" / "temperature"
    assert "attention: temperature" in (run / "config.yaml").read_text()
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    assert "Temperature ViT" in (folder / "comparison" / "report.md").read_text()
    assert len(list((folder / "maps").glob("*-overlay.png"))) == 2
    with (folder / "reports" / "my_study" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["attention"] for row in rows} == {"softmax", "temperature"}
    assert "Temperature ViT" in (folder / "reports" / "my_study" / "report.md").read_text()


def test_the_metric_is_in_the_runs_the_rows_and_the_report(folder: Path) -> None:
    report = folder / "reports" / "my_metric"
    with (report / "rows.csv").open() as file, (report / "classes.csv").open() as table:
        rows, classes = list(csv.DictReader(file)), list(csv.DictReader(table))
    scores = [json.loads(path.read_text()) for path in (folder / "runs" / "studies").rglob("worst-class.json")]
    assert sorted(float(row["score.worst_class"]) for row in rows) == sorted(each["worst_class"] for each in scores)
    assert len(rows) == len(scores) == 2
    assert len(classes) == sum(len(each["classes"]) for each in scores)
    assert "worst-class" in (report / "report.md").read_text()


def test_killed_and_resumed_it_is_the_same_to_the_bit(folder: Path) -> None:
    longer = COMMANDS[0].replace("--epochs 2", "--epochs 6")
    diffvit(folder, longer.replace("runs/temperature", "runs/whole"))
    process = started(folder, longer.replace("runs/temperature", "runs/killed"))
    metrics = folder / "runs" / "killed" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (folder / "runs" / "killed" / "result.json").exists()
    diffvit(folder, "diffvit train --resume runs/killed --plugin my_attention.py")
    whole, killed = (load_file(folder / "runs" / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_without_the_plugin_its_name_is_missed(folder: Path) -> None:
    for command in ("evaluate runs/temperature", "attention runs/temperature --index 0"):
        said = diffvit(folder, f"diffvit {command}", code=3)
        assert "'temperature'" in said
        assert "--plugin" in said
        assert said.count("\n") == 1
