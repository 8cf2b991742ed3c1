"""What a study's run shows: the plan, how it stands, the time left."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from study_rows import made_records

from diffvit.experiments.definitions import STUDIES
from diffvit.experiments.pool import Conditions, folder_of
from diffvit.experiments.report import write_report
from diffvit.experiments.results import results_of
from diffvit.experiments.standing import Standing
from diffvit.experiments.trials import trials_of
from diffvit.experiments.watch import Watch

STUDY = STUDIES["pooling"]
TRIALS = trials_of(STUDY, "short")
NAMES = [trial.name for trial in TRIALS]
HERE = Conditions("CIFAR-10 (JPEG)", "f", "bf16", "cpu", "torch")


def watch(tmp_path: Path, standing: list[Standing], said: list[str]) -> Watch:
    on = dict.fromkeys(NAMES, HERE)
    return Watch(STUDY, "short", TRIALS, on, lambda: standing[0], tmp_path / "runs", tmp_path / "reports", said.append)


def stand(done: int, running: int, failed: int = 0) -> Standing:
    first, second, third = NAMES[:done], NAMES[done : done + running], NAMES[done + running : done + running + failed]
    return Standing(
        dict.fromkeys(first, 0.7),
        dict.fromkeys(second, "here, process 5"),
        dict.fromkeys(third, "data: is gone."),
        NAMES[done + running + failed :],
    )


def test_the_plan_the_trials_as_they_are_done_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    standing = [stand(1, 0)]
    shown = watch(tmp_path, standing, said)
    monkeypatch.setattr("diffvit.experiments.watch.known_rate", lambda *_: 1e12)
    shown.begin("cpu")
    assert said[0].startswith("pooling, tier short: ")
    assert said[1].startswith("8 trials, 0 of them in ")
    assert ", 1 done, 7 to do: about " in said[1]
    standing[0] = stand(2, 2)
    shown.look()
    shown.look()
    assert said[2:3] == [f"{NAMES[1]}: 70.00%"]  # not what was done before, and each once
    assert said[3].startswith("2 of 8 done, 2 running; about ")
    assert len(said) == 4
    standing[0] = stand(6, 0, failed=2)
    found = shown.end()
    assert said[-2:] == [f"{name}: given up after several tries: data: is gone." for name in NAMES[6:]]
    assert "6 of 8 done, 0 running, 2 given up" in said
    assert found["failed"] == dict.fromkeys(NAMES[6:], "data: is gone.")


def test_committed_rows_are_no_part_of_what_is_to_do(tmp_path: Path) -> None:
    records = made_records(TRIALS[:3], lambda _: 0.7, kernels="torch")
    write_report(results_of(STUDY, "short", TRIALS, records), tmp_path / "reports")
    said: list[str] = []
    rest = Standing({}, {}, {}, NAMES[3:])
    watch(tmp_path, [rest], said).begin("cpu")
    assert "8 trials, 3 of them in " in said[1]
    assert ", 0 done, 5 to do: about " in said[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_is_no_forecast_without_a_row_of_such_a_device(tmp_path: Path, device: str) -> None:
    if device == "cuda":  # rows of the other kind
        write_report(
            results_of(STUDY, "short", TRIALS, made_records(TRIALS[:3], lambda _: 0.7, kernels="torch")),
            tmp_path / "reports",
        )
    said: list[str] = []
    shown = watch(tmp_path, [stand(0, 2)], said)
    shown.begin(device)
    shown.look()
    assert "not measured" in said[1]
    assert not any("about" in line for line in said)
    assert said[2] == "0 of 8 done, 2 running"


def test_the_live_table_shows_epochs_and_results(tmp_path: Path) -> None:
    said: list[str] = []
    shown = watch(tmp_path, [stand(2, 1)], said)
    shown.begin("cpu")
    folder = folder_of(TRIALS[2], HERE, tmp_path / "runs")
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
    assert text.count("done: test 70.00%") == 2


def test_quiet_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    shown = watch(tmp_path, [stand(8, 0)], said)
    shown.quiet = True
    shown.begin("cpu")
    shown.look()
    assert shown.end()["done"] == 8
    assert said == []
