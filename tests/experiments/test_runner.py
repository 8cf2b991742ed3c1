"""A worker: what it does with trials that end in every way, and how a training is taken up."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from diffvit.errors import InputError, Interrupted, RunBusyError
from diffvit.experiments.definitions import STUDIES
from diffvit.experiments.ledger import ATTEMPTS, Ledger
from diffvit.experiments.pool import Conditions, committed, conditions_of, folder_of, records_of
from diffvit.experiments.runner import Pruned, Training, work
from diffvit.experiments.search import DIALS, EPOCHS, Search, ledger_for, slots_of, trial_of
from diffvit.experiments.standing import Claim
from diffvit.experiments.trials import Trial, trials_of
from diffvit.reporting.rows import write
from diffvit.training.progress import QuietProgress
from diffvit.training.run_dir import RunDir
from diffvit.training.signals import StopRequest

CPU = {"device": "cpu", "threads": 1}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "journal"), "test", ["a", "b", "c"])


def raising(cell: str, error: Exception) -> Callable[[Claim], float]:
    def execute(claim: Claim) -> float:
        if claim.cell == cell:
            raise error
        return 0.5

    return execute


@pytest.mark.parametrize(
    ("error", "words"),
    [(InputError("data", "is gone"), "data: is gone."), (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero")],
)
def test_whatever_a_trial_dies_of_the_study_goes_on(ledger: Ledger, error: Exception, words: str) -> None:
    told: list[str] = []
    assert work(ledger, raising("b", error), tell=told.append, pause=0.01) == 2
    assert ledger.standing().failed == {"b": words}
    assert set(ledger.standing().done) == {"a", "c"}
    assert sum(line.startswith("b: failed") for line in told) == ATTEMPTS


def test_a_stopped_worker_gives_its_trial_back(ledger: Ledger) -> None:
    with pytest.raises(Interrupted):
        work(ledger, raising("b", Interrupted(15, "run", "was stopped")))
    standing = ledger.standing()
    assert set(standing.done) == {"a"}
    assert standing.running == {}
    assert standing.waiting == ["b", "c"]
    assert work(ledger, lambda _: 0.5) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_trials_last_moments_stops_the_worker_after_it(ledger: Ledger, number: int) -> None:
    def execute(claim: Claim) -> float:
        with StopRequest():  # as a training that has no step left to stop at
            os.kill(os.getpid(), number)
        return 0.5

    with pytest.raises(Interrupted) as raised:
        work(ledger, execute)
    assert raised.value.exit_code == 128 + number
    standing = ledger.standing()
    assert (standing.done, standing.running, standing.waiting) == ({"a": 0.5}, {}, ["b", "c"])


def test_a_worker_that_waits_for_another_can_be_stopped(ledger: Ledger) -> None:
    theirs = [ledger.claim(), ledger.claim(), ledger.claim()]
    assert all(theirs)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted, match="between trials"):
        work(ledger, lambda _: 0.5, pause=0.05)
    timer.join()
    assert len(ledger.standing().running) == 3


def test_a_busy_run_is_waited_for(ledger: Ledger) -> None:
    busy = iter([True, True, False])

    def execute(claim: Claim) -> float:
        if claim.cell == "a" and next(busy):
            raise RunBusyError("runs/x", "another process is training here (process 1)")
        return 0.5

    assert work(ledger, execute, pause=0.01) == 3
    assert set(ledger.standing().done) == {"a", "b", "c"}


def test_a_pruned_trial_is_done(ledger: Ledger) -> None:
    assert work(ledger, raising("a", Pruned())) == 3
    assert ledger.standing().done == {"a": 0.0, "b": 0.5, "c": 0.5}


def test_a_long_trial_keeps_its_lease(tmp_path: Path) -> None:
    mine = Ledger(str(tmp_path / "journal"), "test", ["a"], lease=0.4)
    other = Ledger(str(tmp_path / "journal"), "test", ["a"], lease=0.4)
    beats = []

    def execute(claim: Claim) -> float:
        import time

        for _ in range(8):
            time.sleep(0.15)
            assert other.claim() is None
            beats.append(next(t for t in other.history() if t.number == claim.number).user_attrs["lease"][0])
        return 1.0

    assert work(mine, execute) == 1
    assert len(set(beats)) > 3


@pytest.fixture
def trial() -> Trial:
    return trials_of(STUDIES["pooling"], "smoke")[0]


def here(trial: Trial) -> Conditions:
    return conditions_of(trial.config.model_copy(update=CPU))


class StopAfterEpoch(QuietProgress):
    def epoch(self, row: object) -> None:
        raise KeyboardInterrupt


def test_a_training_is_taken_up_and_gives_the_same_bits(trial: Trial, tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole", CPU)(trial)
    training = Training(tmp_path / "parts", CPU)
    with pytest.raises(KeyboardInterrupt):
        training(trial, StopAfterEpoch())
    assert not RunDir(folder_of(trial, here(trial), tmp_path / "parts")).finished
    parts = training(trial)
    assert [row["train_loss"] for row in parts.metrics] == [row["train_loss"] for row in whole.metrics]
    assert (parts.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    before = (parts.path / "result.json").stat().st_mtime_ns
    assert training(trial).result == parts.result
    assert (parts.path / "result.json").stat().st_mtime_ns == before  # read, not made again


def test_a_run_begun_with_other_threads_goes_on_with_those(trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, CPU)(trial, StopAfterEpoch())
    run = Training(tmp_path, {"device": "cpu", "threads": 2})(trial)
    assert run.environment["threads"] == 1
    assert run.finished


def test_a_run_that_cannot_be_taken_up_is_put_aside(trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, CPU)(trial, StopAfterEpoch())
    folder = folder_of(trial, here(trial), tmp_path)
    facts = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**facts, "torch": "1.0"}))
    told: list[str] = []
    assert Training(tmp_path, CPU, told.append)(trial).finished
    assert "begins anew, what was there is now" in told[0]
    assert (tmp_path / "smoke" / f"{folder.name}.stale-1" / "metrics.jsonl").is_file()


def test_studies_share_the_run_of_the_base_recipe(tmp_path: Path) -> None:
    one = next(t for t in trials_of(STUDIES["pooling"], "smoke") if t.arm == "cls")
    two = next(t for t in trials_of(STUDIES["depth"], "short") if t.arm == "depth 4")
    three = next(t for t in trials_of(STUDIES["mlp-ratio"], "short") if t.arm == "ratio 2")
    assert folder_of(two, here(one)) == folder_of(three, here(one))
    run = Training(tmp_path, CPU)(one)
    head = next(t for t in trials_of(STUDIES["head"], "smoke") if t.arm == "linear")
    [record] = records_of([head], tmp_path, tmp_path / "none")[head.name]
    assert record.row["test_accuracy"] == run.result["test_accuracy"]


def test_a_cell_is_known_by_its_data_precision_device_and_kernels(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trial where auto means another precision is another run, and each keeps its row."""
    runs, on = {}, {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr("diffvit.training.environment.resolve_precision", lambda *_, found=precision: found)
        runs[precision], on[precision] = Training(tmp_path, CPU)(trial), here(trial)
    for changed in ("fingerprint", "precision", "device", "kernels"):
        assert folder_of(trial, replace(on["fp32"], **{changed: "x"})) != folder_of(trial, on["fp32"])
    found = records_of([trial], tmp_path, tmp_path / "none")[trial.name]
    assert sorted(record.row["precision"] for record in found) == ["bf16", "fp32"]
    assert {record.row["run"] for record in found} == {f"{trial.name}-{each.tag}" for each in on.values()}
    assert {run.path for run in runs.values()} == {record.folder for record in found}
    assert committed([trial], {trial.name: on["bf16"]}, tmp_path / "none") == {}
    write(tmp_path / "reports" / trial.study, found)
    for precision, each in on.items():
        known = committed([trial], {trial.name: each}, tmp_path / "reports")
        assert known[trial.name].row["precision"] == precision
    other = replace(on["bf16"], fingerprint="of other images")
    assert committed([trial], {trial.name: other}, tmp_path / "reports") == {}


def test_other_images_are_another_cell(trial: Trial) -> None:
    shapes = trial.config.shapes.model_copy(update={"seed": 1})
    other = replace(trial, config=trial.config.model_copy(update={"shapes": shapes}))
    assert here(other).fingerprint != here(trial).fingerprint
    assert here(other).tag != here(trial).tag


def test_a_search_tries_what_is_suggested_and_reads_the_validation_split(tmp_path: Path) -> None:
    ledger = ledger_for(str(tmp_path / "journal"), "smoke", "softmax", 60.0, {})
    training = Training(tmp_path, CPU)
    assert work(ledger, Search(ledger, "smoke", "softmax", training)) == len(slots_of("smoke"))
    for found in (trial for trial in ledger.history() if trial.state.name == "COMPLETE"):
        assert set(found.params) == {dial.setting for dial in DIALS}
        tried = trial_of("smoke", "softmax", found.user_attrs["cell"], found.params)
        run = RunDir(folder_of(tried, here(tried), tmp_path))
        assert found.values == [run.result["val_accuracy"]]
        assert run.config.validation_size == 100
        assert run.config.optimizer.muon_lr == found.params["optimizer.muon_lr"]
        assert found.intermediate_values == {row["epoch"]: row["val_accuracy"] for row in run.metrics}


def test_a_poor_trial_of_a_search_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_for(str(tmp_path / "journal"), "smoke", "softmax", 60.0, {})
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda _: True)
    assert work(ledger, Search(ledger, "smoke", "softmax", Training(tmp_path, CPU))) == len(slots_of("smoke"))
    assert {trial.state.name for trial in ledger.history()} == {"PRUNED"}
    assert all(0 < value < 1 for value in ledger.standing().done.values())


@pytest.mark.parametrize(("tier", "epochs"), [("short", 2), ("full", 5)])
def test_no_trial_of_a_search_is_judged_by_its_beginning(tier: str, epochs: int, tmp_path: Path) -> None:
    ledger = ledger_for(str(tmp_path / "journal"), tier, "softmax", 60.0, {})
    study = optuna.create_study(direction="maximize", pruner=ledger.pruner)
    for _ in range(5):
        good = study.ask()
        for epoch in range(1, EPOCHS[tier] + 1):
            good.report(0.5, epoch)
        study.tell(good, 0.5)
    poor = study.ask()
    judged = []
    for epoch in range(1, EPOCHS[tier] + 1):
        poor.report(0.1, epoch)
        judged.append(poor.should_prune())
    assert judged == [False] * epochs + [True] * (EPOCHS[tier] - epochs)
