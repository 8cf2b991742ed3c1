"""Search for settings: Optuna's TPE over a study's ranges, poor trials pruned, judged by the validation split alone.

Source of the sampler: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", as Optuna has it.

Workers share an Optuna storage: SQLite on one machine, PostgreSQL across machines. A trial whose worker was killed is
found by Optuna's heartbeat and queued again with the values it had, so its run goes on from the last checkpoint.
"""

from __future__ import annotations

import hashlib
import random
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffvit.config import merge, to_yaml
from diffvit.errors import DiffvitError, EnvironmentFault, InputError, Interrupted, RunBusyError
from diffvit.experiments.runner import ATTEMPTS, Conditions, Runner, State, Tell, conditions_of, folder_of, tag_of
from diffvit.experiments.study import Cell, Range, SearchSpace, Study, TierName, recipe_of
from diffvit.files import Row, brought_up_to_date, disk_faults, read_csv, write_csv
from diffvit.files import replace as write_atomically
from diffvit.registry import label_of
from diffvit.training.progress import Progress, StopRequest

GRACE_SECONDS = 60.0  # without a heartbeat until a worker is taken for lost
TRIALS_FILE, REPORT, PLOT, BEST = "trials.csv", "report.md", "dials.png", "best-{}.yaml"
_ON = "on"  # attribute of a trial: what it is computed on
_CONDITIONS = ("data", "precision", "device")
_SEED = 0
_BEFORE_PRUNING = 5  # trials that all run to their end
_SAFE = 1 / 3  # of a trial's epochs: none is judged by how it begins, for a warm-up and small rates start slowly
_OPENINGS = 6  # of a database, while other workers create its tables
_PAUSE = 0.5  # seconds between looks where all that is left is run by others
_HINT = "Name a file for SQLite, or a database as in postgresql+psycopg://user@host/name."
_SHOWN, _COLUMNS = 5, 4  # trials of each attention in the table, panels side by side


def space_of(study: Study) -> SearchSpace:
    """What a study searches."""
    assert study.search is not None, f"study {study.name} searches nothing"
    return study.search


def safe_epochs(study: Study, tier: TierName) -> int:
    """Epochs that every trial runs before it may be pruned."""
    return int(recipe_of(study, tier).epochs * _SAFE)


def cell_of(study: Study, tier: TierName, attention: str, trial: str, values: Mapping[str, Any]) -> Cell:
    """The training of a trial that tries these values, by dotted names."""
    tried: dict[str, Any] = {}
    for setting, value in values.items():
        inner: Any = value
        for part in reversed(setting.split(".")):
            inner = {part: inner}
        tried = merge(tried, inner)
    own = {"seed": _SEED, "model": {"attention": attention}}
    return Cell(study.name, tier, trial, recipe_of(study, tier, tried, own))


def unpruned(study: Study, tier: TierName) -> list[Cell]:
    """All trials with the base recipe's values and none pruned, to estimate how long they take."""
    names = [_name(number) for number in range(space_of(study).trials[tier])]
    return [cell_of(study, tier, attention, name, {}) for attention in study.attentions for name in names]


def _name(number: int) -> str:
    return f"trial-{number:02}"


def open_study(
    place: str, study: Study, tier: TierName, attention: str, on: Sequence[Conditions], grace: float = GRACE_SECONDS
) -> Any:
    """The Optuna study of one attention; trials on other data, precision or devices are another study's.

    Args:
        place: see :func:`open_storage`.
        study: with a search.
        tier: how much.
        attention: of the models.
        on: what its trials are computed on.
        grace: seconds without a heartbeat until a worker is taken for lost.
    """
    return _load(open_storage(place, grace), f"{study.name}-{tier}-{attention}-{tag_of(on)}", study, tier)


def studies_in(place: str, study: Study, tier: TierName, attention: str) -> list[Any]:
    """All Optuna studies of one attention in a storage, whatever their trials were computed on."""
    storage = open_storage(place)
    names = sorted(each.study_name for each in storage.get_all_studies())
    close(storage)
    mine = [name for name in names if f"{name}-".startswith(f"{study.name}-{tier}-{attention}-")]
    return [_load(open_storage(place), name, study, tier) for name in mine]


def _load(storage: Any, name: str, study: Study, tier: TierName) -> Any:
    import optuna

    # A trial that runs counts as poor until it is done, so that no two workers try the same.
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=safe_epochs(study, tier) + 1
        ),
    )


