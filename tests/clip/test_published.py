"""The part of the page for figures of published weights: what it says with none, with some and with all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffvit.cli.main import run
from diffvit.clip.evaluation.published import BLOCK, COMPARISONS, FOLDER, block, main
from diffvit.reporting.generated import markers

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page, and no figures."""
    monkeypatch.chdir(tmp_path)
    start, end = markers(BLOCK)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "clip.md").write_text(f"before\n{start}\n{end}\nafter\n")
    return tmp_path


# Whether CLIP wins there, what the page names and what not: by more than the interval alone.
GROUPS = {"bird": (0.02, 0.01, 0.03), "fish": (0.01, -0.01, 0.03), "tool": (-0.03, -0.04, -0.02)}


def put(folder: Path, name: str) -> dict[str, Any]:
    """Some comparison's result, with groups of its own, in a place for one of published weights."""
    result = json.loads((ROOT / "reports" / "clip-cifar10" / "compare" / "compare.json").read_bytes())
    row = result["superclasses"][0] if result["superclasses"] else {}
    result["superclasses"] = [
        {**row, "superclass": group, "difference": difference, "low": low, "high": high}
        | {"decided": low > 0 or high < 0}
        for group, (difference, low, high) in GROUPS.items()
    ]
    (folder / name).mkdir(parents=True)
    (folder / name / "compare.json").write_text(json.dumps(result))
    return result


def test_without_figures_the_page_says_so_and_how_they_are_had(here: Path, capsys: Captured) -> None:
    assert main(["--check"]) == 1
    assert main([]) == 0
    page = Path("docs/clip.md").read_text()
    assert "**Not measured here: all of this.**" in page
    assert "make clip-published IMAGENET=folder" in page
    assert page.count("| – | – | – | – | – |") == len(COMPARISONS)
    assert main(["--check"]) == 0


def test_with_some_figures_the_rest_is_named_as_missing(here: Path) -> None:
    result = put(here / FOLDER, "imagenet-tv-v1")
    text = block()
    assert "**Not measured here: what has no figure below.**" in text
    assert text.count("| – | – | – | – | – |") == len(COMPARISONS) - 1
    assert f"| torchvision V1 | {100 * result['overall']['first']:.2f}% |" in text
    (line,) = [line for line in text.splitlines() if "CLIP wins" in line]
    clip, resnet = line.split("CLIP wins")[1].split("the ResNet-50")
    assert "bird (+2.0)" in clip
    assert "tool (-3.0)" in resnet
    assert "fish" not in line


def test_with_all_figures_nothing_is_missing_and_the_precisions_are_there(here: Path) -> None:
    for name in COMPARISONS:
        put(here / FOLDER, name)
    shutil.copytree(ROOT / "reports" / "clip-precision", here / FOLDER / "precision")
    text = block()
    assert "Not measured" not in text
    assert "| – |" not in text
    measured = json.loads((here / FOLDER / "precision" / "precision.json").read_bytes())
    assert measured["encoder"]["weights"] in text
    assert "| Drift |" in text


def test_damaged_figures_are_one_line(here: Path, capsys: Captured) -> None:
    put(here / FOLDER, "imagenet-tv-v1")
    (here / FOLDER / "imagenet-tv-v1" / "compare.json").write_text("{")
    assert main([]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "compare.json: cannot be read (JSONDecodeError). Run: diffvit clip published IMAGENET" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 3, "nowhere: no such folder"),
        (["named"], 3, "named: is not ImageNet's layout: its folders are not all named by WordNet ids"),
        (["named", "--shift-pictures", "0"], 2, "--shift-pictures: must be at least 1 (found 0)"),
        (["val"], 4, "RN50: its weights 'openai' could not be fetched"),
    ],
)
def test_what_is_wrong_is_one_line(here: Path, capsys: Captured, arguments: list[str], code: int, said: str) -> None:
    for folder in ("named/cat", "val/n01440764"):
        (here / folder).mkdir(parents=True)
        (here / folder / "a.png").write_bytes(b"none")
    assert run(["clip", "published", *arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not Path("reports").exists()
