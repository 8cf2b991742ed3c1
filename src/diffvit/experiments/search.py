"""Search for settings: Optuna's TPE over a study's ranges, poor trials pruned, judged by the validation split alone.

Source of the sampler: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", as Optuna has it.

Workers share an Optuna storage: SQLite on one machine, PostgreSQL across machines. A trial whose worker was killed is
found by Optuna's heartbeat and queued again with the values it had, so its run goes on from the last checkpoint.
"""

from __future__ import annotations

import random
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from diffvit.config import merge, nested
from diffvit.errors import DiffvitError, EnvironmentFault, Interrupted, RunBusyError
from diffvit.experiments.results import SEARCHED_ON as CONDITIONS
from diffvit.experiments.runner import ATTEMPTS, PAUSE, Runner, State, Tell, conditions_of, folder_of
from diffvit.experiments.study import GRACE_SECONDS, Cell, SearchSpace, Study, TierName, recipe_of
from diffvit.files import Row
from diffvit.training.progress import Progress, StopRequest
from diffvit.training.run_dir import RunDir

# Attributes of a trial: the conditions it is computed in, its number once it trains, and the error it ended with.
_ON, _BEGUN, _ERROR = "on", "begun", "error"
_SEED = 0
_BEFORE_PRUNING = 5  # trials that all run to their end
_SAFE = 1 / 3  # of a trial's epochs: none is judged by how it begins, for a warm-up and small rates start slowly
_OPENINGS = 6  # of a database, while other workers create its tables
_HINT = "Name a file for SQLite, or a database as in postgresql+psycopg://user@host/name."


def space_of(study: Study) -> SearchSpace:
    """What a study searches."""
    assert study.search is not None, f"study {study.name} searches nothing"
    return study.search


def cell_of(study: Study, tier: TierName, name: str, trial: str, values: Mapping[str, Any]) -> Cell:
    """The training of a trial that tries these values, by dotted names, for one of :attr:`Study.searched`."""
    own = merge(study.searched[name], {"seed": _SEED})
    return Cell(study.name, tier, trial, recipe_of(study, tier, nested(values), own))


def unpruned(study: Study, tier: TierName) -> list[Cell]:
    """All trials with the base recipe's values and none pruned, to estimate how long they take."""
    names = [_name(number) for number in range(study.trials(tier))]
    return [cell_of(study, tier, attention, name, {}) for attention in study.searched for name in names]


def _name(number: int) -> str:
    return f"trial-{number:02}"


def open_study(place: str, study: Study, tier: TierName, attention: str, tag: str, grace: float = GRACE_SECONDS) -> Any:
    """The Optuna study of one attention in a storage; ``tag`` tells the data, precision and device of its trials.

    Raises:
        EnvironmentFault: see :func:`open_storage`.
    """
    storage, safe = open_storage(place, grace), int(recipe_of(study, tier).epochs * _SAFE)
    import optuna

    return optuna.create_study(
        storage=storage,
        study_name=f"{study.name}-{tier}-{attention}-{tag}",
        load_if_exists=True,
        direction="maximize",
        # A trial that runs counts as poor until it is done, so that no two workers try the same.
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=safe + 1),
    )


def studies_in(place: str, study: Study, tier: TierName, attention: str) -> list[Any]:
    """All Optuna studies of one attention in a storage, whatever their trials were computed on."""
    storage = open_storage(place)
    import optuna

    names = sorted(each.study_name for each in storage.get_all_studies())
    mine = [name for name in names if name.rpartition("-")[0] == f"{study.name}-{tier}-{attention}"]  # then the tag
    return [optuna.load_study(study_name=name, storage=storage) for name in mine]