def open_storage(place: str, grace: float = GRACE_SECONDS) -> Any:
    """An Optuna storage with heartbeats.

    Args:
        place: a path of an SQLite file, made where there is none, or a URL of SQLAlchemy's, which holds ``://``.
        grace: seconds without a heartbeat until a worker is taken for lost.

    Raises:
        EnvironmentFault: Optuna or the database's driver is missing, the database refuses, or the file cannot be
            written.
    """
    try:
        import optuna
    except ImportError as error:
        why = f"cannot be imported ({error})"
        raise EnvironmentFault("optuna", why, "Install it with: pip install 'diffvit[studies]'") from None
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if "://" not in place:
        try:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).open("ab").close()
        except (OSError, ValueError) as error:
            raise EnvironmentFault("--storage", f"cannot be written ({error})", _HINT) from None
        place, options = f"sqlite:///{place}", {"connect_args": {"timeout": 60}}
    for attempt in range(1, _OPENINGS + 1):
        try:
            with _quiet():
                beat, retry = max(1, int(grace / 4)), optuna.storages.RetryHeartbeatStaleTrialCallback
                return optuna.storages.RDBStorage(
                    place,
                    options,
                    heartbeat_interval=beat,
                    grace_period=max(2, int(grace)),
                    heartbeat_stale_trial_callback=retry(inherit_intermediate_values=True),
                )
        except (SQLAlchemyError, ImportError, ValueError) as error:
            # Workers that begin together create the tables together, and all but one are refused.
            refused = isinstance(error, IntegrityError | ProgrammingError | OperationalError)
            if not refused or attempt == _OPENINGS:
                why = f"cannot be opened ({' '.join(str(error).split())[:160]})"
                raise EnvironmentFault("--storage", why, _HINT) from None
            time.sleep(random.uniform(0.1, 0.5) * attempt)
    raise AssertionError("unreachable")


def close(storage: Any) -> None:
    """Close the connections of a storage."""
    storage = getattr(storage, "_backend", storage)
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes on what it calls experimental: heartbeats."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def storage_faults() -> Iterator[None]:
    """One clear line for a storage that is lost on the way."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        cause = error.__cause__ or error
        why = f"was lost ({' '.join(str(cause).split())[:160]})"
        hint = "What is done is kept. Start the study again when the storage is back."
        raise EnvironmentFault("--storage", why, hint) from error


def _number(trial: Any) -> int:
    """Number of a trial, or of the one that it repeats."""
    return trial.system_attrs.get("failed_trial", trial.number)


def _finished(trials: Sequence[Any]) -> list[Any]:
    """Trials that ran to their end or were pruned, by number."""
    return sorted((each for each in trials if each.state.name in ("COMPLETE", "PRUNED")), key=_number)


@dataclass(frozen=True)
class Search:
    """The search of one attention, as one worker sees it.

    Args:
        study: with a search.
        tier: how much.
        attention: of the models.
        optuna_study: of :func:`open_study`.
        runs: folder for the run folders.
        where: settings that say where and how, such as ``data_dir`` and ``device``.
        tell: told in a line what happens.
    """

    study: Study
    tier: TierName
    attention: str
    optuna_study: Any
    runs: Path
    where: Mapping[str, Any] = field(default_factory=dict)
    tell: Tell = lambda _: None

    def work(self, *, pause: float = _PAUSE) -> int:
        """Run trials until as many are finished as are wanted; returns how many this worker finished.

        Two workers may each begin the last trial; then there is one more.

        Raises:
            DiffvitError: of a trial, after :data:`~diffvit.experiments.runner.ATTEMPTS` trials with errors.
            Interrupted: this worker was stopped; the run's state is saved, and the trial is queued again.
            EnvironmentFault: the storage was lost.
        """
        import optuna

        wanted, finished, errors = space_of(self.study).trials[self.tier], 0, 0
        with storage_faults(), StopRequest() as stop:
            while not stop.signal:
                with _quiet():
                    optuna.storages.fail_stale_trials(self.optuna_study)
                trials = [each for each in self.optuna_study.get_trials(deepcopy=False) if each.state.name != "FAIL"]
                if len(_finished(trials)) >= wanted:
                    return finished
                if len(trials) >= wanted and not any(each.state.name == "WAITING" for each in trials):
                    time.sleep(pause)
                    continue
                try:
                    self.optuna_study.optimize(lambda trial: self._try(trial, stop), n_trials=1, catch=())
                    finished += 1
                except (Interrupted, optuna.exceptions.StorageInternalError):
                    raise
                except optuna.exceptions.UpdateFinishedTrialError:
                    self.tell("a trial was taken for lost and is repeated elsewhere")
                except Exception as error:
                    known = isinstance(error, DiffvitError)
                    self.tell(f"failed ({error})" if known else f"failed\n{traceback.format_exc()}")
                    errors += 1
                    if errors >= ATTEMPTS:
                        raise
        raise Interrupted(stop.signal, "worker", "was stopped between trials", "Every trial's state is saved.")

    def _try(self, trial: Any, stop: StopRequest) -> float:
        """Ask what to try, and train it; the validation accuracy at the end."""
        import optuna

        values = {name: _suggested(trial, name, each) for name, each in space_of(self.study).settings.items()}
        frozen = trial.study._storage.get_trial(trial._trial_id)
        cell = cell_of(self.study, self.tier, self.attention, _name(_number(frozen)), values)
        on = conditions_of(cell.config.model_copy(update=dict(self.where)))
        trial.set_user_attr(_ON, {known: getattr(on, known) for known in _CONDITIONS})
        self.tell(f"{cell.arm}, {self.attention}: begins")
        runner = Runner([cell], {cell.name: folder_of(cell, on, self.runs)}, self.where, tell=self.tell)
        while True:
            try:
                run = runner.train(cell, _Report(trial, set(frozen.intermediate_values)))
            except RunBusyError:  # its former worker was taken for lost and is not
                if not stop.signal:
                    time.sleep(_PAUSE)
                    continue
                raise
            except Interrupted:
                with _quiet():
                    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
                    retry(self.optuna_study, trial.study._storage.get_trial(trial._trial_id))
                raise
            self.tell(f"{cell.arm}, {self.attention}: {run.result['val_accuracy']:.2%}")
            return float(run.result["val_accuracy"])

    def state(self) -> State:
        """What has become of the trials."""
        trials = self.optuna_study.get_trials(deepcopy=False)
        done = {f"{_name(_number(each))}, {self.attention}": _value(each) for each in _finished(trials)}
        running = [each for each in trials if each.state.name == "RUNNING"]
        left = space_of(self.study).trials[self.tier] - len(done) - len(running)
        return State(
            done,
            {f"{_name(_number(each))}, {self.attention}": "a worker" for each in running},
            {},
            [f"a trial, {self.attention}"] * left,
        )


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


def _suggested(trial: Any, setting: str, values: Range) -> Any:
    """A value, by the study's sampler."""
    if values.choices:
        return trial.suggest_categorical(setting, values.choices)
    return trial.suggest_float(setting, values.low, values.high, log=values.log)


