"""ImageNet's validation layout in full, as commands that are killed on their way: counts of both models in float64."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_layout import counted, imagenet_layout
from torch import Tensor

from diffvit.clip.shifts import KINDS
from diffvit.training.memory import keep_freed_memory
from tools.clip import COMPARISONS, published

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
CLIP = [sys.executable, "-m", "diffvit.cli.main", "clip"]
BOTH = ["--weights", "clip.pt", "--supervised", "tv-v2", "--supervised-weights", "resnet.pth", "--templates", "single"]


@dataclass(frozen=True)
class Expected:
    folder: Path
    models: list[Tensor]


@pytest.fixture(scope="module", autouse=True)
def _every_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    keep_freed_memory()
    folder = tmp_path_factory.mktemp("imagenet")
    return Expected(folder, imagenet_layout(folder))


def killed_on_its_way(command: list[str], folder: Path, cache: str, rows: str, parts: int) -> int:
    """The command, killed when so many parts of rows were kept; how many there then were."""
    started = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder, cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 600
    while len(kept := list((folder / cache).glob(f"diffvit/clip/*/{rows}"))) < parts:
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    assert started.wait(timeout=60) == -signal.SIGKILL
    assert started.stderr is not None
    started.stderr.close()
    return len(kept)


def finished(command: list[str], folder: Path, cache: str) -> Any:
    """What the command says as JSON."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, cache), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def environment(folder: Path, cache: str) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / cache)}


def copied(folder: Path, name: str, every: int, most: int) -> list[int]:
    """A folder of every so-manieth class, so many at most, and which these are."""
    classes = sorted((folder / "val").iterdir())
    chosen = list(range(0, len(classes), every))[:most]
    for label in chosen:
        shutil.copytree(classes[label], folder / name / classes[label].name)
    return chosen


@pytest.fixture(scope="module")
def evaluated(expected: Expected) -> tuple[int, Any]:
    """How many parts were kept when the evaluation was killed, and what it says when it is run again."""
    command = [*CLIP, "evaluate", "val", *BOTH, "--json"]
    parts = killed_on_its_way(command, expected.folder, "cache", "00000?-*.rows", 2)
    return parts, finished(command, expected.folder, "cache")


def test_a_killed_evaluation_of_imagenets_layout_counts_as_float64(
    expected: Expected, evaluated: tuple[int, Any]
) -> None:
    for logs in expected.models:
        assert len(set(logs.argmax(1).tolist())) >= 5
    parts, found = evaluated
    assert (found["images"], found["unreadable"], found["labels_computed"]) == (1000, 0, 0)
    assert found["same_names"] == [[657, 744], [836, 837]]
    clip, resnet = found["models"]
    assert clip["computed"] == 1000 - 256 * parts
    assert resnet["computed"] == 1000
    counted(found, expected.models)


@pytest.mark.usefixtures("evaluated")
def test_a_comparison_of_the_same_folder_computes_nothing_anew_and_counts_as_float64(expected: Expected) -> None:
    folder = expected.folder
    found = finished([*CLIP, "compare", "val", *BOTH, "--shifts", "none", "--json"], folder, "cache")
    assert found["computed"] == [0, 0]
    counted(found, expected.models)
    clip, resnet = (logs.argmax(1) == torch.arange(1000) for logs in expected.models)
    assert found["overall"]["only_first"] == pytest.approx(int((clip & ~resnet).sum()), abs=2)
    assert found["overall"]["only_second"] == pytest.approx(int((resnet & ~clip).sum()), abs=2)
    assert sum(row["images"] for row in found["per_class"]) == 1000
    assert sum(row["images"] for row in found["superclasses"]) == 1000
    assert {"dog", "bird", "vehicle"} <= {row["superclass"] for row in found["superclasses"]}
    page = (folder / "clip-compare" / "compare.html").read_text()
    assert page.count('<div class="card">') == sum(map(len, found["galleries"])) > 0


def test_a_comparison_killed_in_the_middle_goes_on_and_counts_as_float64(expected: Expected) -> None:
    folder = expected.folder
    labels = copied(folder, "part", 3, 264)  # two parts of each model
    command = [*CLIP, "compare", "part", *BOTH, "--shifts", "none", "--json"]
    kept = killed_on_its_way(command, folder, "other", "00000?-*.rows", 3)  # both of one model, one of the other
    assert kept == 3
    found = finished(command, folder, "other")
    assert found["computed"] == [0, len(labels) - 256]
    counted(found, [logs[labels][:, labels] for logs in expected.models])  # among the folder's classes alone


@pytest.mark.cifar10
def test_one_command_fills_every_table_of_published_weights(expected: Expected) -> None:
    folder = expected.folder
    assert len(copied(folder, "few", 50, 20)) == 20
    command = [*CLIP, "published", "few", "--weights", "clip.pt", "--v1-weights", "resnet.pth"]
    command += ["--v2-weights", "resnet.pth", "--limit", "1", "--shift-pictures", "3", "--budget", "25", "--json"]
    command += ["--templates", "single"]
    assert finished(command, folder, "other")["failed"] == []
    reports = folder / "reports" / "clip-published"
    for name in COMPARISONS:
        assert (reports / name / "compare.html").is_file()
    found = json.loads((reports / "imagenet-tv-v2" / "compare.json").read_bytes())
    assert [kind["shift"] for kind in found["shifts"]["kinds"]] == list(KINDS)
    filled = published(reports)
    assert "| – |" not in filled
    assert "Not measured" not in filled
    assert "Weights: clip.pt." in filled