def open_storage(place: str, grace: float = GRACE_SECONDS) -> Any:
    """An Optuna storage with heartbeats; ``grace`` is how many seconds without one make a worker lost.

    ``place`` is a path of an SQLite file, made where there is none, or a URL of SQLAlchemy's, which holds ``://``.

    Raises:
        EnvironmentFault: Optuna or the database's driver is missing, the database refuses, or the file cannot be
            written.
    """
    try:
        import optuna
    except ImportError as error:
        why = f"cannot be imported ({error})"
        raise EnvironmentFault("optuna", why, "Install it with: pip install 'diffvit[studies]'") from None
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if "://" not in place:
        try:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).open("ab").close()
        except (OSError, ValueError) as error:
            raise EnvironmentFault("--storage", f"cannot be written ({error})", _HINT) from None
        place, options = f"sqlite:///{place}", {"connect_args": {"timeout": 60}}
    beat, lost = max(1, int(grace / 4)), max(2, int(grace))
    for attempt in range(1, _OPENINGS + 1):
        try:
            with _quiet():
                return optuna.storages.RDBStorage(place, options, heartbeat_interval=beat, grace_period=lost)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            # Workers that begin together create the tables together, and all but one are refused.
            if not isinstance(error, DBAPIError) or attempt == _OPENINGS:
                raise EnvironmentFault("--storage", f"cannot be opened ({_brief(error)})", _HINT) from None
            time.sleep(random.uniform(0.1, 0.5) * attempt)
    raise AssertionError("unreachable")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _quiet() -> AbstractContextManager[object]:
    """Without Optuna's notes on what it calls experimental: heartbeats."""
    import optuna

    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def _number(trial: Any) -> int:
    """Number of a trial, or of the one that it repeats."""
    return trial.system_attrs.get("failed_trial", trial.number)


def _finished(trials: Sequence[Any]) -> list[Any]:
    """Trials that ran to their end or were pruned, by number."""
    return sorted((each for each in trials if each.state.name in ("COMPLETE", "PRUNED")), key=_number)


@dataclass(frozen=True)
class Search:
    """A search as one worker sees it."""

    study: Study
    tier: TierName
    optuna_studies: Mapping[str, Any]  # of :func:`open_study`, by attention
    runs: Path  # folder for the run folders
    where: Mapping[str, Any] = field(default_factory=dict)  # settings of where and how: data_dir, device, threads
    tell: Tell = lambda _: None  # called with a line of text for each event
    grace: float = GRACE_SECONDS

    def work(self) -> int:
        """Run trials until as many are finished as are wanted; returns how many this worker finished.

        Two workers may each begin the last trial; then there is one more.

        Raises:
            DiffvitError: of a trial, after :data:`~diffvit.experiments.runner.ATTEMPTS` trials with errors.
            Interrupted: this worker was stopped; the run's state is saved, and the trial is queued again.
            EnvironmentFault: the storage was lost.
        """
        import optuna

        try:
            with StopRequest() as stop:
                finished = sum(self._search(attention, stop) for attention in self.optuna_studies)
        except optuna.exceptions.StorageInternalError as error:
            hint = "What is done is kept. Start the study again when the storage is back."
            raise EnvironmentFault("--storage", f"was lost ({_brief(error.__cause__ or error)})", hint) from error
        if stop.signal:
            raise Interrupted(stop.signal, "worker", "was stopped between trials", "Every trial's state is saved.")
        return finished

    def _search(self, attention: str, stop: StopRequest) -> int:
        """The trials of one attention, until a signal."""
        import optuna

        optuna_study, wanted = self.optuna_studies[attention], self.study.trials(self.tier)
        finished = errors = 0
        while not stop.signal:
            self._repeat_lost(optuna_study)
            trials = [each for each in optuna_study.get_trials(deepcopy=False) if each.state.name != "FAIL"]
            if len(_finished(trials)) >= wanted:
                break
            if len(trials) >= wanted and not any(each.state.name == "WAITING" for each in trials):
                time.sleep(PAUSE)
                continue
            try:
                optuna_study.optimize(lambda trial: self._try(trial, attention, stop), n_trials=1)
                finished += 1
            except (Interrupted, optuna.exceptions.StorageInternalError):
                raise
            except optuna.exceptions.UpdateFinishedTrialError:
                self.tell("a trial was considered lost and is repeated by another worker")
            except Exception as error:
                known = isinstance(error, DiffvitError)
                self.tell(f"failed ({error})" if known else f"failed\n{traceback.format_exc()}")
                errors += 1
                if errors >= ATTEMPTS:
                    raise
        return finished

    def _repeat_lost(self, optuna_study: Any) -> None:
        """Queue each trial of a lost or stopped worker again, once, with its values, wherever the worker was killed.

        Optuna's own callback loses the trial where a worker is killed between failing it and queueing it, and its
        heartbeat does not cover a trial whose worker was killed before the first beat. So a trial is queued again where
        it failed without an error of its own and has no repetition; a lock in ``runs`` lets one worker at a time do so.
        """
        import optuna

        failed = optuna.trial.TrialState.FAIL
        lock = RunDir(self.runs / self.tier / f"{optuna_study.study_name}.lost").lock()
        with suppress(RunBusyError), lock, _quiet():
            repeat = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
            optuna.storages.fail_stale_trials(optuna_study)
            began_before = datetime.now() - timedelta(seconds=self.grace)
            for trial in optuna_study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                if trial.user_attrs.get(_BEGUN) != trial.number and trial.datetime_start < began_before:
                    optuna_study.tell(trial.number, state=failed, skip_if_finished=True)
            trials = optuna_study.get_trials()
            repeated = {number for each in trials for number in each.system_attrs.get("retry_history", ())}
            for trial in trials:
                if trial.state == failed and trial.number not in repeated and _ERROR not in trial.user_attrs:
                    repeat(optuna_study, trial)

    def _try(self, trial: Any, attention: str, stop: StopRequest) -> float:
        """Ask what to try, and train it; the validation accuracy at the end."""
        import optuna

        trial.study._storage.record_heartbeat(trial._trial_id)  # the thread's first beat may come after the note below
        trial.set_user_attr(_BEGUN, trial.number)
        try:
            values = {
                name: trial.suggest_categorical(name, each.choices)
                if each.choices
                else trial.suggest_float(name, each.low, each.high, log=each.log)
                for name, each in space_of(self.study).settings.items()
            }
            frozen = trial.study._storage.get_trial(trial._trial_id)
            cell = cell_of(self.study, self.tier, attention, _name(_number(frozen)), values)
            on = conditions_of(cell.config.model_copy(update=dict(self.where)))
            trial.set_user_attr(_ON, {known: getattr(on, known) for known in CONDITIONS})
            self.tell(f"{cell.arm}, {attention}: begins")
            runner = Runner([cell], {cell.name: folder_of(cell, on, self.runs)}, self.where, tell=self.tell)
            accuracy = _accuracy(runner, cell, _Report(trial, set(frozen.intermediate_values)), stop)
        except (Interrupted, RunBusyError, optuna.TrialPruned):
            raise
        except Exception as error:
            trial.set_user_attr(_ERROR, str(error))
            raise
        self.tell(f"{cell.arm}, {attention}: {accuracy:.2%}")
        return accuracy

    def state(self) -> State:
        """State of the trials, from the storage."""
        state = State()
        for attention, optuna_study in self.optuna_studies.items():
            trials = optuna_study.get_trials(deepcopy=False)
            done, running = _finished(trials), [each for each in trials if each.state.name == "RUNNING"]
            state.done |= {f"{_name(_number(each))}, {attention}": _value(each) for each in done}
            state.running |= {f"{_name(_number(each))}, {attention}": "a worker" for each in running}
            left = self.study.trials(self.tier) - len(done) - len(running)
            state.waiting += [f"a trial, {attention}"] * left
        return state


