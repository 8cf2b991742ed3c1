"""``diffvit study``: list, show, run and report experiments."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from diffvit.cli import OPTIONS, show
from diffvit.cli.options import OUTPUT, SWITCH, DataDir, DeviceFlag, Output, settings_of
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, Interrupted
from diffvit.experiments.study import (
    GRACE_SECONDS,
    REPORTS,
    RUNS,
    STUDIES,
    TIERS,
    Study,
    TierName,
    cells_of,
    differing,
    find_study,
    seeds_of,
)

if TYPE_CHECKING:
    from diffvit.experiments.runner import Runner
    from diffvit.experiments.search import Search
    from diffvit.reporting.rows import RunRecord

app = App(name="study", help_format="plaintext", group_parameters=OPTIONS)
_CONDITIONS = ("data", "precision", "device", "kernels")  # as a cell's rows are told apart
_SIGNALLED = 128

Name = Annotated[str, Parameter(name="NAME", help="A name listed by diffvit study list, or your own YAML file.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Places:
    """Where everything lies."""

    storage: Annotated[str | None, Parameter(show_default="an SQLite file in --runs")] = None
    """Storage of a search's trials: an SQLite file, or a database (postgresql+psycopg://user@host/name)."""
    runs: Path = RUNS
    """Folder of the run folders, which studies share."""
    reports: Path = REPORTS
    """Folder of committed reports; cells with a row there are not run again."""

    def trials(self, study: Study, tier: TierName) -> str:
        """The storage of a search."""
        return self.storage or str(self.runs / tier / f"{study.name}.db")


@Parameter(name="*")
@dataclass(frozen=True)
class Selection:
    """Which cells of a study."""

    tier: TierName = "short"
    """Size of the study: smoke (seconds), short and standard (minutes to hours on a CPU), full (for a GPU)."""
    seeds: Annotated[int | None, Parameter(show_default="the study's own")] = None
    """Number of seeds."""


SELECTION, PLACES = Selection(), Places()


@app.command(name="list")
def list_studies(*, output: Output = OUTPUT) -> None:
    """List the studies, their arms and estimated times."""
    from diffvit.experiments.launch import measured, rate_of, seconds_of
    from diffvit.experiments.search import unpruned
    from diffvit.reporting.tables import duration

    rows, found, known = [], [], measured(REPORTS)
    rates = {tier: rate_of(known, "cuda" if tier == "full" else "cpu") for tier in TIERS}
    for study in STUDIES.values():
        arms = list(study.search.settings if study.search else study.arms)
        times: dict[str, float | None] = {}
        columns = []
        for tier in TIERS:
            if study.search and tier not in study.search.trials:
                columns.append(show.NONE)
                continue
            cells = unpruned(study, tier) if study.search else cells_of(study, tier)
            times[tier] = seconds = seconds_of(cells, rates[tier])
            columns.append(f"{len(cells)} runs, {'not measured' if seconds is None else duration(seconds)}")
        found.append({"study": study.name, "question": study.question, "arms": arms, "seconds": times})
        seeds = 1 if study.search else seeds_of(study, "short")
        rows.append([study.name, study.question, ", ".join(arms), f"{seeds}", *columns])
    show.table(["study", "question", "arms", "seeds", *(f"tier {tier}" for tier in TIERS)], rows)
    for name, tier in TIERS.items():
        show.line(f"{name}: {tier.words}")
    show.line("Times are estimated from committed rows: two CPU cores, for tier full one GPU of that kind.")
    output.as_json({"studies": found})


@app.command(name="show")
def show_study(name: Name, /, *, what: Selection = SELECTION, places: Places = PLACES, output: Output = OUTPUT) -> None:
    """Show a study's cells and their results."""
    from diffvit.experiments.results import records_of, tuned

    study = find_study(name)
    if (ready := tuned(study, what.tier, places.reports)) is None:
        show.warn([f"not tuned yet: the rates below are the recipe's, until {study.tuned} has been run"])
    study = ready or study
    if study.search:
        cells = study.trials(what.tier) * len(study.searched)
        found = {"study": study.name, "tier": what.tier, "trials": cells}
        columns = ["setting", "values"]
        rows = [
            [setting, ", ".join(map(str, each.choices)) or f"{each.low} to {each.high}"]
            for setting, each in study.search.settings.items()
        ]
        line = f"{cells} trials; those done are in the report: diffvit study report {study.name}"
    else:
        cells = cells_of(study, what.tier, seeds=what.seeds)
        records = records_of(cells, places.runs, places.reports, study.score)
        apart = differing({cell.name: cell.config for cell in cells})
        found = {"study": study.name, "tier": what.tier, "trials": len(cells), "done": len(records)}
        columns = ["cell", *next(iter(apart.values())), "test accuracy"]
        rows = [
            [cell.name, *map(str, apart[cell.name].values()), _accuracies(records.get(cell.name, ()))] for cell in cells
        ]
        line = f"{len(records)} of {len(cells)} cells are done"
    show.pairs({"study": study.name, "question": study.question, "tier": f"{what.tier}: {TIERS[what.tier].words}"})
    show.table(columns, rows)
    show.line(line)
    output.as_json(found)


