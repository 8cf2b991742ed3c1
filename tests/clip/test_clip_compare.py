"""CLIP beside a supervised model: intervals, galleries, the command and its page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import made_answers
from PIL import Image

from diffvit.cli.main import run
from diffvit.clip.evaluation.compare import gallery

Captured = pytest.CaptureFixture[str]


def test_a_gallery_holds_what_one_gets_and_the_other_misses() -> None:
    one, two = made_answers(0), made_answers(1)
    chosen = gallery(one, two)
    assert chosen
    assert all(int(one.rank[n]) == 0 and int(two.rank[n]) > 0 and n != 7 for n in chosen)
    gaps = [float(one.truth[n] - two.truth[n]) for n in chosen]
    assert gaps == sorted(gaps, reverse=True)
    labels = [int(one.labels[n]) for n in chosen]
    assert max(labels.count(label) for label in labels) <= 2
    assert gallery(one, one) == []


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six classes of CIFAR-10 by name, five pictures each, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffvit.clip.evaluation.wordnet.INSTALLED", tmp_path)
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.delenv("WNHOME", raising=False)
    for label in ("airplane", "cat", "deer", "dog", "ship", "zebra"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng([len(label), number]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    (tmp_path / "set" / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return tmp_path / "set"


def test_the_command_writes_a_page_and_names_what_it_could_not_read(pictures: Path, capsys: Captured) -> None:
    command = ["clip", "compare", "set", "--model", "cifar10-clip", "--supervised", "cifar10-clip-twin"]
    command += ["--templates", "single", "--templates", "openai-7", "--out", "seen", "--json"]
    command += ["--shifts", "grey, noise", "--shift-pictures", "10"]
    assert run(command) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "bad.png: cannot be decoded" in err
    assert "Everything else is above." in err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["left_out"] == ["zebra"]  # the twin has no such class
    assert found["classes"] == ["airplane", "cat", "deer", "dog", "ship"]
    assert [each["name"] for each in found["templates"]] == ["single", "openai-7"]
    assert found["templates"][0]["accuracy"] == found["models"][0]["accuracy"] == found["overall"]["first"]
    assert found["unreadable"] == 1
    assert sum(row["images"] for row in found["per_class"]) == 25
    assert found["computed"] == [25, 25]
    page = Path("seen/compare.html").read_text()
    assert page.count('<div class="card">') == sum(map(len, found["galleries"]))
    assert "Left out, for the supervised model has no class for it: zebra." in page
    assert Path("seen/categories.csv").read_text().count("\n") == 6
    assert [each["shift"] for each in found["shifts"]["kinds"]] == ["grey", "noise"]
    assert found["shifts"]["images"] == 10
    assert Path("seen/shifts.csv").read_text().count("\n") == 12
    assert page.count("<li>") == 2 + 10  # a line for each kind, and words for each severity
    assert found["superclasses"] == []
    assert "<p>Not here: WordNet is not installed" in page
    assert run(command) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["computed"] == [0, 0]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (["--supervised", "tv-v3"], 2, "resnet50: no weights 'tv-v3'"),
        (["--supervised", "cifar10-clip"], 3, "is a CLIP, not a classifier"),
        (["--model", "cifar10-vit"], 3, "is not a CLIP: it has no text tower"),
        (["--templates", "openai"], 2, "--templates: no such templates"),
        (["--limit", "0"], 2, "--limit: must be at least 1 (found 0)"),
        (["--shifts", "edges,gray"], 2, "shifts: no such kind: 'gray'"),
        (["--supervised", "tv-v2", "--supervised-weights", "evil.pt"], 3, "evil.pt: holds Python objects other"),
        (["--supervised", "tv-v2", "--supervised-weights", "other.pt"], 3, "does not hold the weights of ResNet-50"),
        (["--model", "RN50", "--weights", "evil.pt"], 3, "evil.pt: holds Python objects other"),
        (["--model", "RN50", "--weights", "other.pt"], 3, "does not hold the weights of RN50"),
        (["--shift-pictures", "0"], 2, "--shift-pictures: must be at least 1 (found 0)"),
    ],
)
def test_what_is_wrong_is_one_line(pictures: Path, capsys: Captured, change: list[str], code: int, said: str) -> None:
    torch.save({"w": Evil()}, "evil.pt")
    torch.save({"w": torch.zeros(3)}, "other.pt")
    options = {"--model": "cifar10-clip", "--supervised": "cifar10-clip-twin"} | dict(
        zip(change[::2], change[1::2], strict=True)
    )
    assert run(["clip", "compare", "set", *(part for pair in options.items() for part in pair)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not Path("clip-compare").exists()
    assert not Path("evil-was-here").exists()
