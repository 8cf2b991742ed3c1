"""The committed reports of studies: made again from their rows alone they are the same, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffvit.experiments.report import gathered, write_report
from diffvit.experiments.study import STUDIES

REPORTS = Path(__file__).parents[2] / "reports"
UNRUN = ("attribution", "differential", "differential-where", "augmentation-25")
STUDIED = [name for name, study in STUDIES.items() if not study.search and name not in UNRUN]


@pytest.mark.parametrize("name", STUDIED)
def test_a_report_made_again_changes_no_byte(name: str, tmp_path: Path) -> None:
    """Rows are written, text and best.yaml made anew; plots, which bear the rows' digest, are kept."""
    shutil.copytree(REPORTS / name, tmp_path / name)
    for made in ("report.md", "best.yaml") if STUDIES[name].report else ():
        (tmp_path / name / made).unlink()
    results = gathered(STUDIES[name], tmp_path / "no runs", tmp_path)
    write_report(results, tmp_path)
    there, again = ({path.name: path.read_bytes() for path in (root / name).iterdir()} for root in (REPORTS, tmp_path))
    assert again == there
    assert not set.intersection(*(set(each.missing) for each in (results, *results.others)))