def _value(trial: Any) -> float:
    """Validation accuracy at the end; of a pruned trial the highest."""
    if trial.state.name == "COMPLETE":
        return trial.values[0]
    return max(trial.intermediate_values.values(), default=0.0)


def joined(states: Sequence[State]) -> State:
    """The states of several attentions as one."""
    return State(
        {name: value for each in states for name, value in each.done.items()},
        {name: value for each in states for name, value in each.running.items()},
        {name: value for each in states for name, value in each.failed.items()},
        [name for each in states for name in each.waiting],
        max(each.exit_code for each in states),
    )


def rows_of(study: Study, tier: TierName, optuna_studies: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Every finished trial, a row each.

    Args:
        study: with a search.
        tier: how much.
        optuna_studies: by attention, each for other data, precision or device.
    """
    rows: list[Row] = []
    for attention, each in ((attention, each) for attention, found in optuna_studies.items() for each in found):
        for trial in _finished(each.get_trials(deepcopy=False)):
            known = {"tier": tier, "attention": attention, "trial": _name(_number(trial))}
            known |= {"state": trial.state.name.lower(), **dict.fromkeys(_CONDITIONS), **trial.user_attrs.get(_ON, {})}
            known |= {"epochs": max(trial.intermediate_values, default=0), "val_accuracy": _value(trial)}
            rows.append({**known, **{setting: trial.params.get(setting) for setting in space_of(study).settings}})
    return rows


def write_report(study: Study, rows: Sequence[Row], folder: Path) -> Path:
    """Write trials.csv, report.md, the best of each attention as YAML, and the plot; the path of report.md.

    Raises:
        InputError: nothing was tried yet.
        EnvironmentFault: the disk refuses.
    """
    if not rows:
        raise InputError(
            f"study {study.name}", "has tried nothing yet", f"Run it first: diffvit study run {study.name}"
        )
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / TRIALS_FILE, rows)
    return update(study, folder)


def update(study: Study, folder: Path) -> Path:
    """Bring all but trials.csv up to date with it.

    Raises:
        InputError: trials.csv is missing or damaged.
    """
    from diffvit.reporting.style import stamp_of

    texts = texts_of(study, read_csv(folder / TRIALS_FILE))
    wanted = {folder / name: (text.encode(), "is not made from trials.csv") for name, text in texts.items()}
    brought_up_to_date(wanted, check=False)
    stamp, draw = plot_of(study, folder)
    if stamp_of(folder / PLOT) != stamp:
        with disk_faults(folder / PLOT):
            write_atomically(folder / PLOT, draw())
    return folder / REPORT


def texts_of(study: Study, rows: Sequence[Row]) -> dict[str, str]:
    """The report and the best of each attention as YAML, by file name."""
    texts = {REPORT: report(study, rows)}
    for attention, best in best_of(comparable(rows)).items():
        values = {setting: best[setting] for setting in space_of(study).settings}
        texts[BEST.format(attention)] = to_yaml(cell_of(study, best["tier"], attention, best["trial"], values).config)
    return texts


def plot_of(study: Study, folder: Path) -> tuple[str, Callable[[], bytes]]:
    """The plot's stamp, which is the digest of trials.csv, and what draws it as PNG."""
    stamp = hashlib.sha256((folder / TRIALS_FILE).read_bytes()).hexdigest()
    return stamp, lambda: plot(study, comparable(read_csv(folder / TRIALS_FILE)), stamp=stamp)


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows of the data, precision and device that most trials were computed on; trials of others are not ranked."""
    together: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(tuple(row.get(name) for name in _CONDITIONS), []).append(row)
    return max(together.values(), key=len)


def best_of(rows: Sequence[Row]) -> dict[str, Row]:
    """For each attention the complete trial with the highest validation accuracy, the first of equals."""
    complete = [row for row in rows if row["state"] == "complete"]
    attentions = dict.fromkeys(row["attention"] for row in complete)
    return {
        attention: max((row for row in complete if row["attention"] == attention), key=lambda row: row["val_accuracy"])
        for attention in attentions
    }


def report(study: Study, rows: Sequence[Row]) -> str:
    """The whole report as Markdown."""
    from diffvit.experiments.report import template

    ranked = comparable(rows)
    tier = ranked[0]["tier"]
    groups = {
        label_of(attention): [row for row in ranked if row["attention"] == attention] for attention in study.attentions
    }
    return template("search.md.j2").render(
        study=study,
        tier=tier,
        rows=ranked,
        epochs=recipe_of(study, tier).epochs,
        complete=sum(row["state"] == "complete" for row in ranked),
        conditions=", ".join(str(ranked[0][name]) for name in _CONDITIONS if ranked[0].get(name)),
        apart=len(rows) - len(ranked),
        tables={name: _table(study, mine) for name, mine in groups.items() if mine},
        best=[BEST.format(attention) for attention in best_of(ranked)],
    ) + "\n"  # fmt: skip


def words_of(study: Study, folder: Path) -> str:
    """The search in a few sentences, from its trials.csv."""
    from diffvit.reporting.tables import percent

    rows = comparable(read_csv(folder / TRIALS_FILE))
    found = [
        f"{label_of(attention)}: {percent(best['val_accuracy'])} validation accuracy with "
        + ", ".join(f"{setting} {_short(best[setting])}" for setting in space_of(study).settings)
        for attention, best in best_of(rows).items()
    ]
    tier = rows[0]["tier"]
    head = f"*{study.name}, tier {tier}, {len(rows)} trials of up to {recipe_of(study, tier).epochs} epochs"
    return f"{head}, exploratory.* The best of each: {'; '.join(found)}."


def _table(study: Study, rows: Sequence[Row]) -> Any:
    """The best complete trials."""
    from diffvit.reporting.tables import Table, percent

    order = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["val_accuracy"])
    settings = list(space_of(study).settings)
    cells = [
        [row["trial"], percent(row["val_accuracy"]), *(_short(row[setting]) for setting in settings)]
        for row in order[:_SHOWN]
    ]
    return Table(["Trial", "Validation accuracy", *settings], cells)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def plot(study: Study, rows: Sequence[Row], *, stamp: str = "") -> bytes:
    """A panel per setting, a mark per complete trial; PNG."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    from diffvit.reporting.style import LIGHT, colour, dress, figure, to_png

    settings = space_of(study).settings
    lines = -(-len(settings) // _COLUMNS)
    made = figure(LIGHT, 3.0 * _COLUMNS, 0.6 + 2.7 * lines)
    panels = made.subplots(lines, _COLUMNS, sharey=True, squeeze=False).flat
    for (setting, values), axes in zip(settings.items(), panels, strict=False):
        for place, attention in enumerate(study.attentions):
            mine = [row for row in rows if row["attention"] == attention and row["state"] == "complete"]
            across, heights = [row[setting] for row in mine], [100 * row["val_accuracy"] for row in mine]
            label, mark = label_of(attention), "osD^vP"[place % 6]
            axes.plot(across, heights, mark, color=colour(LIGHT, place), ms=5, alpha=0.75, mew=0, label=label)
        dress(axes, LIGHT, title="", x=setting, y="validation images right")
        axes.set_xscale("log" if values.log else "linear")
        if values.log:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if values.choices:
            axes.set_xticks(list(values.choices))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        if axes.get_subplotspec() and not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=LIGHT.ink)
    return to_png(made, stamp)
