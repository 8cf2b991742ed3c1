"""``diffvit study`` from end to end at tier smoke, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.cli.main import run
from diffvit.errors import InputError
from diffvit.experiments.runner import SCORES, Runner, conditions_of, folder_of
from diffvit.experiments.study import STUDIES, TIERS, Cell, cells_of, training_flops
from diffvit.files import read_csv
from diffvit.reporting.rows import write
from diffvit.training.run_dir import RunDir
from tests.experiments.study_rows import made_records, rows_of

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_list_names_every_study_and_its_times_from_committed_rows_of_such_a_device(capsys: Captured) -> None:
    def seconds() -> dict[str, dict[str, float | None]]:
        assert run(["study", "list", "--json"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n{tier}: " in out for tier in TIERS)
        found = json.loads(out.splitlines()[-1])["studies"]
        for each in found:
            study = STUDIES[each["study"]]
            assert each["arms"] == list(study.search.settings if study.search else study.arms)
        return {each["study"]: each["seconds"] for each in found}

    assert seconds() == {name: dict.fromkeys(TIERS) for name in STUDIES}
    pooling = STUDIES["pooling"]
    records = rows_of(made_records(cells_of(pooling, "short"), lambda _: 0.7))
    write(Path("reports/pooling"), records)
    for times in seconds().values():
        assert times["full"] is None
        assert 0 < (times["smoke"] or 0) < (times["short"] or 0)
    card = replace(records[0], row=records[0].row | {"device": "cuda", "images_per_second": 1e5})
    write(Path("reports/gpu-50-epochs"), [card])
    rate = 3 * card.row["flops_per_image"] * 1e5
    expected = sum(1 + training_flops(cell.config) / rate for cell in cells_of(pooling, "full"))
    assert seconds()["pooling"]["full"] == pytest.approx(expected)


@pytest.mark.timeout(240)
def test_a_study_is_run_by_two_workers_shown_and_reported(capsys: Captured) -> None:
    command = ["study", "run", "pooling", "--tier", "smoke", "--workers", "2", "--device", "cpu", "--json"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "4 cells, 0 of them in reports/pooling, 0 done, 4 to do" in out
    assert "4 of 4 done, 0 running" in out
    assert json.loads(out.splitlines()[-1]) == {
        **{"study": "pooling", "tier": "smoke", "done": 4, "failed": {}, "waiting": [], "running": {}}
    }
    assert run(command) == 0
    assert "4 done, 0 to do" in capsys.readouterr().out
    assert run(["study", "show", "pooling", "--tier", "smoke"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 cells are done" in out
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
    monkeypatch.setattr("diffvit.experiments.launch.run_here", lambda *_: [0, code])
    assert run(["study", "run", "depth", "--tier", "smoke", "--workers", "2", "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert "Run the same command to go on." in err


def finished(self: Runner, cell: Cell, *_: object) -> RunDir:
    """In the place of a training."""
    run = RunDir(self.folders[cell.name])
    with run.lock():
        run.write_json("result.json", {"test_accuracy": 0.5, "val_accuracy": 0.5})
    return run


def test_cells_that_were_given_up_are_told_and_tried_again(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {"mean-softmax-s0": InputError("data", "is gone")}

    def failing(self: Runner, cell: Cell) -> RunDir:
        if cell.name in faults:
            raise faults[cell.name]
        return finished(self, cell)

    def here(*_: object) -> list[int]:
        return [run(["study", "work", "pooling", "--tier", "smoke", "--device", "cpu"])]

    monkeypatch.setattr(Runner, "train", failing)
    monkeypatch.setattr("diffvit.experiments.launch.run_here", here)
    command = ["study", "run", "pooling", "--tier", "smoke", "--device", "cpu"]
    assert run(command) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: study pooling: cells that failed repeatedly were skipped (mean-softmax-s0). ")
    assert err.count("\n") == 1
    faults.clear()
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "skipped before, tried again: mean-softmax-s0" in out
    assert "4 of 4 done" in out


def test_a_study_of_ones_own_is_run_like_a_built_in_one(capsys: Captured) -> None:
    """Its score is any function of a finished run: here the epochs' losses, as a number and as a table."""
    text = "question: a or b?\nattentions: [softmax]\nscore: losses\narms: {a: {}, b: {whiten: true}}\n"
    Path("mine.yaml").write_text(f"{text}base: {{epochs: 1, validation_size: 0}}\n")
    assert run(["study", "work", "mine.yaml", "--tier", "smoke", "--device", "cpu"]) == 2
    assert "score: no score 'losses' (have test_accuracy" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        kept = ("epoch", "train_loss")
        patch.setitem(
            SCORES,
            "losses",
            lambda run: {
                "last": run.metrics[-1]["train_loss"],
                "all": [{name: row[name] for name in kept} for row in run.metrics],
            },
        )
        assert run(["study", "work", "mine.yaml", "--tier", "smoke", "--device", "cpu"]) == 0
        assert run(["study", "show", "mine.yaml", "--tier", "smoke"]) == 0
        assert "2 of 2 cells are done" in capsys.readouterr().out
        assert run(["study", "report", "mine.yaml"]) == 0
    report = Path("reports/mine/report.md").read_text()
    assert "Score `losses` of every finished run" in report
    assert "Other conditions" not in report
    before = digests(Path("reports/mine"))
    Path("runs").rename("elsewhere")
    assert run(["study", "report", "mine.yaml"]) == 0
    assert digests(Path("reports/mine")) == before
    losses = [row["score.last"] for row in read_csv(Path("reports/mine/rows.csv"))]
    assert all(f"{loss:.4g}" in report for loss in losses)
    table = read_csv(Path("reports/mine/all.csv"))
    assert list(table[0]) == ["arm", "config_hash", "seed", *kept]
    found = [(row["arm"], row["epoch"], row["train_loss"]) for row in table]
    assert found == [("a", 1, losses[0]), ("b", 1, losses[1])]


def test_a_cell_that_another_process_holds_is_exit_code_6(capsys: Captured) -> None:
    command = ["study", "work", "pooling", "--tier", "smoke", "--device", "cpu"]
    cell = cells_of(STUDIES["pooling"], "smoke")[0]
    folder = folder_of(cell, conditions_of(cell.config.model_copy(update={"device": "cpu"})), Path("runs/studies"))
    with RunDir(folder).lock():
        assert run([*command, "--cell", cell.name]) == 6
        assert "another process is training here" in capsys.readouterr().err
    assert run([*command, "--cell", cell.name]) == 0
    assert run(["study", "show", "pooling", "--tier", "smoke"]) == 0
    assert "1 of 4 cells are done" in capsys.readouterr().out


def test_a_search_is_run_too(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "train", finished)
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
        (["report", "search"], 3, "study search: has tried nothing yet"),
        (["run", "search", "--tier", "smoke", "--storage", "/proc/no/x"], 4, "--storage: cannot be written"),
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
