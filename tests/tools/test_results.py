"""docs/results.md, the README's part about the studies, and their reports: from made rows with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from diffvit.experiments.report import write_report
from diffvit.experiments.results import Results, results_of
from diffvit.experiments.study import STUDIES, Cell, cells_of, load_study
from diffvit.reporting.rows import write
from tests.experiments.study_rows import made_records
from tests.experiments.study_rows import rows_of as every_row
from tools import pages, results
from tools.results import best_arms, documents, where_it_helps, with_rows

HEADS = STUDIES["heads"]
REPORTED = [study for study in STUDIES.values() if study.report]
HERE = Path()


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with rows, and a recipe with three seeds of which all pass 80%."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Before.\n<!-- studies:start -->\n<!-- studies:end -->\nAfter.\n")
    cells = cells_of(HEADS, "short")
    records = made_records(cells, lambda cell: 0.6 + cell.config.model.num_heads / 100)
    write_report(results_of(HEADS, "short", {cells: records}), Path("reports"))
    recipe = [each for each in cells_of(STUDIES["patch-size"], "short") if each.arm == "patch 4"][::2]
    good = made_records(recipe, lambda cell: 0.81 + cell.config.seed / 100)
    write(Path("reports/recipe"), every_row(good))
    return Path("reports")


def page() -> str:
    return results.page(HERE, with_rows(Path("reports")))


def refresh(check: bool = False) -> list[str]:
    """The files that were out of date."""
    return [line.partition(":")[0] for line in pages.update(documents(HERE), "results", HERE, check=check)]


def test_the_page_has_what_is_known_and_names_what_is_not(reports: Path) -> None:
    text = page()
    assert "| 82.00% ± 1.00 | 8 | 1 min 00 s |" in text  # three seeds, one row
    assert "| 8 heads, Diff-ViT | 68.00% ± 0.00 |" in text
    assert "*heads, tier short, exploratory, CIFAR-10 (JPEG).*" in text
    assert "![Test accuracy of every arm and seed](../reports/heads/accuracy.png)" in text
    assert text.count("Not run yet: ") == len(REPORTED) - 1
    assert [line for line in text.splitlines() if line.startswith("## ")][1:] == [
        *("## The studies in short", "## Where differential attention helps"),
        *(f"## {study.question}" for study in REPORTED),
    ]
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 | CIFAR-10 (JPEG) |" in text


def test_what_is_out_of_date_is_found(reports: Path) -> None:
    assert refresh() == ["docs/results.md", "README.md"]
    text = Path("README.md").read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert HEADS.question not in text
    assert "JPEG" in text
    cells = cells_of(HEADS, "short")
    records = made_records(cells, lambda cell: 0.6 + cell.config.model.num_heads / 100, data="CIFAR-10")
    write_report(results_of(HEADS, "short", {cells: records}), reports)
    assert "README.md" in refresh()
    text = Path("README.md").read_text()
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 | CIFAR-10 |" in text
    assert "JPEG" not in text
    rows = reports / "heads" / "rows.csv"
    rows.write_text(rows.read_text().replace("0.62,", "0.52,"))
    of_study = [f"reports/heads/{name}" for name in ("report.md", "accuracy.png", "curves.png", "cost.png")]
    assert set(of_study) <= set(refresh(check=True))


def test_a_study_of_ones_own_beside_its_rows_is_on_the_page(reports: Path) -> None:
    own = reports / "warmth" / "warmth.yaml"
    own.parent.mkdir()
    own.write_text(
        "question: Which warm-up?\nexploratory: true\nseeds: 1\narms: {long: {schedule: {warmup: 0.2}}, short: {}}\n"
    )
    assert "Not run yet: `diffvit study run reports/warmth/warmth.yaml --tier short`." in page()
    cells = cells_of(load_study(own), "short")
    records = made_records(cells, lambda cell: 0.85 + cell.config.schedule.warmup / 10)
    write_report(results_of(load_study(own), "short", {cells: records}), reports)
    refresh()
    section = page().partition("## Which warm-up?")[2]
    assert section.startswith("\n\n*warmth, tier short, exploratory, CIFAR-10 (JPEG).*")
    assert "| long, Diff-ViT | 87.00% | 89.00% |" in section
    assert (
        "(../reports/warmth/report.md)" not in page().partition("## The studies in short")[0]
    )  # over 80%, and no recipe
    assert refresh(check=True) == []
    (reports / "warmth" / "report.md").write_text("old")
    assert refresh(check=True) == ["reports/warmth/report.md"]


_GAIN = {"patch 2": 0.02, "patch 4": 0.0, "patch 8": -0.05}  # of differential attention


def made(name: str, spread: float) -> Results:
    def accuracy(cell: Cell) -> float:
        model = cell.config.model
        level = 0.6 + 0.1 / model.patch_size * (-1) ** cell.config.seed * spread
        if model.attention == "differential":
            level += _GAIN.get(cell.arm, 0.0)
        return level + 0.16 / model.patch_size

    cells = cells_of(STUDIES[name], "short")
    return results_of(STUDIES[name], "short", {cells: made_records(cells, accuracy)})


def test_where_differential_attention_helps() -> None:
    def cell(gap: float, softmax: float) -> str:
        """With no spread over seeds, what the sampling of 10,000 images allows."""
        half = 1.959964 * math.sqrt(sum(p * (1 - p) / 10_000 for p in (softmax, softmax + gap)))
        return f"{100 * gap:+.2f} ({100 * (gap - half):+.2f} to {100 * (gap + half):+.2f})"

    mean = 0.6 + 0.16 * (1 / 2 + 1 / 4 + 1 / 8) / 3
    table = where_it_helps([made("patch-size", 0), made("heads", 0), made("vit-vs-diffvit", 0)])
    sizes = [
        cell(-0.01, mean),
        "patch 2, +2.00 points",
        "patch 8, -5.00 points",
        "not decided",
        "short, 3",
        "CIFAR-10 (JPEG)",
    ]
    heads = [
        cell(0.0, 0.62),
        "2 heads, +0.00 points",
        "8 heads, +0.00 points",
        "exploratory",
        "short, 2",
        "CIFAR-10 (JPEG)",
    ]
    assert table.rows == [["patch-size", *sizes], ["heads", *heads]]  # the study of three arms has no arm with both
    sure, unsure = (best_arms([made("patch-size", spread)]).rows for spread in (0, 2))
    assert sure == [
        [STUDIES["patch-size"].question, "**patch 2**, 68.0%", "**patch 2**, 70.0%", "short, 3", "CIFAR-10 (JPEG)"]
    ]
    assert unsure[0][1].startswith("patch 2, ")
    assert best_arms([made("vit-vs-diffvit", 0)]).rows == []  # its arms are attentions
