"""What a study's run shows: the plan, how it stands, the time left."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from diffvit.experiments.progress import StudyProgress
from diffvit.experiments.report import write_report
from diffvit.experiments.results import results_of
from diffvit.experiments.runner import State
from diffvit.experiments.study import STUDIES, cells_of
from tests.experiments.study_rows import made_records

STUDY = STUDIES["pooling"]
CELLS = cells_of(STUDY, "short")
NAMES = [cell.name for cell in CELLS]


def progress(tmp_path: Path, states: list[State], said: list[str], committed: int = 0) -> StudyProgress:
    folders = {name: tmp_path / "runs" / name for name in NAMES}
    reports = tmp_path / "reports"
    cells = CELLS[committed:]
    return StudyProgress(STUDY, "short", cells, folders, committed, lambda: states[0], reports, said.append)


def stand(done: int, running: int, failed: int = 0) -> State:
    first, second, third = NAMES[:done], NAMES[done : done + running], NAMES[done + running : done + running + failed]
    return State(
        dict.fromkeys(first, 0.7),
        dict.fromkeys(second, "here, process 5"),
        dict.fromkeys(third, "data: is gone."),
        NAMES[done + running + failed :],
    )


def test_the_plan_the_cells_as_they_are_done_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    states = [stand(1, 0)]
    shown = progress(tmp_path, states, said)
    monkeypatch.setattr("diffvit.experiments.progress.known_rate", lambda *_: 1e12)
    shown.begin("cpu")
    assert said[0].startswith("pooling, tier short: ")
    assert said[1].startswith("8 cells, 0 of them in ")
    assert ", 1 done, 7 to do: about " in said[1]
    states[0] = stand(2, 2)
    shown.show()
    shown.show()
    assert said[2:3] == [f"{NAMES[1]}: 70.00%"]  # not what was done before, and each once
    assert said[3].startswith("2 of 8 done, 2 running; about ")
    assert len(said) == 4
    states[0] = stand(6, 0, failed=2)
    found = shown.end()
    assert said[-2:] == [f"{name}: given up after several tries: data: is gone." for name in NAMES[6:]]
    assert "6 of 8 done, 0 running, 2 given up" in said
    assert found.failed == dict.fromkeys(NAMES[6:], "data: is gone.")


def test_committed_rows_are_no_part_of_what_is_to_do(tmp_path: Path) -> None:
    records = made_records(CELLS[:3], lambda _: 0.7, kernels="torch")
    write_report(results_of(STUDY, "short", CELLS, records), tmp_path / "reports")
    said: list[str] = []
    progress(tmp_path, [State({}, {}, {}, NAMES[3:])], said, committed=3).begin("cpu")
    assert "8 cells, 3 of them in " in said[1]
    assert ", 0 done, 5 to do: about " in said[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_is_no_forecast_without_a_row_of_such_a_device(tmp_path: Path, device: str) -> None:
    if device == "cuda":  # rows of the other kind
        write_report(
            results_of(STUDY, "short", CELLS, made_records(CELLS[:3], lambda _: 0.7, kernels="torch")),
            tmp_path / "reports",
        )
    said: list[str] = []
    shown = progress(tmp_path, [stand(0, 2)], said)
    shown.begin(device)
    shown.show()
    assert "not measured" in said[1]
    assert not any("about" in line for line in said)
    assert said[2] == "0 of 8 done, 2 running"


def test_the_live_table_shows_epochs_and_results(tmp_path: Path) -> None:
    said: list[str] = []
    shown = progress(tmp_path, [stand(2, 1)], said)
    shown.begin("cpu")
    folder = shown.folders[NAMES[2]]
    folder.mkdir(parents=True)
    rows = [{"epoch": epoch, "train_accuracy": epoch / 10} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shown_text = io.StringIO()
    console = Console(file=shown_text, width=140)
    console.print(shown._table(stand(2, 1)))
    text = shown_text.getvalue()
    line = next(line for line in text.splitlines() if NAMES[2] in line)
    assert "3 of 8" in line
    assert "30.00%" in line
    assert "here, process 5" in line
    assert text.count("done: test_accuracy 70.00%") == 2


def test_quiet_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    shown = progress(tmp_path, [stand(8, 0)], said)
    shown.quiet = True
    shown.begin("cpu")
    shown.show()
    assert len(shown.end().done) == 8
    assert said == []
