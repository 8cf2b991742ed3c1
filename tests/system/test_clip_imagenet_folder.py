"""All 1,000 classes of ImageNet's validation layout, a comparison that is killed, and float64 counts of both models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_layout import counted, imagenet_layout
from torch import Tensor

from diffvit.cli.main import run
from diffvit.training.memory import keep_freed_memory
from tools.clip import COMPARISONS, published

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
Captured = pytest.CaptureFixture[str]
BOTH = ["--weights", "clip.pt", "--supervised", "tv-v2", "--supervised-weights", "resnet.pth", "--templates", "single"]
COMPARE = ["clip", "compare", "val", *BOTH, "--shifts", "none", "--json"]


@dataclass(frozen=True)
class Expected:
    folder: Path
    models: list[Tensor]
    labels: list[int]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expected]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    folder = tmp_path_factory.mktemp("imagenet")
    yield Expected(folder, *imagenet_layout(folder))
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _in_the_folder(expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cache for all: the 1,000 names are embedded once."""
    monkeypatch.chdir(expected.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(expected.folder / "cache"))


def killed_on_its_way(command: Sequence[str], parts: int) -> int:
    """The command, killed when so many parts of pictures' features were kept; how many there then were."""
    started = subprocess.Popen(
        [sys.executable, "-m", "diffvit.cli.main", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until, cache = time.monotonic() + 600, Path(os.environ["XDG_CACHE_HOME"])
    while len(kept := list(cache.glob("diffvit/clip/*/00000?-*.rows"))) < parts:
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    assert started.wait(timeout=60) == -signal.SIGKILL
    assert started.stderr is not None
    started.stderr.close()
    return len(kept)


def finished(command: Sequence[str], capsys: Captured, code: int = 0) -> Any:
    """What the command says as JSON."""
    assert run(command) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_killed_comparison_of_imagenets_layout_goes_on_and_counts_as_float64(
    expected: Expected, capsys: Captured
) -> None:
    models, labels = expected.models, expected.labels
    for logs in models:
        assert len(set(logs.argmax(1).tolist())) >= 5
    kept = killed_on_its_way(COMPARE, 5) - 4  # all four parts of CLIP's, one or more of the ResNet's
    assert 1 <= kept <= 3
    found = finished(["clip", "evaluate", "val", *BOTH, "--json"], capsys, 3)
    unread = 1000 - len(labels)
    assert (found["images"], len(found["classes"]), found["unreadable"]) == (1000, 1000, unread)
    assert len(found["failed"]) == unread
    assert (found["labels_computed"], found["same_names"]) == (0, [[657, 744], [836, 837]])
    assert [model["computed"] for model in found["models"]] == [0, sum(label >= 256 * kept for label in labels)]
    counted(found, models, labels)

    found = finished(COMPARE, capsys, 3)
    assert found["computed"] == [0, 0]
    counted(found, models, labels)
    clip, resnet = (logs.argmax(1) == torch.tensor(labels) for logs in models)
    assert found["overall"]["only_first"] == pytest.approx(int((clip & ~resnet).sum()), abs=2)
    assert found["overall"]["only_second"] == pytest.approx(int((resnet & ~clip).sum()), abs=2)
    assert sum(row["images"] for row in found["per_class"]) == len(labels)
    assert sum(row["images"] for row in found["superclasses"]) == len(labels)
    assert len(found["superclasses"]) > 10
    page = Path("clip-compare/compare.html").read_text()
    shown = [len(each["first"]) + len(each["second"]) for each in found["galleries"]]
    assert page.count('<li class="card">') == sum(shown) > 0
    assert max(shown) <= 8
    assert len(page) < 4_000_000
    assert 1 <= len(found["outliers"]) <= 16


@pytest.mark.cifar10
def test_one_command_fills_every_table_of_published_weights(expected: Expected, capsys: Captured) -> None:
    classes = sorted(Path("val").iterdir())
    for label in expected.labels[::10]:
        shutil.copytree(classes[label], Path("few") / classes[label].name)
    command = ["clip", "published", "few", "--weights", "clip.pt", "--v1-weights", "resnet.pth"]
    command += ["--v2-weights", "resnet.pth", "--limit", "1", "--budget", "16", "--json", "--templates", "single"]
    assert finished([*command, "--shifts", "edges,noise", "--shift-pictures", "1"], capsys)["failed"] == []
    reports = Path("reports/clip-published")
    for name in COMPARISONS:
        assert (reports / name / "compare.html").is_file()
    found = json.loads((reports / "imagenet-tv-v2" / "compare.json").read_bytes())
    assert [kind["shift"] for kind in found["shifts"]["kinds"]] == ["edges", "noise"]
    filled = published(reports)
    assert "| – |" not in filled
    assert "Not measured" not in filled
    assert "Weights: clip.pt." in filled