def _accuracies(records: Sequence[RunRecord]) -> str:
    """Of a cell, with the conditions of each where there are several."""
    if len(records) == 1:
        return show.percent(records[0].row["test_accuracy"])
    shown = [
        f"{show.percent(record.row['test_accuracy'])} ({', '.join(str(record.row[name]) for name in _CONDITIONS)})"
        for record in records
    ]
    return "; ".join(shown) or show.NONE


def _worker_of(
    study: Study, what: Selection, places: Places, where: Mapping[str, Any], grace: float = GRACE_SECONDS
) -> Runner | Search:
    """A worker on this machine: for the cells without committed rows, or for the search."""
    from diffvit.experiments.results import tuned
    from diffvit.experiments.runner import Runner, conditions_of, folder_of, uncommitted

    if not study.search:
        ready = tuned(study, what.tier, places.reports)
        if ready is None:
            again = (
                f"diffvit study run {study.tuned} --tier {what.tier}, then diffvit study report with the same options"
            )
            raise ConfigError(f"study {study.name}", f"{study.tuned} has not tuned every arm", f"Run: {again}.")
        study = ready
        cells = cells_of(study, what.tier, seeds=what.seeds)
        on = {cell.name: conditions_of(cell.config.model_copy(update=dict(where))) for cell in cells}
        folders = {cell.name: folder_of(cell, on[cell.name], places.runs) for cell in cells}
        return Runner(uncommitted(cells, on, places.reports), folders, where, study.score, show.line)

    from diffvit.experiments.search import Search, open_study, unpruned

    tag = conditions_of(unpruned(study, what.tier)[0].config.model_copy(update=dict(where))).tag
    storage = places.trials(study, what.tier)
    tried = {each: open_study(storage, study, what.tier, each, tag, grace) for each in study.searched}
    return Search(study, what.tier, tried, places.runs, where, show.line, grace)


@app.command
def work(
    name: Name,
    /,
    *,
    what: Selection = SELECTION,
    places: Places = PLACES,
    cell: Annotated[
        str | None, Parameter(show_default="all", help="Run only this cell; exit code 6 if it is taken.")
    ] = None,
    data_dir: DataDir = None,
    device: DeviceFlag = None,
    threads: Annotated[int, Parameter(help="CPU threads; 0 is all usable cores.")] = 0,
    lease: Annotated[
        float, Parameter(help="For a search: seconds without a heartbeat until a worker counts as lost.")
    ] = GRACE_SECONDS,
) -> None:
    """Run one worker until no cell is left. ``run`` starts workers; on other machines start them by hand."""
    from dataclasses import replace

    from diffvit.experiments.runner import Runner

    where: dict[str, Any] = {"threads": threads, "data_dir": data_dir}
    where |= {} if device is None else {"device": device}
    worker = _worker_of(find_study(name), what, places, where, lease)
    if cell is None or not isinstance(worker, Runner):
        worker.work()
    else:
        replace(worker, cells=[one for one in worker.cells if one.name == cell]).work(wait=False)


