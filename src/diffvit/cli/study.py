"""``diffvit study list``, ``show``, ``run``, ``report`` and ``work``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output, data_dir_of
from diffvit.config import resolve
from diffvit.errors import ConfigError
from diffvit.settings import Device
from diffvit.studies.definitions import STUDIES, Study
from diffvit.studies.tiers import TIERS, TierName
from diffvit.studies.trials import Trial, find_study, seeds_of, trials_of

if TYPE_CHECKING:
    from diffvit.studies.ledger import Ledger, Standing
    from diffvit.studies.watch import Watch

app = App(name="study", help_format="plaintext")
Name = Annotated[str, Parameter(name="NAME", help="One of diffvit study list.")]
RUNS, REPORTS = Path("runs/studies"), Path("reports")


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class What:
    """Which trials of a study, and where everything lies."""

    tier: TierName = "short"
    """How much: smoke (seconds), short (a CPU's hour or two), full (a GPU)."""
    seeds: Annotated[int | None, Parameter(show_default="the study's own")] = None
    """How many seeds."""
    storage: Annotated[str | None, Parameter(show_default="a journal in --runs")] = None
    """Where the trials are kept: a file, or across machines a database (postgresql+psycopg://user@host/name)."""
    runs: Path = RUNS
    """Folder for the run folders; studies share them."""
    reports: Path = REPORTS
    """Folder with the committed reports, whose rows are not run again."""

    def trials(self, study: Study) -> tuple[Trial, ...]:
        """Every run of the study."""
        return trials_of(study, self.tier, seeds=self.seeds)

    def place(self, study: Study) -> str:
        """The storage."""
        return self.storage or str(self.runs / self.tier / f"{study.name}.journal")

    def arguments(self, study: Study) -> list[str]:
        """The same on a worker's command line."""
        found = [study.name, "--tier", self.tier, "--storage", self.place(study), "--runs", str(self.runs)]
        found += ["--reports", str(self.reports)]
        return found + (["--seeds", str(self.seeds)] if self.seeds else [])


WHAT = What()


@app.command(name="list")
def list_studies(*, output: Output = OUTPUT) -> None:
    """What studies there are, their arms, and how long they take."""
    from diffvit.studies.cost import known_rate, seconds_of

    rows, found = [], []
    for study in STUDIES.values():
        arms = ", ".join(study.arms)
        times: dict[str, float] = {}
        for tier in TIERS:
            trials = trials_of(study, tier)
            rate = known_rate(trials, REPORTS, "cuda" if tier == "full" else "cpu")
            times[tier] = seconds_of(trials, rate)
        runs = {tier: len(trials_of(study, tier)) for tier in TIERS}
        found.append({"study": study.name, "question": study.question, "arms": list(study.arms), "seconds": times})
        cells = [f"{runs[tier]} runs, {_duration(times[tier])}" for tier in TIERS]
        rows.append([study.name, study.question, arms, f"{seeds_of(study, 'short')}", *cells])
    show.table(["study", "question", "arms", "seeds", *(f"tier {tier}" for tier in TIERS)], rows)
    for name, tier in TIERS.items():
        show.line(f"{name}: {tier.words}")
    show.line("Times are estimates: of the CPU of a committed row or two usual cores; full of one recent GPU.")
    if output.json:
        show.as_json({"studies": found})


@app.command(name="show")
def show_study(name: Name, /, *, what: What = WHAT, output: Output = OUTPUT) -> None:
    """A study's arms, and how it stands."""
    from diffvit.config import to_dict
    from diffvit.reporting.rows import flatten
    from diffvit.studies.pool import records_of

    study = find_study(name)
    trials = what.trials(study)
    records = records_of(trials, what.runs, what.reports)
    flat = {trial.name: flatten(to_dict(trial.config)) for trial in trials}
    keys = [key for key in next(iter(flat.values())) if len({str(each[key]) for each in flat.values()}) > 1]
    keys = [key for key in keys if key != "seed"]
    show.pairs({"study": study.name, "question": study.question, "tier": f"{what.tier}: {TIERS[what.tier].words}"})
    rows = [
        [
            trial.name,
            *(str(flat[trial.name][key]) for key in keys),
            show.percent(records[trial.name].row["test_accuracy"] if trial.name in records else None),
        ]
        for trial in trials
    ]
    show.table(["trial", *keys, "test accuracy"], rows)
    show.line(f"{len(records)} of {len(trials)} trials are done")
    if output.json:
        show.as_json({"study": study.name, "tier": what.tier, "trials": len(trials), "done": len(records)})


def _duration(seconds: float) -> str:
    from diffvit.reporting.tables import duration

    return duration(seconds)


@app.command(show=False)
def work(
    name: Name,
    /,
    *,
    what: What = WHAT,
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    threads: Annotated[int, Parameter(group=COMMAND, help="CPU threads; 0 is all usable cores.")] = 0,
    lease: Annotated[float, Parameter(group=COMMAND, help="Seconds without a sign until a worker is lost.")] = 60.0,
) -> None:
    """One worker: trials until none is left. ``run`` starts them; across machines they may be started by hand."""
    from diffvit.studies.runner import Training
    from diffvit.studies.runner import work as run_trials
    from diffvit.studies.search import Search, ledger_for

    study = find_study(name)
    trials = {trial.name: trial for trial in what.trials(study)}
    where: dict[str, Any] = {"threads": threads, "data_dir": data_dir_of(data_dir)}
    where |= {} if device is None else {"device": device}
    training = Training(what.runs, where, show.line)
    if study.search:
        for attention in study.attentions:
            ledger = ledger_for(what.place(study), what.tier, attention, lease)
            run_trials(ledger, Search(ledger, what.tier, attention, training), tell=show.line)
        return
    ledger = ledger_of(study, what, list(trials), lease)
    run_trials(ledger, lambda claim: training(trials[claim.cell]).result["test_accuracy"], tell=show.line)


def ledger_of(study: Study, what: What, cells: Sequence[str], lease: float = 60.0) -> Ledger:
    """The study's ledger, without the trials whose rows are committed."""
    from diffvit.studies.ledger import Ledger
    from diffvit.studies.pool import committed

    known = committed(what.trials(study), what.reports)
    return Ledger(what.place(study), f"{study.name}-{what.tier}", [cell for cell in cells if cell not in known], lease)


@app.command
def run(
    name: Name,
    /,
    *,
    what: What = WHAT,
    workers: Annotated[int, Parameter(group=COMMAND, help="Processes, or jobs.")] = 1,
    launcher: Annotated[
        Literal["local", "slurm"], Parameter(group=COMMAND, help="This machine, or Slurm through submitit.")
    ] = "local",
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    quiet: Annotated[bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """Run every trial that is not done yet, and write the report. Stopped, it goes on where it was."""
    if workers < 1:
        raise ConfigError("--workers", f"must be at least 1 (found {workers})")

    from diffvit.studies.watch import Watch
    from diffvit.training.environment import usable_cores

    study = find_study(name)
    trials = what.trials(study)
    config = resolve(None, {} if device is None else {"device": device})
    command = [*what.arguments(study), "--device", config.device, "--threads", str(max(1, usable_cores() // workers))]
    command += ["--data-dir", str(folder)] if (folder := data_dir_of(data_dir)) else []
    watch = Watch(
        study, what.tier, trials, _standing(study, what, trials), what.runs, what.reports, show.line, quiet=quiet
    )
    watch.begin(config.device)
    if launcher == "slurm":
        _submit(command, workers, what)
    else:
        _run_here(command, workers, what, study, watch)
    standing = watch.end()
    show.line(f"next  diffvit study report {study.name}")
    if output.json:
        show.as_json(standing)


@app.command
def report(
    name: Name,
    /,
    *,
    tier: Annotated[
        TierName | None,
        Parameter(group=COMMAND, show_default="the largest that is complete", help="Which tier's runs."),
    ] = None,
    runs: Annotated[Path, Parameter(group=COMMAND, help="Folder with the run folders.")] = RUNS,
    reports: Annotated[Path, Parameter(group=COMMAND, help="Folder with the reports.")] = REPORTS,
    output: Output = OUTPUT,
) -> None:
    """Write reports/NAME from the finished runs and the rows that are there: tables, intervals, plots, the best."""
    from diffvit.studies import words
    from diffvit.studies.report import gathered, write_report

    study = find_study(name)
    results = gathered(study, runs, reports, tier=tier)
    path = write_report(results, reports)
    found = words.table(results)
    show.line(f"{study.name}, tier {results.tier}: {study.question}")
    show.table(found.columns, found.rows)
    for line in words.answers(results):
        show.line(line.replace("**", ""))
    show.line(f"report  {path}")
    if output.json:
        show.as_json({"study": study.name, "tier": results.tier, "report": path, "missing": list(results.missing)})


def _standing(study: Study, what: What, trials: Sequence[Trial]) -> Callable[[], Standing]:
    if not study.search:
        return ledger_of(study, what, [trial.name for trial in trials]).standing

    from diffvit.studies.search import ledger_for, standing_of

    ledgers = {attention: ledger_for(what.place(study), what.tier, attention, 60.0) for attention in study.attentions}
    return lambda: standing_of(ledgers)


def _run_here(command: Sequence[str], workers: int, what: What, study: Study, watch: Watch) -> None:
    from diffvit.studies.launchers import LocalWorkers, worker_command

    logs = what.runs / what.tier / f"{study.name}.logs"
    codes = LocalWorkers(worker_command(command), workers, logs).run(watch.look)
    worst = max(codes)
    if worst:
        show.line(f"a worker ended with exit code {worst}; what it said is in {logs}")


def _submit(command: Sequence[str], workers: int, what: What) -> None:
    from diffvit.studies.launchers import SlurmOptions, slurm_executor, submit, worker_command

    executor = slurm_executor(what.runs / "slurm", SlurmOptions(gpus=0 if what.tier != "full" else 1))
    jobs = submit(executor, worker_command(command), workers)
    show.line(
        f"submitted {len(jobs)} jobs ({', '.join(job.job_id for job in jobs)}); how they stand: diffvit study show"
    )
