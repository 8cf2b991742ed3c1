"""``diffvit study``: list, show, run and report experiments."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output
from diffvit.config import resolve
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, Interrupted
from diffvit.experiments.study import (
    REPORTS,
    RUNS,
    STUDIES,
    TIERS,
    Cell,
    Study,
    TierName,
    cells_of,
    differing,
    find_study,
    seeds_of,
)
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.experiments.runner import Runner
    from diffvit.experiments.search import Search
    from diffvit.reporting.rows import RunRecord
    from diffvit.training.run_dir import RunDir

app = App(name="study", help_format="plaintext")
_CONDITIONS = ("data", "precision", "device", "kernels")  # as a cell's rows are told apart
_GRACE_SECONDS = 60.0
_SIGNALLED = 128

Name = Annotated[str, Parameter(name="NAME", help="One of diffvit study list, or a YAML file of your own.")]
DeviceFlag = Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")]


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class Selection:
    """Which cells of a study, and where everything lies."""

    tier: TierName = "short"
    """How much: smoke (seconds), short (minutes to hours of a CPU), full (a GPU)."""
    seeds: Annotated[int | None, Parameter(show_default="the study's own")] = None
    """How many seeds."""
    storage: Annotated[str | None, Parameter(show_default="an SQLite file in --runs")] = None
    """Where a search keeps its trials: a file, or across machines a database (postgresql+psycopg://user@host/name)."""
    runs: Path = RUNS
    """Folder for the run folders; studies share them."""
    reports: Path = REPORTS
    """Folder with the committed reports, whose rows are not run again."""

    def cells(self, study: Study) -> tuple[Cell, ...]:
        """Every cell of a study with arms."""
        return cells_of(study, self.tier, seeds=self.seeds)

    def place(self, study: Study) -> str:
        """The storage of a search."""
        return self.storage or str(self.runs / self.tier / f"{study.name}.db")

    def report_command(self, name: str) -> str:
        """The command that reports these cells."""
        given = {"--tier": (self.tier, "short"), "--runs": (self.runs, RUNS), "--reports": (self.reports, REPORTS)}
        told = [part for flag, (value, usual) in given.items() if value != usual for part in (flag, str(value))]
        return shlex.join(["diffvit", "study", "report", name, *told])

    def arguments(self, name: str, study: Study) -> list[str]:
        """The same on a worker's command line."""
        found = [name, "--tier", self.tier, "--runs", str(self.runs), "--reports", str(self.reports)]
        found += ["--storage", self.place(study)] if study.search else []
        return found + (["--seeds", str(self.seeds)] if self.seeds else [])


SELECTION = Selection()


@app.command(name="list")
def list_studies(*, output: Output = OUTPUT) -> None:
    """What studies there are, their arms, and how long they take."""
    from diffvit.experiments.progress import known_rate, measured, seconds_of
    from diffvit.experiments.search import unpruned
    from diffvit.reporting.tables import duration

    rows, found, known = [], [], measured(REPORTS)
    for study in STUDIES.values():
        arms = list(study.search.settings if study.search else study.arms)
        times: dict[str, float | None] = {}
        columns = []
        for tier in TIERS:
            cells = unpruned(study, tier) if study.search else cells_of(study, tier)
            times[tier] = seconds = seconds_of(cells, known_rate(cells, known, "cuda" if tier == "full" else "cpu"))
            columns.append(f"{len(cells)} runs, {'not measured' if seconds is None else duration(seconds)}")
        found.append({"study": study.name, "question": study.question, "arms": arms, "seconds": times})
        seeds = 1 if study.search else seeds_of(study, "short")
        rows.append([study.name, study.question, ", ".join(arms), f"{seeds}", *columns])
    show.table(["study", "question", "arms", "seeds", *(f"tier {tier}" for tier in TIERS)], rows)
    for name, tier in TIERS.items():
        show.line(f"{name}: {tier.words}")
    show.line("Times are estimates from the rows in reports: of two such CPU cores; tier full of one such GPU.")
    if output.json:
        show.as_json({"studies": found})


@app.command(name="show")
def show_study(name: Name, /, *, what: Selection = SELECTION, output: Output = OUTPUT) -> None:
    """A study's arms, and how it stands."""
    from diffvit.experiments.results import records_of

    study = find_study(name)
    if study.search:
        cells = sum(study.search.trials[what.tier] for _ in study.attentions)
        found = {"study": study.name, "tier": what.tier, "trials": cells}
        columns = ["setting", "values"]
        rows = [
            [setting, ", ".join(map(str, each.choices)) or f"{each.low} to {each.high}"]
            for setting, each in study.search.settings.items()
        ]
        line = f"{cells} trials; those done are in the report: diffvit study report {study.name}"
    else:
        cells = what.cells(study)
        records = records_of(cells, what.runs, what.reports, study.score)
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
    if output.json:
        show.as_json(found)


def _accuracies(records: Sequence[RunRecord]) -> str:
    """Of a cell, with the conditions of each where there are several."""
    if len(records) == 1:
        return show.percent(records[0].row["test_accuracy"])
    shown = [
        f"{show.percent(record.row['test_accuracy'])} ({', '.join(str(record.row[name]) for name in _CONDITIONS)})"
        for record in records
    ]
    return "; ".join(shown) or show.NONE


def _work_of(
    study: Study, what: Selection, where: Mapping[str, Any], grace: float = _GRACE_SECONDS
) -> list[Runner] | list[Search]:
    """What is to do on this machine: the cells without committed rows, or the search of each attention."""
    from diffvit.experiments.runner import SCORES, Runner, committed, folder_of, located

    SCORES.setdefault("attention-maps", _map_scores)
    if not study.search:
        cells = what.cells(study)
        on = located(cells, where)
        known = committed(cells, on, what.reports)
        folders = {cell.name: folder_of(cell, on[cell.name], what.runs) for cell in cells}
        left = [cell for cell in cells if cell.name not in known]
        return [Runner(left, folders, where, study.score, show.line)]

    from diffvit.experiments.search import Search, open_study, unpruned

    on = located(unpruned(study, what.tier)[:1], where).values()
    return [
        Search(
            study,
            what.tier,
            attention,
            open_study(what.place(study), study, what.tier, attention, list(on), grace),
            what.runs,
            where,
            show.line,
        )
        for attention in study.attentions
    ]


def _map_scores(run: RunDir) -> Mapping[str, Any]:
    from diffvit.attention.scores import map_scores

    return map_scores(run)


@app.command
def work(
    name: Name,
    /,
    *,
    what: Selection = SELECTION,
    cell: Annotated[
        str | None, Parameter(group=COMMAND, show_default="all", help="Run this cell, or say that another does.")
    ] = None,
    data_dir: DataDir = None,
    device: DeviceFlag = None,
    threads: Annotated[int, Parameter(group=COMMAND, help="CPU threads; 0 is all usable cores.")] = 0,
    lease: Annotated[
        float, Parameter(group=COMMAND, help="Of a search: seconds without a heartbeat until a worker is lost.")
    ] = _GRACE_SECONDS,
) -> None:
    """One worker, until nothing is left. ``run`` starts them; across machines they may be started by hand."""
    from dataclasses import replace

    from diffvit.experiments.runner import Runner
    from diffvit.training.memory import keep_freed_memory

    keep_freed_memory()
    where: dict[str, Any] = {"threads": threads, "data_dir": data_dir}
    where |= {} if device is None else {"device": device}
    for each in _work_of(find_study(name), what, where, lease):
        if cell is None or not isinstance(each, Runner):
            each.work()
        else:
            replace(each, cells=[one for one in each.cells if one.name == cell]).work(wait=False)


@app.command
def run(
    name: Name,
    /,
    *,
    what: Selection = SELECTION,
    workers: Annotated[int, Parameter(group=COMMAND, help="Processes, or jobs at a time.")] = 1,
    launcher: Annotated[
        Literal["local", "slurm"], Parameter(group=COMMAND, help="This machine, or Slurm through submitit.")
    ] = "local",
    data_dir: DataDir = None,
    device: DeviceFlag = None,
    quiet: Annotated[bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """Run every cell that is not done yet. Stopped, it goes on where it was."""
    if workers < 1:
        raise ConfigError("--workers", f"must be at least 1 (found {workers})")

    from diffvit.experiments.launch import run_here, submit, worker_command
    from diffvit.experiments.progress import StudyProgress
    from diffvit.experiments.runner import Runner
    from diffvit.experiments.search import joined
    from diffvit.training.environment import usable_cores

    study = find_study(name)
    if what.storage and not study.search:
        show.warn([f"--storage is for a search; the state of {study.name} is in its run folders"])
    device = resolve(None, {} if device is None else {"device": device}).device
    found = _work_of(study, what, {"device": device, "data_dir": data_dir})
    runners = [each for each in found if isinstance(each, Runner)]
    again = [cell for each in runners for cell in each.forget_errors()]
    if again and not quiet:
        show.line(f"given up before, tried again: {', '.join(again)}")
    cells = [cell for each in runners for cell in each.cells]
    progress = StudyProgress(
        study,
        what.tier,
        cells,
        runners[0].folders if runners else {},
        len(what.cells(study)) - len(cells) if runners else 0,
        lambda: joined([each.state() for each in found]),
        what.reports,
        show.line,
        quiet=quiet,
    )
    command = [*what.arguments(name, study), "--device", device]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    logs, codes = what.runs / what.tier / f"{study.name}.logs", []
    progress.begin(device)
    try:
        if launcher == "slurm":
            waiting = joined([each.state() for each in found]).waiting
            own = [["--cell", cell] for cell in waiting] if runners else [[]] * workers
            commands = [worker_command([*command, *each]) for each in own]
            gpus = 1 if what.tier == "full" else 0
            jobs = submit(commands, what.runs / "slurm", at_once=workers, gpus=gpus) if commands else []
            ids = ", ".join(job.job_id for job in jobs)
            show.line(f"submitted {len(jobs)} jobs ({ids}); how they stand: diffvit study show {name}")
        else:
            threads = ["--threads", str(max(1, usable_cores() // workers))]
            codes = run_here(worker_command([*command, *threads]), workers, logs, progress.show)
        state = progress.end()
    finally:
        progress.close()
    show.line(f"next  {what.report_command(name)}")
    if output.json:
        told = {"failed": state.failed, "waiting": state.waiting, "running": state.running}
        show.as_json({"study": study.name, "tier": what.tier, "done": len(state.done), **told})
    if worst := max(codes, default=0):
        raise _ended(study.name, worst, logs)
    if state.exit_code:
        why = f"cells that failed again and again were given up ({', '.join(state.failed)})"
        fault = DiffvitError(f"study {study.name}", why, f"All others are kept. See {logs}; run it again to try again.")
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
        TierName | None,
        Parameter(group=COMMAND, show_default="the largest that is complete", help="Which tier's runs."),
    ] = None,
    storage: Annotated[
        str | None, Parameter(group=COMMAND, show_default="an SQLite file in --runs", help="Of a search's trials.")
    ] = None,
    runs: Annotated[Path, Parameter(group=COMMAND, help="Folder with the run folders.")] = RUNS,
    reports: Annotated[Path, Parameter(group=COMMAND, help="Folder with the reports.")] = REPORTS,
    output: Output = OUTPUT,
) -> None:
    """Write reports/NAME from the finished runs and the rows that are there: tables, intervals, plots, the best."""
    from diffvit.experiments import report as made
    from diffvit.experiments import search

    study = find_study(name)
    if study.search:
        what, folder = Selection(tier or "short", storage=storage, runs=runs), reports / study.name
        if storage or Path(what.place(study)).is_file() or not (folder / search.TRIALS_FILE).is_file():
            tried = {each: search.studies_in(what.place(study), study, what.tier, each) for each in study.attentions}
            path = search.write_report(study, search.rows_of(study, what.tier, tried), folder)
        else:  # from the committed trials
            path = search.update(study, folder)
        found: dict[str, Any] = {"study": study.name, "tier": what.tier, "report": path}
    elif not study.report:
        path = made.write_rows(study, runs, reports, tier=tier or "short")
        found = {"study": study.name, "tier": tier or "short", "report": path}
    else:
        results = made.gathered(study, runs, reports, tier=tier)
        path, table = made.write_report(results, reports), made.table(results)
        show.line(f"{study.name}, tier {results.tier}: {study.question}")
        show.table(table.columns, table.rows)
        for line in made.answers(results):
            show.line(line.replace("**", ""))
        found = {"study": study.name, "tier": results.tier, "report": path, "missing": list(results.missing)}
    show.line(f"report  {path}")
    if output.json:
        show.as_json(found)