def _accuracy(runner: Runner, cell: Cell, report: Progress, stop: StopRequest) -> float:
    """Train a trial's cell; waits where its former worker, which was taken for lost, still holds the run folder."""
    while True:
        try:
            return float(runner.train(cell, report).result["val_accuracy"])
        except RunBusyError:
            if stop.signal:
                raise
            time.sleep(PAUSE)


class _Report(Progress):
    """Tells Optuna each epoch's validation accuracy, and stops a poor trial."""

    def __init__(self, trial: Any, known: set[int]) -> None:
        self._trial = trial
        self._known = known  # epochs reported before a former worker was killed

    def epoch(self, row: Mapping[str, Any]) -> None:
        """See :class:`~diffvit.training.progress.Progress`."""
        import optuna

        if int(row["epoch"]) not in self._known:
            self._trial.report(row["val_accuracy"], int(row["epoch"]))
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _value(trial: Any) -> float:
    """Validation accuracy at the end; of a pruned trial the highest."""
    if trial.state.name == "COMPLETE":
        return trial.values[0]
    return max(trial.intermediate_values.values(), default=0.0)


def rows_of(study: Study, tier: TierName, optuna_studies: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Every finished trial, a row each; ``optuna_studies`` of an attention are for other data, precision or device."""
    rows: list[Row] = []
    for attention, each in ((attention, each) for attention, found in optuna_studies.items() for each in found):
        for trial in _finished(each.get_trials(deepcopy=False)):
            known = {"tier": tier, "attention": attention, "trial": _name(_number(trial))}
            known |= {"state": trial.state.name.lower(), **dict.fromkeys(CONDITIONS), **trial.user_attrs.get(_ON, {})}
            known |= {"epochs": max(trial.intermediate_values, default=0), "val_accuracy": _value(trial)}
            rows.append({**known, **{setting: trial.params.get(setting) for setting in space_of(study).settings}})
    return rows
