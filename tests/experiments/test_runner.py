"""The runner: what it does with cells that end in every way, and how a training is taken up."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from diffvit.errors import InputError, Interrupted, RunBusyError
from diffvit.experiments.results import records_of
from diffvit.experiments.runner import (
    ATTEMPTS,
    SCORES,
    Conditions,
    Runner,
    conditions_of,
    folder_of,
    register_score,
    uncommitted,
)
from diffvit.experiments.study import STUDIES, Cell, cells_of
from diffvit.reporting.rows import write
from diffvit.training.progress import Progress, StopRequest
from diffvit.training.run_dir import RunDir

CPU = {"device": "cpu", "threads": 1}
CELLS = cells_of(STUDIES["pooling"], "smoke")
NAMES = [cell.name for cell in CELLS]


class Quick(Runner):
    """Finishes a cell at once, under its lock, unless something else is given for it."""

    def train(self, cell: Cell, progress: object = None) -> RunDir:
        run = RunDir(self.folders[cell.name])
        with run.lock():
            if outcome := self.where.get(cell.name):
                outcome()
            run.write_json("result.json", {"test_accuracy": 0.5})
        return run


def quick(tmp_path: Path, told: list[str] | None = None, **outcomes: Callable[[], object]) -> Quick:
    """A runner of four cells; outcomes by name with underscores."""
    folders = {name: tmp_path / name for name in NAMES}
    where = {name.replace("_", "-"): outcome for name, outcome in outcomes.items()}
    return Quick(CELLS, folders, where, tell=(told if told is not None else []).append)


def raising(errors: Iterable[Exception | None]) -> Callable[[], None]:
    left = iter(errors)

    def outcome() -> None:
        if error := next(left, None):
            raise error

    return outcome


def test_cells_are_done_in_order_and_each_once(tmp_path: Path) -> None:
    told: list[str] = []
    assert quick(tmp_path, told).work() == 4
    assert [line.split(":")[0] for line in told if "begins" in line] == NAMES
    assert quick(tmp_path, told).work() == 0
    state = quick(tmp_path).state()
    assert (state.done, state.waiting) == (dict.fromkeys(NAMES, 0.5), [])


@pytest.mark.parametrize(
    ("error", "why", "code"),
    [
        (InputError("data", "is gone"), "data: is gone.", 3),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", 1),
    ],
)
def test_whatever_a_cell_dies_of_the_study_goes_on(tmp_path: Path, error: Exception, why: str, code: int) -> None:
    told: list[str] = []
    runner = quick(tmp_path, told, cls_differential_s0=raising([error] * ATTEMPTS))
    assert runner.work() == 3
    state = runner.state()
    assert (state.failed, state.exit_code) == ({NAMES[1]: why}, code)
    assert sum(line.startswith(f"{NAMES[1]}: failed") for line in told) == ATTEMPTS
    assert runner.forget_errors() == [NAMES[1]]
    assert runner.state().waiting == [NAMES[1]]
    assert runner.work() == 1
    assert (runner.forget_errors(), runner.state().exit_code) == ([], 0)


def test_a_stopped_worker_leaves_its_cell_to_others(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        quick(tmp_path, cls_differential_s0=raising([Interrupted(15, "run", "was stopped")])).work()
    state = quick(tmp_path).state()
    assert (list(state.done), state.running, state.waiting) == (NAMES[:1], {}, NAMES[1:])
    assert quick(tmp_path).work() == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_trainings_last_moments_stops_the_worker_after_it(tmp_path: Path, number: int) -> None:
    def outcome() -> None:
        with StopRequest():  # as a training that has no step left to stop at
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="between runs") as raised:
        quick(tmp_path, cls_softmax_s0=outcome).work()
    assert raised.value.exit_code == 128 + number
    state = quick(tmp_path).state()
    assert (list(state.done), state.running, state.waiting) == (NAMES[:1], {}, NAMES[1:])
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    with RunDir(tmp_path / NAMES[3]).lock():
        timer.start()
        with pytest.raises(Interrupted):  # while it waits for another
            quick(tmp_path).work()
    timer.join()
    assert len(quick(tmp_path).state().done) == 3


def test_a_cell_of_another_process_is_waited_for_or_told(tmp_path: Path) -> None:
    folder = tmp_path / NAMES[0]
    with RunDir(folder).lock():
        assert RunDir(folder).locked_by == str(os.getpid())
        assert quick(tmp_path).state().running == {NAMES[0]: f"process {os.getpid()}"}
        with pytest.raises(RunBusyError, match=f"another process is training here \\(process {os.getpid()}"):
            quick(tmp_path).work(wait=False)
    assert RunDir(folder).locked_by is None
    assert quick(tmp_path).work() == 1


def test_a_score_is_measured_once_of_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of runs that another study has finished; and one that fails is tried again."""
    measured: list[Path] = []
    monkeypatch.setattr("diffvit.experiments.runner.SCORES", dict(SCORES))

    def count(run: RunDir) -> dict[str, float]:
        measured.append(run.path)
        if len(measured) == 1:
            raise InputError("maps", "are not there")
        return {"calls": len(measured), "half": run.result["test_accuracy"]}

    register_score("count", count)
    with pytest.raises(ValueError, match="registered already"):
        register_score("count", count)
    assert quick(tmp_path).work() == 4
    runner = replace(quick(tmp_path), score="count")
    assert runner.state().waiting == NAMES
    assert runner.work() == 4
    assert len(measured) == 5
    assert runner.work() == 0
    assert runner.state().done == dict(zip(NAMES, (5, 2, 3, 4), strict=True))
    assert json.loads((tmp_path / NAMES[1] / "scores" / "count.json").read_text()) == {"calls": 2, "half": 0.5}


