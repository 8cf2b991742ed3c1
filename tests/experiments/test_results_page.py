"""The results page: made from committed rows alone, and checked against them."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_rows import made_records
from study_rows import rows_of as every_row

from diffvit.config import to_yaml
from diffvit.experiments.page import main, page, readme_block
from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.results import results_of
from diffvit.experiments.study import STUDIES, cells_of
from diffvit.reporting.rows import write

Captured = pytest.CaptureFixture[str]
HEADS = STUDIES["heads"]


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with rows, and a recipe with three seeds of which all pass 80%."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Before.\n<!-- studies:start -->\n<!-- studies:end -->\nAfter.\n")
    cells = cells_of(HEADS, "short")
    records = made_records(cells, lambda cell: 0.6 + cell.config.model.num_heads / 100)
    write_report(results_of(HEADS, "short", cells, records), Path("reports"))
    recipe = [each for each in cells_of(STUDIES["patch-size"], "short") if each.arm == "patch 4"][::2]
    good = made_records(recipe, lambda cell: 0.81 + cell.config.seed / 100)
    write(Path("reports/recipe"), every_row(good))
    return Path("reports")


def test_the_page_has_what_is_known_and_names_what_is_not(reports: Path) -> None:
    text = page()
    assert "| 82.00% ± 1.00 | 8 | 1 min 00 s |" in text  # three seeds, one row
    assert "| 8 heads, Diff-ViT | 68.00% ± 0.00 |" in text
    assert "*heads, tier short, exploratory.*" in text
    assert "![Test accuracy of every arm and seed](../reports/heads/accuracy.png)" in text
    assert text.count("Not run yet: ") == len(STUDIES) - 1
    assert [line for line in text.splitlines() if line.startswith("## ")][1:] == [
        *("## The studies in short", "## Where differential attention helps"),
        *(f"## {study.question}" for study in STUDIES.values()),
    ]
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 |" in text


def test_the_best_configuration_is_named_by_its_recipe(reports: Path) -> None:
    assert "The best configuration" not in page()  # no recipe has these settings
    assert "| [recipe](../reports/recipe/report.md) | – | 82.00% ± 1.00 |" in page()
    cell = next(each for each in cells_of(STUDIES["patch-size"], "short") if each.arm == "patch 4")
    Path("configs").mkdir()
    Path("configs/another.yaml").write_text(to_yaml(cell.config.model_copy(update={"epochs": 9})))
    Path("configs/the_best.yaml").write_text(
        to_yaml(cell.config.model_copy(update={"seed": 7}))
    )  # the seed is no part of it
    text = page()
    assert "| [the_best.yaml](../configs/the_best.yaml) | 82.00% ± 1.00 | 8 |" in text
    assert (
        "The best configuration so far is [the_best.yaml](../configs/the_best.yaml): 82.00% of the test images after 8 "
        "epochs (the mean of 3 seeds). To repeat it: `diffvit train configs/the_best.yaml --out runs/the-best`."
    ) in text
    assert "another.yaml" not in text


def test_a_check_finds_what_is_out_of_date(reports: Path, capsys: Captured) -> None:
    assert main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "docs/results.md: is not made from the rows in reports. Run: make docs" in out
    assert "README.md: is not made from the rows in reports. Run: make docs" in out
    assert main([]) == 0
    text = Path("README.md").read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert f"| {HEADS.question} | 8 heads, 68.0% | 8 heads, 68.0% | short, 2 |" in text
    assert main(["--check"]) == 0
    rows = reports / "heads" / "rows.csv"
    rows.write_text(rows.read_text().replace("0.62,", "0.52,"))
    assert main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "reports/heads/report.md: is not made from the rows beside it" in out
    assert "accuracy.png: was not made from the rows beside it" in out


def test_a_check_finds_plots_of_costs_that_were_counted_otherwise(
    reports: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 0
    assert main(["--check"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("diffvit.experiments.results.training_flops", lambda config: 1e12 * config.model.num_heads)
    assert main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "reports/heads/cost.png: was not made from the rows beside it" in out
    assert "accuracy.png" not in out
    write_report(gathered(HEADS, Path("nowhere"), reports), reports)
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_without_any_rows_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No committed run does yet." in page()
    assert readme_block() == "No study has rows yet."


def test_the_readme_has_the_fair_comparison_in_a_sentence(tmp_path: Path) -> None:
    study = STUDIES["vit-vs-diffvit"]
    cells = cells_of(study, "short")
    records = made_records(cells, lambda cell: 0.7 + ("softmax" in cell.name) / 50 + cell.config.seed / 1000)
    write_report(results_of(study, "short", cells, records), tmp_path)
    said = readme_block(tmp_path)
    assert (
        f"*{study.question}* After 8 epochs, patch 8, 128 wide, 4 blocks, [CLS]: softmax minus differential: +2.00"
        in said
    )
    assert "one of its own might serve Diff-ViT better" in said