@app.command
def run(
    name: Name,
    /,
    *,
    what: Selection = SELECTION,
    places: Places = PLACES,
    workers: Annotated[int, Parameter(help="Worker processes, or Slurm jobs at a time.")] = 1,
    launcher: Annotated[
        Literal["local", "slurm"], Parameter(help="Run workers on this machine, or as Slurm jobs.")
    ] = "local",
    data_dir: DataDir = None,
    device: DeviceFlag = None,
    quiet: Annotated[bool, SWITCH, Parameter(help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """Run every cell (training) that is not done yet; a stopped study continues where it was."""
    if workers < 1:
        raise ConfigError("--workers", f"must be at least 1 (found {workers})")

    from diffvit.experiments.launch import StudyProgress, run_here, submit, worker_command
    from diffvit.experiments.results import tuned
    from diffvit.experiments.runner import Runner
    from diffvit.training.environment import usable_cores

    study = find_study(name)
    if study.tuned and launcher == "local" and tuned(study, what.tier, places.reports) is None:
        run(study.tuned, what=what, places=places, workers=workers, data_dir=data_dir, device=device, quiet=quiet)
        report(study.tuned, tier=what.tier, places=places)
    if places.storage and not (study.search or study.tuned):
        show.warn([f"--storage is for a search; the state of {study.name} is in its run folders"])
    device = settings_of(device=device).device
    worker = _worker_of(study, what, places, {"device": device, "data_dir": data_dir})
    cells, committed = (), 0
    if isinstance(worker, Runner):
        cells, committed = worker.cells, len(worker.folders) - len(worker.cells)
        if (again := worker.forget_errors()) and not quiet:
            show.line(f"skipped before, tried again: {', '.join(again)}")
    progress = StudyProgress(study, what.tier, cells, committed, worker.state, places.reports, quiet)
    command = [name, "--tier", what.tier, "--runs", str(places.runs), "--reports", str(places.reports)]
    command += ["--storage", places.trials(study, what.tier)] if study.search else []
    command += ["--seeds", str(what.seeds)] if what.seeds else []
    command += ["--device", device, *(["--data-dir", str(data_dir)] if data_dir else [])]
    logs, codes = places.runs / what.tier / f"{study.name}.logs", []
    state = progress.begin(device)
    try:
        if launcher == "slurm" and state.waiting:
            own = [[]] * workers if study.search else [["--cell", cell] for cell in state.waiting]
            commands = [worker_command([*command, *each]) for each in own]
            jobs = submit(commands, places.runs / "slurm", at_once=workers, gpus=1 if what.tier == "full" else 0)
            ids = ", ".join(job.job_id for job in jobs)
            show.line(f"submitted {len(jobs)} jobs ({ids}); progress: diffvit study show {name}")
        elif launcher == "local" and (state.waiting or state.running):
            threads = ["--threads", str(max(1, usable_cores() // workers))]
            codes = run_here(worker_command([*command, *threads]), workers, logs, progress.show)
        state = progress.end()
    finally:
        progress.close()
    given = {"--tier": (what.tier, "short"), "--runs": (places.runs, RUNS), "--reports": (places.reports, REPORTS)}
    options = [part for flag, (value, usual) in given.items() if value != usual for part in (flag, str(value))]
    show.line(f"next  {shlex.join(['diffvit', 'study', 'report', name, *options])}")
    told = {"failed": state.failed, "waiting": state.waiting, "running": state.running}
    output.as_json({"study": study.name, "tier": what.tier, "done": len(state.done), **told})
    if worst := max(codes, default=0):
        raise _ended(study.name, worst, logs)
    if state.exit_code:
        why = f"cells that failed repeatedly were skipped ({', '.join(state.failed)})"
        fault = DiffvitError(f"study {study.name}", why, f"All other results are kept. See {logs}; run again to retry.")
        fault.exit_code = state.exit_code
        raise fault


def _ended(name: str, code: int, logs: Path) -> DiffvitError:
    """What to say where workers did not end well."""
    again = "Run the same command to go on."
    if code > _SIGNALLED:
        return Interrupted(code - _SIGNALLED, f"study {name}", "was stopped", f"Its runs are saved. {again}")
    fault = EnvironmentFault(f"study {name}", f"a worker ended with exit code {code}", f"See {logs}. {again}")
    fault.exit_code = code
    return fault


@app.command
def report(
    name: Name,
    /,
    *,
    tier: Annotated[
        TierName | None, Parameter(show_default="the largest that is complete", help="Tier to report.")
    ] = None,
    places: Places = PLACES,
    output: Output = OUTPUT,
) -> None:
    """Write reports/NAME from finished runs and committed rows: tables, intervals, plots, best configuration."""
    from diffvit.experiments import report as made
    from diffvit.experiments.results import TRIALS_FILE
    from diffvit.experiments.search import rows_of, studies_in

    study, given = find_study(name), tier or "short"
    found: dict[str, Any] = {"study": study.name, "tier": given}
    if study.search:
        storage, folder = places.trials(study, given), places.reports / study.name
        if places.storage or Path(storage).is_file() or not (folder / TRIALS_FILE).is_file():
            tried = {each: studies_in(storage, study, given, each) for each in study.searched}
            path = made.write_search(study, folder, rows_of(study, given, tried))
        else:  # from the committed trials
            path = made.write_search(study, folder)
    else:
        results = made.gathered(study, places.runs, places.reports, tier=tier)
        path, found["tier"] = made.write_report(results, places.reports), results.tier
        if study.report:
            table, found["missing"] = made.table(results), list(results.missing)
            show.line(f"{study.name}, tier {results.tier}: {study.question}")
            show.table(table.columns, table.rows)
            for line in made.answers(results):
                show.line(line.replace("**", ""))
    show.line(f"report  {path}")
    output.as_json({**found, "report": path})