@pytest.fixture
def cell() -> Cell:
    return CELLS[0]


def here(cell: Cell) -> Conditions:
    return conditions_of(cell.config.model_copy(update=CPU))


def training(cell: Cell, runs: Path, where: dict[str, object] | None = None, told: list[str] | None = None) -> Runner:
    folders = {cell.name: folder_of(cell, here(cell), runs)}
    return Runner([cell], folders, where or CPU, tell=(told if told is not None else []).append)


class StopAfterEpoch(Progress):
    def epoch(self, row: object) -> None:
        raise KeyboardInterrupt


def test_a_training_is_taken_up_and_gives_the_same_bits(cell: Cell, tmp_path: Path) -> None:
    whole = training(cell, tmp_path / "whole").train(cell)
    runner = training(cell, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        runner.train(cell, StopAfterEpoch())
    assert not RunDir(runner.folders[cell.name]).finished
    parts = runner.train(cell)
    assert [row["train_loss"] for row in parts.metrics] == [row["train_loss"] for row in whole.metrics]
    assert (parts.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    before = (parts.path / "result.json").stat().st_mtime_ns
    assert runner.train(cell).result == parts.result
    assert (parts.path / "result.json").stat().st_mtime_ns == before  # read, not made again


def test_a_run_begun_with_other_threads_goes_on_with_those(cell: Cell, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(cell, tmp_path).train(cell, StopAfterEpoch())
    run = training(cell, tmp_path, {"device": "cpu", "threads": 2}).train(cell)
    assert run.environment["threads"] == 1
    assert run.finished


def test_a_run_that_cannot_be_taken_up_is_put_aside(cell: Cell, tmp_path: Path) -> None:
    told: list[str] = []
    runner = training(cell, tmp_path, told=told)
    with pytest.raises(KeyboardInterrupt):
        runner.train(cell, StopAfterEpoch())
    folder = runner.folders[cell.name]
    facts = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**facts, "torch": "1.0"}))
    assert runner.train(cell).finished
    assert "starts again; the earlier run was renamed to" in told[0]
    assert (tmp_path / "smoke" / f"{folder.name}.stale-1" / "metrics.jsonl").is_file()


def test_a_run_that_another_began_in_between_is_busy(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers looked, and neither saw a run: the one that comes second is not wrong, only late."""
    runner = training(cell, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.train(cell, StopAfterEpoch())
    seen = iter([[], [b"config"]])
    monkeypatch.setattr("diffvit.experiments.runner._beginning", lambda _: next(seen))
    with pytest.raises(RunBusyError):
        runner.train(cell)


def test_studies_share_the_run_of_the_base_recipe(tmp_path: Path) -> None:
    one = next(each for each in CELLS if each.arm == "cls")
    run = training(one, tmp_path).train(one)
    head = next(each for each in cells_of(STUDIES["head"], "smoke") if each.arm == "linear")
    [record] = records_of([head], tmp_path, tmp_path / "none")[head.name]
    assert record.row["test_accuracy"] == run.result["test_accuracy"]


def test_a_cell_is_known_by_its_data_precision_device_and_kernels(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same cell where auto means another precision is another run, and each keeps its row."""
    runs, on = {}, {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr("diffvit.training.environment.resolve_precision", lambda *_, found=precision: found)
        runs[precision], on[precision] = training(cell, tmp_path).train(cell), here(cell)
    for changed in ("fingerprint", "precision", "device", "kernels"):
        assert folder_of(cell, replace(on["fp32"], **{changed: "x"})) != folder_of(cell, on["fp32"])
    found = records_of([cell], tmp_path, tmp_path / "none")[cell.name]
    assert sorted(record.row["precision"] for record in found) == ["bf16", "fp32"]
    assert {record.row["run"] for record in found} == {f"{cell.name}-{each.tag}" for each in on.values()}
    assert {run.path for run in runs.values()} == {record.folder for record in found}
    assert uncommitted([cell], {cell.name: on["bf16"]}, tmp_path / "none") == [cell]
    write(tmp_path / "reports" / cell.study, found)
    for each in on.values():
        assert uncommitted([cell], {cell.name: each}, tmp_path / "reports") == []
    shapes = cell.config.shapes.model_copy(update={"seed": 1})
    other = here(replace(cell, config=cell.config.model_copy(update={"shapes": shapes})))
    assert (other.precision, other.device, other.kernels) == (on["bf16"].precision, "cpu", on["bf16"].kernels)
    assert other.fingerprint != on["bf16"].fingerprint
    plain = here(replace(cell, config=cell.config.model_copy(update={"accelerate": "off"})))
    assert plain == replace(on["bf16"], kernels="plain")
    assert uncommitted([cell], {cell.name: other}, tmp_path / "reports") == [cell]
