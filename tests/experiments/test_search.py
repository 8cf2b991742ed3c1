"""The search: what it tries, when it prunes, what it does about errors and stops, and its report."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from diffvit.config import parse, read_yaml
from diffvit.errors import EnvironmentFault, InputError, Interrupted
from diffvit.experiments.report import write_search
from diffvit.experiments.results import best_of
from diffvit.experiments.runner import ATTEMPTS, Runner, conditions_of, folder_of
from diffvit.experiments.search import Search, cell_of, open_storage, open_study, rows_of, space_of
from diffvit.experiments.study import STUDIES, Cell, TierName
from diffvit.training.progress import Progress
from diffvit.training.run_dir import RunDir
from tests.experiments.study_rows import close

SEARCH = STUDIES["search"]
CPU = {"device": "cpu", "threads": 1}
Open = Callable[..., Search]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Searches as several workers see them, closed after the test."""
    made: list[Search] = []

    def search(tier: TierName = "smoke", grace: float = 60.0) -> Search:
        found = open_study(str(tmp_path / "deep" / "search.db"), SEARCH, tier, "softmax", "here", grace)
        made.append(Search(SEARCH, tier, {"softmax": found}, tmp_path, CPU, grace=grace))
        return made[-1]

    yield search
    for each in made:
        close(each.optuna_studies["softmax"])


def trials_in(search: Search, *states: str) -> list[Any]:
    return [trial for trial in search.optuna_studies["softmax"].get_trials() if trial.state.name in states]


def test_a_search_tries_what_is_suggested_and_reads_the_validation_split(opened: Open, tmp_path: Path) -> None:
    search = opened()
    assert search.work() == space_of(SEARCH).trials["smoke"] == 3
    assert opened().work() == 0  # nothing is left for another
    for found in trials_in(search, "COMPLETE"):
        assert set(found.params) == set(space_of(SEARCH).settings)
        tried = cell_of(SEARCH, "smoke", "softmax", "any", found.params)
        on = conditions_of(tried.config.model_copy(update=CPU))
        run = RunDir(folder_of(tried, on, tmp_path))
        assert found.values == [run.result["val_accuracy"]]
        assert run.config.validation_size == 100
        assert run.config.optimizer.muon_lr == found.params["optimizer.muon_lr"]
        assert found.intermediate_values == {row["epoch"]: row["val_accuracy"] for row in run.metrics}
    state = search.state()
    assert (len(state.done), state.running, state.waiting) == (3, {}, [])
    rows = rows_of(SEARCH, "smoke", {"softmax": [search.optuna_studies["softmax"]]})
    assert [row["trial"] for row in rows] == ["trial-00", "trial-01", "trial-02"]
    assert {row["data"] for row in rows} == {"shapes (clutter 0.3, noise 0.1)"}


def test_a_poor_trial_is_pruned_and_is_finished(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda _: True)
    search = opened()
    assert search.work() == 3
    assert len(trials_in(search, "PRUNED")) == 3
    assert len(search.state().done) == 3
    assert all(0 < value < 1 for value in search.state().done.values())


@pytest.mark.parametrize(("tier", "epochs"), [("short", 2), ("full", 5)])
def test_no_trial_is_judged_by_its_beginning(tier: TierName, epochs: int, opened: Open) -> None:
    total = {"short": 6, "full": 15}[tier]
    study = optuna.create_study(direction="maximize", pruner=opened(tier).optuna_studies["softmax"].pruner)
    for _ in range(5):
        good = study.ask()
        for epoch in range(1, total + 1):
            good.report(0.5, epoch)
        study.tell(good, 0.5)
    poor, judged = study.ask(), []
    for epoch in range(1, total + 1):
        poor.report(0.1, epoch)
        judged.append(poor.should_prune())
    assert judged == [False] * epochs + [True] * (total - epochs)


def replaced(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[Cell, Progress], None], tmp_path: Path) -> None:
    """Training, by something quick that may raise."""

    def train(self: Runner, cell: Cell, progress: Progress) -> RunDir:
        outcome(cell, progress)
        folder = self.folders[cell.name]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text('{"val_accuracy": 0.5}')
        return RunDir(folder)

    monkeypatch.setattr(Runner, "train", train)


