"""The report of the explorer under load: counts and times of a made tally, and the committed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.app_load import Tally, by_second, summary, write
from diffvit.errors import InputError
from tools import app_load
from tools.pages import update

KNOWN = {"hardware": "a machine", "cores": 2, "torch": "2", "python": "3", "diffvit": "0", "commit": None}


@pytest.fixture
def tally() -> Tally:
    made = Tally()
    made.answers = [(0.5 * number, 0.1 * (1 + number % 4), "dials", "answered") for number in range(20)]
    made.answers += [(1.2, 0.0, "dials", "busy"), (9.9, 5.0, "upload", "lost"), (3.0, 2.5, "figure", "answered")]
    made.probes = [(0.0, 0.01), (1.0, None), (2.0, 0.03)]
    made.memory = [(0.0, 100 * 2**20), (5.0, 150 * 2**20), (10.0, 110 * 2**20)]
    return made


def test_every_question_is_counted(tally: Tally, tmp_path: Path) -> None:
    found = summary(tally, 7, 10, KNOWN)
    dials = found["kinds"]["dials"]
    assert (dials["asked"], dials["answered"], dials["busy"], dials["lost"]) == (21, 20, 1, 0)
    assert (dials["median"], dials["worst"]) == (0.25, 0.4)
    rows = by_second(tally)
    assert sum(row["answered"] + row["busy"] + row["lost"] for row in rows) == len(tally.answers)
    assert (rows[1]["answered"], rows[1]["busy"], rows[9]["lost"]) == (2, 1, 1)
    assert [rows[at]["memory"] for at in (0, 4, 9)] == [100 * 2**20, 150 * 2**20, 110 * 2**20]
    write(found, rows, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "23 requests: 21 answered, 1 refused because the page was busy, **1 lost**" in text
    assert "| moving a dial | 21 | 20 | 1 | 0 | 250 ms | 400 ms | 400 ms |" in text
    assert "2 of 3 answered" in text
    assert "100 MiB at the start, at most 150 MiB, 110 MiB after it (+10.0%)" in text


def test_the_documents_are_what_write_wrote_and_a_damaged_result_is_bad_input(tally: Tally, tmp_path: Path) -> None:
    folder = tmp_path / app_load.FOLDER
    write(summary(tally, 7, 10, KNOWN), by_second(tally), folder)
    assert update(app_load.documents(tmp_path), "app_load", tmp_path, check=True) == []
    (folder / "summary.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        app_load.documents(tmp_path)
    assert app_load.of_folder(tmp_path / "none") == {}
