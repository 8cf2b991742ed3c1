"""``diffvit study`` from end to end at tier smoke, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from study_rows import made_records, rows_of

from diffvit.cli.main import run
from diffvit.cli.study_options import What, ledgers_of
from diffvit.errors import InputError
from diffvit.experiments.cost import training_flops
from diffvit.experiments.definitions import STUDIES
from diffvit.experiments.runner import work
from diffvit.experiments.search import DIALS
from diffvit.experiments.standing import Claim
from diffvit.experiments.trials import trials_of
from diffvit.reporting.rows import write

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_list_names_every_study_with_arms_tiers_and_times(capsys: Captured) -> None:
    assert run(["study", "list", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])["studies"]
    assert [each["study"] for each in found] == list(STUDIES)
    for each in found:
        study = STUDIES[each["study"]]
        assert each["arms"] == ([dial.setting for dial in DIALS] if study.search else list(study.arms))
        assert each["seconds"] == {"smoke": None, "short": None, "full": None}  # nothing is committed here
    for tier in ("smoke", "short", "full"):
        assert f"\n{tier}: " in out


def test_a_time_needs_a_committed_row_of_such_a_device(capsys: Captured) -> None:
    def seconds() -> dict[str, dict[str, float | None]]:
        assert run(["study", "list", "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["studies"]
        return {each["study"]: each["seconds"] for each in found}

    pooling = STUDIES["pooling"]
    records = rows_of(made_records(trials_of(pooling, "short"), lambda _: 0.7))
    write(Path("reports/pooling"), records)
    for times in seconds().values():
        assert times["full"] is None
        assert 0 < (times["smoke"] or 0) < (times["short"] or 0)
    card = replace(records[0], row=records[0].row | {"device": "cuda", "images_per_second": 1e5})
    write(Path("reports/gpu-50-epochs"), [card])
    rate = 3 * card.row["flops_per_image"] * 1e5
    expected = sum(1 + training_flops(trial.config) / rate for trial in trials_of(pooling, "full"))
    assert seconds()["pooling"]["full"] == pytest.approx(expected)


@pytest.mark.timeout(240)
def test_a_study_is_run_by_two_workers_shown_and_reported(capsys: Captured) -> None:
    command = ["study", "run", "pooling", "--tier", "smoke", "--workers", "2", "--device", "cpu", "--json"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "4 trials, 0 of them in reports/pooling, 0 done, 4 to do" in out
    assert "4 of 4 done, 0 running" in out
    assert json.loads(out.splitlines()[-1]) == {
        **{"study": "pooling", "tier": "smoke", "done": 4, "failed": {}, "waiting": [], "running": {}},
    }
    assert run(command) == 0
    assert "4 done, 0 to do" in capsys.readouterr().out
    assert run(["study", "show", "pooling", "--tier", "smoke"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 trials are done" in out
    assert "mean-differential-s0" in out
    assert run(["study", "report", "pooling", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {"study": "pooling", "tier": "smoke", "report": "reports/pooling/report.md", "missing": []}
    before = digests(Path("reports/pooling"))
    Path("runs").rename("elsewhere")
    assert run(["study", "report", "pooling"]) == 0
    assert digests(Path("reports/pooling")) == before
    capsys.readouterr()
    assert run(command) == 0  # rows that are committed are not run again
    out = capsys.readouterr().out
    assert "4 of them in reports/pooling, 0 done, 0 to do" in out
    assert not list(Path("runs").rglob("result.json"))


@pytest.mark.parametrize(("code", "said"), [(143, "study depth: was stopped"), (4, "a worker ended with exit code 4")])
def test_workers_that_do_not_end_well_are_told(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    monkeypatch.setattr("diffvit.experiments.launchers.LocalWorkers.run", lambda *_: [0, code])
    assert run(["study", "run", "depth", "--tier", "smoke", "--workers", "2", "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert "Run the same command to go on." in err


def test_trials_that_were_given_up_are_told_and_tried_again(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    study, what = STUDIES["pooling"], What(tier="smoke")
    faults = {"mean-softmax-s0": InputError("data", "is gone")}

    def here(*_: object) -> list[int]:
        def execute(claim: Claim) -> float:
            if claim.cell in faults:
                raise faults[claim.cell]
            return 0.5

        work(ledgers_of(study, what, {"device": "cpu"})[""], execute)
        return [0]

    monkeypatch.setattr("diffvit.experiments.launchers.LocalWorkers.run", here)
    command = ["study", "run", "pooling", "--tier", "smoke", "--device", "cpu"]
    assert run(command) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: study pooling: trials that failed 3 times were given up (mean-softmax-s0). ")
    assert err.count("\n") == 1
    faults.clear()
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "given up before, tried again: mean-softmax-s0" in out
    assert "4 of 4 done" in out


def test_a_search_is_run_too(capsys: Captured) -> None:
    assert run(["study", "work", "search", "--tier", "smoke", "--device", "cpu", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("begins") == 6
    assert run(["study", "show", "search", "--tier", "smoke", "--json"]) == 0
    out = capsys.readouterr().out
    assert "0.002 to 0.02" in out
    assert json.loads(out.splitlines()[-1]) == {"study": "search", "tier": "smoke", "trials": 6}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "dept"], 2, "study: no study 'dept' (have vit-vs-diffvit"),
        (["run", "depth", "--workers", "0"], 2, "--workers: must be at least 1 (found 0)"),
        (["run", "depth", "--seeds", "0"], 2, "--seeds: must be at least 1 (found 0)"),
        (["run", "depth", "--tier", "long"], 2, "--tier"),
        (["report", "depth"], 3, "study depth: has no finished run and no committed row"),
        (["run", "depth", "--tier", "smoke", "--storage", "/proc/no/x"], 4, "--storage: cannot be written"),
        (["run", "depth", "--tier", "smoke", "--launcher", "slurm"], 4, "--launcher slurm: "),
    ],
)
def test_what_is_wrong_is_one_line(capsys: Captured, arguments: list[str], code: int, said: str) -> None:
    assert run(["study", *arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_damaged_rows_are_one_line(capsys: Captured) -> None:
    Path("reports/depth").mkdir(parents=True)
    Path("reports/depth/rows.csv").write_text("run,seed\na\n")
    assert run(["study", "show", "depth"]) == 3
    assert "rows.csv" in capsys.readouterr().err
