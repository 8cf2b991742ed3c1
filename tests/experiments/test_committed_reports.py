"""The committed reports of studies: made again from their rows alone they are the same, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.study import STUDIES

REPORTS = Path(__file__).parents[2] / "reports"
REPORTED = [name for name, study in STUDIES.items() if study.report and not study.search]
COMMITTED = [name for name in REPORTED if (REPORTS / name / "rows.csv").is_file()]


def test_there_are_some() -> None:
    assert "vit-vs-diffvit" in COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_a_report_made_again_changes_no_byte(name: str, tmp_path: Path) -> None:
    """Its text and best.yaml are made anew; its plots, which bear the rows' digest, are kept."""
    shutil.copytree(REPORTS / name, tmp_path / name)
    for made in ("report.md", "best.yaml"):
        (tmp_path / name / made).unlink()
    results = gathered(STUDIES[name], tmp_path / "no runs", tmp_path)
    write_report(results, tmp_path)
    there, again = ({path.name: path.read_bytes() for path in (root / name).iterdir()} for root in (REPORTS, tmp_path))
    assert again == there
    assert not results.missing


def test_rows_of_a_study_without_a_report_of_its_own_stay(tmp_path: Path) -> None:
    shutil.copytree(REPORTS / "attention", tmp_path / "attention")
    write_report(gathered(STUDIES["attention"], tmp_path / "no runs", tmp_path), tmp_path)
    for path in sorted((REPORTS / "attention").iterdir()):
        assert (tmp_path / "attention" / path.name).read_bytes() == path.read_bytes(), path.name