def test_a_trial_that_is_stopped_goes_on_with_its_values(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = [True]

    def outcome(_: Cell, progress: Progress) -> None:
        if stops:
            progress.epoch({"epoch": 1, "val_accuracy": 0.3})
            raise Interrupted(15, f"run {stops.pop()}", "was stopped")
        progress.epoch({"epoch": 1, "val_accuracy": 0.4})  # known already: the first report stays

    replaced(monkeypatch, outcome, tmp_path)
    search = opened()
    with pytest.raises(Interrupted):
        search.work()
    [stopped] = trials_in(search, "FAIL")
    assert opened().work() == 3
    assert trials_in(search, "WAITING", "RUNNING") == []
    again = repetition(search, stopped)
    assert (again.params, again.intermediate_values) == (stopped.params, {1: 0.3})
    assert "trial-00, softmax" in search.state().done


def repetition(search: Search, trial: Any) -> Any:
    """The one trial that repeats this one."""
    done = trials_in(search, "COMPLETE")
    [again] = [each for each in done if trial.number in each.system_attrs.get("retry_history", [])]
    return again


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_a_worker_may_be_killed_at_any_moment(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first heartbeat; and between failing a lost trial and queueing it again. Two others then look."""
    search = opened(grace=0.0)
    killed, failed = (search.optuna_studies["softmax"].ask() for _ in range(2))
    values = space_of(SEARCH).settings["optimizer.lr"]
    failed.suggest_float("optimizer.lr", values.low, values.high, log=values.log)
    search.optuna_studies["softmax"].tell(failed.number, state=optuna.trial.TrialState.FAIL)
    replaced(monkeypatch, lambda *_: None, tmp_path)
    assert search.work() + opened(grace=0.0).work() == 3
    lost = trials_in(search, "FAIL")
    assert [trial.number for trial in lost] == [killed.number, failed.number]
    for trial in lost:
        assert trial.params.items() <= repetition(search, trial).params.items()
    assert len(search.optuna_studies["softmax"].get_trials()) == 5


def test_one_worker_at_a_time_looks_for_lost_trials(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, looks = opened(), list[int]()
    monkeypatch.setattr(optuna.storages, "fail_stale_trials", lambda _: looks.append(1))
    study = search.optuna_studies["softmax"]
    with RunDir(tmp_path / "smoke" / f"{study.study_name}.lost").lock():
        search._repeat_lost(study)
    assert looks == []
    search._repeat_lost(study)
    assert looks == [1]


def test_errors_end_a_worker_and_lose_nothing(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([None, *[InputError("data", "is gone")] * ATTEMPTS])

    def outcome(*_: object) -> None:
        if error := next(errors, None):
            raise error

    replaced(monkeypatch, outcome, tmp_path)
    search = opened()
    with pytest.raises(InputError, match="is gone"):
        search.work()
    assert len(search.state().done) == 1
    assert len(search.state().waiting) == 2
    assert search.work() == 2
    assert (search.state().exit_code, len(trials_in(search, "FAIL"))) == (0, ATTEMPTS)  # none of them repeated


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", "storage: cannot be opened ("),
        ("mysql+nothing://x/y", "storage: cannot be opened ("),
        ("/proc/none/search.db", "storage: cannot be written ("),
    ],
)
def test_a_storage_that_cannot_be_had_is_one_line(where: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffvit.experiments.search._OPENINGS", 1)
    with pytest.raises(EnvironmentFault) as caught:
        open_storage(where)
    assert str(caught.value).startswith(said)
    assert "Name a file for SQLite, or a database" in str(caught.value)


def searched() -> list[dict[str, object]]:
    values = {
        **{"optimizer.muon_lr": 0.005, "optimizer.lr": 0.002, "optimizer.weight_decay": 0.05, "schedule.warmup": 0.1},
        **{"label_smoothing": 0.1, "batch_size": 64, "model.mlp_ratio": 2.0, "augment.crop": 4},
    }
    return [
        {
            **{"tier": "short", "attention": attention, "trial": f"trial-{number:02}"},
            **{"state": "pruned" if number == 2 else "complete", "epochs": 6, "val_accuracy": 0.6 + number / 100},
            **values,
            "batch_size": 64 * 2 ** (number % 3),
        }
        for attention in ("softmax", "differential")
        for number in range(3)
    ]


def test_the_report_names_the_best_that_ran_to_its_end(tmp_path: Path) -> None:
    text = write_search(SEARCH, tmp_path, searched()).read_text()
    assert "6 trials of up to 6 epochs, 4 of them complete" in text
    assert text.index("| trial-01 | 61.00% |") < text.index("| trial-00 | 60.00% |")
    assert "trial-02" not in text  # pruned, though it was ahead
    assert {row["trial"] for row in best_of(searched()).values()} == {"trial-01"}
    config = parse(read_yaml(tmp_path / "best-differential.yaml"))
    assert (config.batch_size, config.model.attention, config.validation_size) == (128, "differential", 5000)
    before = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}
    assert before.keys() == {"trials.csv", "report.md", "settings.png", "best-softmax.yaml", "best-differential.yaml"}
    write_search(SEARCH, tmp_path)
    assert {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()} == before
    with (tmp_path / "trials.csv").open() as file:
        assert next(csv.reader(file))[-8:] == list(space_of(SEARCH).settings)
