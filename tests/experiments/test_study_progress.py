"""What a study's run shows: the plan, how it stands, the time left."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffvit.experiments.progress import StudyProgress
from diffvit.experiments.report import write_report
from diffvit.experiments.results import results_of
from diffvit.experiments.runner import State
from diffvit.experiments.study import STUDIES, cells_of
from tests.experiments.study_rows import made_records

STUDY = STUDIES["pooling"]
CELLS = cells_of(STUDY, "short")
NAMES = [cell.name for cell in CELLS]
Captured = pytest.CaptureFixture[str]


def progress(tmp_path: Path, states: list[State], *, committed: int = 0, quiet: bool = False) -> StudyProgress:
    return StudyProgress(STUDY, "short", CELLS[committed:], committed, lambda: states[0], tmp_path / "reports", quiet)


def stand(done: int, running: int, failed: int = 0) -> State:
    first, second, third = NAMES[:done], NAMES[done : done + running], NAMES[done + running : done + running + failed]
    return State(
        dict.fromkeys(first, 0.7),
        dict.fromkeys(second, "process 5"),
        dict.fromkeys(third, "data: is gone."),
        NAMES[done + running + failed :],
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_the_plan_the_cells_as_they_are_done_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, terminal: bool
) -> None:
    monkeypatch.setattr("diffvit.experiments.progress.rate_of", lambda *_: 1e12)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    states = [stand(1, 0)]
    shown = progress(tmp_path, states)

    def said() -> list[str]:
        return capsys.readouterr().out.splitlines()

    shown.begin("cpu")
    first, second = said()[:2]
    assert first.startswith("pooling, tier short: ")
    assert second.startswith("8 cells, 0 of them in ")
    assert ", 1 done, 7 to do: about " in second
    states[0] = stand(2, 2)
    shown.show()
    shown.show()
    lines = said()
    assert sum(f"{NAMES[1]}: 70.00%" in line for line in lines) == 1  # each once
    assert not any(f"{NAMES[0]}: 70" in line for line in lines)  # not what was done before
    if not terminal:
        assert lines[1].startswith("2 of 8 done, 2 running; about ")
        assert len(lines) == 2
    states[0] = stand(6, 0, failed=2)
    found = shown.end()
    lines = said()
    assert lines[-2:] == [f"{name}: skipped after repeated errors: data: is gone." for name in NAMES[6:]]
    assert lines[-3].endswith("6 of 8 done, 0 running, 2 skipped")
    assert found.failed == dict.fromkeys(NAMES[6:], "data: is gone.")


@pytest.mark.parametrize(
    ("rows", "device", "said"),
    [(3, "cpu", "about "), (3, "cuda", "time not measured"), (0, "cpu", "time not measured")],
)
def test_the_time_is_estimated_from_committed_rows_of_such_a_device(
    tmp_path: Path, capsys: Captured, rows: int, device: str, said: str
) -> None:
    if rows:
        records = made_records(CELLS[:rows], lambda _: 0.7, kernels="torch")
        write_report(results_of(STUDY, "short", {CELLS: records}), tmp_path / "reports")
    shown = progress(tmp_path, [State(waiting=NAMES[rows:])], committed=rows)
    shown.begin(device)
    shown.show()
    _, plan, now = capsys.readouterr().out.splitlines()
    assert plan.startswith(f"8 cells, {rows} of them in ")
    assert f", 0 done, {8 - rows} to do: {said}" in plan
    assert now.startswith(f"0 of {8 - rows} done, 0 running")
    assert ("left" in now) == (said == "about ")


def test_quiet_says_nothing(tmp_path: Path, capsys: Captured) -> None:
    shown = progress(tmp_path, [stand(8, 0)], quiet=True)
    shown.begin("cpu")
    shown.show()
    assert len(shown.end().done) == 8
    assert capsys.readouterr().out == ""
