"""The entry: every committed document is what it must be; a difference is named and written; names are checked."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from diffvit.errors import InputError
from tools import __main__ as entry
from tools import pages, sizes
from tools.pages import Picture

Captured = pytest.CaptureFixture[str]


def test_every_committed_document_is_made_from_the_committed_results(capsys: Captured) -> None:
    assert entry.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_makers_are_found_by_name(capsys: Captured) -> None:
    assert {"app_load", "attribution", "clip", "readme", "recipes", "results", "speed"} <= set(entry.makers())
    assert list(entry.makers(["speed"])) == ["speed"]
    assert entry.main(["sped"]) == 2
    assert "did you mean 'speed'?" in capsys.readouterr().err


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The only module: makes a text."""
    module = ModuleType("made")
    module.documents = lambda root: {Path("docs/page.md"): "text\n", Path("raw"): b"\0"}  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(entry, "makers", lambda names: {"made": module})
    return module


def test_a_difference_is_named_then_written(maker: ModuleType, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "docs").mkdir()
    assert entry.main(["--check"], tmp_path) == 1
    why = "is not what tools/made.py makes from the committed results"
    lines = [f"{name}: {why}" for name in ("docs/page.md", "raw")]
    assert capsys.readouterr().out.splitlines() == [f"out of date: {line}. Run: make docs" for line in lines]
    assert not (tmp_path / "raw").exists()
    assert entry.main([], tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [f"updated: {line}" for line in lines]
    assert (tmp_path / "docs" / "page.md").read_bytes() == b"text\n"
    assert entry.main(["--check"], tmp_path) == 0


def test_an_error_is_one_line_and_its_own_code(maker: ModuleType, tmp_path: Path, capsys: Captured) -> None:
    def damaged(root: Path) -> dict[Path, str]:
        raise InputError("rows.csv", "is damaged")

    maker.documents = damaged  # pyright: ignore[reportAttributeAccessIssue]
    assert entry.main(["--check"], tmp_path) == 3
    assert capsys.readouterr().err == "error: rows.csv: is damaged.\n"


def test_a_picture_is_drawn_where_its_stamp_differs(tmp_path: Path) -> None:
    png = (pages.ROOT / "reports" / "speed" / "train.png").read_bytes()
    stamp = pages.stamp_of(pages.ROOT / "reports" / "speed" / "train.png")
    assert stamp is not None
    drawn: list[int] = []
    made = {Path("a.png"): Picture(stamp, lambda: drawn.append(1) or png)}
    assert len(pages.update(made, "made", tmp_path, check=True)) == 1
    assert drawn == []
    assert len(pages.update(made, "made", tmp_path, check=False)) == 1
    assert pages.update(made, "made", tmp_path, check=False) == []
    assert drawn == [1]
    assert pages.update({Path("a.png"): png + b"other bytes"}, "made", tmp_path, check=True) == []


def test_sizes_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    assert sizes.main() == 0
    (tmp_path / "src" / "diffvit" / "models").mkdir(parents=True)
    (tmp_path / "src" / "diffvit" / "models" / "vit.py").write_text("a = 1\n\n\n")
    (tmp_path / "src" / "diffvit" / "config.py").write_text("a = 1\n")
    rows = {name: (lines, files) for name, lines, files, _ in sizes.table(tmp_path)}
    assert (rows["models"], rows["beside them"], rows["src"], rows["tests"]) == ((3, 1), (1, 1), (4, 2), (0, 0))
    monkeypatch.setattr(sizes, "BOUND", 3)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_vit.py").write_text("a = 1\n" * 5)
    capsys.readouterr()
    assert sizes.main(tmp_path) == 1
    said = capsys.readouterr().err
    assert "error: src: has too many lines (4 vs 3)" in said
    assert "error: tests: has too many lines (5 vs 4)" in said
