"""The small CLIP's part of the page: names by kind, what is said of them, and the command that keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffvit.clip.small.report import BLOCK, FOLDER, KINDS, NAMES, PLOT, block, kind_of, main
from diffvit.reporting.csv_files import read_csv, write_csv
from diffvit.reporting.generated import markers
from diffvit.reporting.style import stamp_of

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


def name(label: str, called: str, recall: float, *, seen: bool = False, known: float = 1.0) -> dict[str, Any]:
    return {"class": label, "name": called, "seen": seen, "known_tokens": known, "recall": recall}


TRIED = [
    name("cat", "cat", 0.8, seen=True),
    name("cat", "small cat", 0.79),
    name("cat", "tabby cat", 0.78, known=0.5),
    name("cat", "feline", 0.1, known=0.0),
    name("cat", "lynx", 0.1, known=0.0),
    name("dog", "dog", 0.6, seen=True),
    name("dog", "puppy", 0.7, seen=True),
    name("dog", "poodle", 0.5, known=0.0),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed figures with other names, and a page."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    write_csv(tmp_path / FOLDER / NAMES, TRIED)
    start, end = markers(BLOCK)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "clip.md").write_text(f"before\n{start}\n{end}\nafter\n")
    return tmp_path


def test_a_names_kind_follows_from_the_captions_and_their_words() -> None:
    assert [KINDS.index(kind_of(row)) for row in TRIED] == [0, 1, 2, 3, 3, 0, 0, 3]


def test_the_table_and_its_words_follow_from_the_names(here: Path) -> None:
    text = block()
    assert "| in captions | 3 | 70.0% | 66.7% | dog: 60.0% |" in text
    assert "| new, of no known word | 3 | 23.3% | 73.3% | feline: 10.0% |" in text
    assert "within 10.0 points of its class's own name" in text  # puppy
    assert "2 of 3 such names lose more than half" in text
    assert "1 share their recall exactly" in text


def test_the_command_writes_the_part_and_the_plot_and_then_finds_them_right(here: Path, capsys: Captured) -> None:
    assert main(["--check"]) == 1
    out = capsys.readouterr().out
    assert out.count("out of date: ") == 2
    assert "docs/clip.md: its small CLIP is not that of" in out
    assert "names.png: was not made from the names beside it" in out
    assert main([]) == 0
    page = Path("docs/clip.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    for row in read_csv(FOLDER / "rows.csv"):
        assert f"({row['run']}) |" in page
    assert stamp_of(FOLDER / PLOT)
    assert main(["--check"]) == 0
    write_csv(FOLDER / NAMES, TRIED[:-1])
    assert main(["--check"]) == 1


def test_names_are_taken_from_a_run(here: Path, capsys: Captured) -> None:
    run = here / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data: cifar10\n")
    assert main(["--run", "run"]) == 3
    assert "evaluation.json: has no names of a CLIP (FileNotFoundError). Give a finished run" in capsys.readouterr().err
    assert read_csv(FOLDER / NAMES) == TRIED
    (run / "evaluation.json").write_text(json.dumps({"names": TRIED[:6]}))
    assert main(["--run", "run"]) == 0
    assert read_csv(FOLDER / NAMES) == TRIED[:6]
    assert "| in captions | 2 | 70.0% | 70.0% | dog: 60.0% |" in Path("docs/clip.md").read_text()


@pytest.mark.parametrize("what", ["names", "comparison", "markers"])
def test_what_is_missing_is_one_line(here: Path, capsys: Captured, what: str) -> None:
    path = {"names": FOLDER / NAMES, "comparison": FOLDER / "compare" / "compare.json", "markers": Path("docs/clip.md")}
    path[what].write_text("no markers") if what == "markers" else path[what].unlink()
    assert main([]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert path[what].name in err
