"""The part of the page for figures of published weights: what it says with none, with some and with all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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


def put(folder: Path, name: str) -> dict[str, object]:
    """Some comparison's result in a place for one of published weights."""
    source = ROOT / "reports" / "clip-cifar10" / "compare" / "compare.json"
    (folder / name).mkdir(parents=True)
    result = json.loads(source.read_bytes())
    for row in result["superclasses"]:
        row["decided"] = row["superclass"] == "placental"
    (folder / name / source.name).write_text(json.dumps(result))
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
    first = result["models"][0]  # type: ignore[index]
    assert f"| torchvision V1 | {100 * first['accuracy']:.2f}% |" in text
    assert "CLIP wins most in placental (+1.2); the ResNet-50 in none that is decided." in text


def test_with_all_figures_nothing_is_missing_and_the_precisions_are_there(here: Path) -> None:
    for name in COMPARISONS:
        put(here / FOLDER, name)
    shutil.copytree(ROOT / "reports" / "clip-precision", here / FOLDER / "precision")
    text = block()
    assert "Not measured" not in text
    assert "| – |" not in text
    assert "Weights: random (seed 0)." in text
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
