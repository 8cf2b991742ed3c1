"""``diffvit study``: ``list``, ``show`` and ``report`` here, ``run`` in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, Output
from diffvit.cli.study_options import LEASE_SECONDS, REPORTS, RUNS, WHAT, Name, What
from diffvit.experiments.definitions import STUDIES, Study
from diffvit.experiments.tiers import TIERS, TierName
from diffvit.experiments.trials import apart_in, find_study, seeds_of, trials_of

if TYPE_CHECKING:
    from diffvit.reporting.rows import RunRecord

CONDITIONS = ("data", "precision", "device", "kernels")  # as a trial's rows are told apart
app = App(name="study", help_format="plaintext")
app.command(
    "diffvit.cli.study_run:run",
    name="run",
    help="Run every trial that is not done yet. Stopped, it goes on where it was.",
)
app.command("diffvit.cli.study_run:work", name="work", help="One worker of a study, until nothing is left.")


@app.command(name="list")
def list_studies(*, output: Output = OUTPUT) -> None:
    """What studies there are, their arms, and how long they take."""
    from diffvit.experiments.cost import known_rate, measured, seconds_of
    from diffvit.experiments.search import DIALS, unpruned

    rows, found, known = [], [], measured(REPORTS)
    for study in STUDIES.values():
        arms = [dial.setting for dial in DIALS] if study.search else list(study.arms)
        times: dict[str, float | None] = {}
        cells = []
        for tier in TIERS:
            trials = unpruned(tier) if study.search else trials_of(study, tier)
            times[tier] = seconds_of(trials, known_rate(trials, known, "cuda" if tier == "full" else "cpu"))
            cells.append(f"{len(trials)} runs, {_duration(times[tier])}")
        found.append({"study": study.name, "question": study.question, "arms": arms, "seconds": times})
        seeds = 1 if study.search else seeds_of(study, "short")
        rows.append([study.name, study.question, ", ".join(arms), f"{seeds}", *cells])
    show.table(["study", "question", "arms", "seeds", *(f"tier {tier}" for tier in TIERS)], rows)
    for name, tier in TIERS.items():
        show.line(f"{name}: {tier.words}")
    show.line("Times are estimates from the rows in reports: of two such CPU cores; tier full of one such GPU.")
    if output.json:
        show.as_json({"studies": found})


@app.command(name="show")
def show_study(name: Name, /, *, what: What = WHAT, output: Output = OUTPUT) -> None:
    """A study's arms, and how it stands."""
    from diffvit.experiments.pool import records_of

    study = find_study(name)
    if study.search:
        _show_search(study, what, output)
        return
    trials = what.trials(study)
    records = records_of(trials, what.runs, what.reports)
    apart = apart_in({trial.name: trial.config for trial in trials})
    keys = list(next(iter(apart.values())))
    show.pairs({"study": study.name, "question": study.question, "tier": f"{what.tier}: {TIERS[what.tier].words}"})
    rows = [
        [
            trial.name,
            *(str(value) for value in apart[trial.name].values()),
            _accuracies(records.get(trial.name, ())),
        ]
        for trial in trials
    ]
    show.table(["trial", *keys, "test accuracy"], rows)
    show.line(f"{len(records)} of {len(trials)} trials are done")
    if output.json:
        show.as_json({"study": study.name, "tier": what.tier, "trials": len(trials), "done": len(records)})


def _accuracies(records: Sequence[RunRecord]) -> str:
    """Of a trial, with what each is of where there are several."""
    if len(records) == 1:
        return show.percent(records[0].row["test_accuracy"])
    shown = [
        f"{show.percent(record.row['test_accuracy'])} ({', '.join(str(record.row[name]) for name in CONDITIONS)})"
        for record in records
    ]
    return "; ".join(shown) or show.NONE


def _show_search(study: Study, what: What, output: Output) -> None:
    """Its dials: what is tried is not known before."""
    from diffvit.experiments.search import DIALS, slots_of

    show.pairs({"study": study.name, "question": study.question, "tier": f"{what.tier}: {TIERS[what.tier].words}"})
    ranges = [[dial.setting, ", ".join(map(str, dial.choices)) or f"{dial.low} to {dial.high}"] for dial in DIALS]
    show.table(["dial", "values"], ranges)
    trials = len(slots_of(what.tier)) * len(study.attentions)
    show.line(f"{trials} trials; those done are in the report: diffvit study report {study.name}")
    if output.json:
        show.as_json({"study": study.name, "tier": what.tier, "trials": trials})


def _duration(seconds: float | None) -> str:
    from diffvit.reporting.tables import duration

    return "not measured" if seconds is None else duration(seconds)


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
    from diffvit.experiments import words
    from diffvit.experiments.report import gathered, write_report

    study = find_study(name)
    if study.search:
        _report_search(study, What(tier=tier or "short", runs=runs, reports=reports), output)
        return
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


def _report_search(study: Study, what: What, output: Output) -> None:
    """From the storage where there is one, else from the committed trials."""
    from diffvit.experiments.search import ledgers_in
    from diffvit.experiments.search_report import TRIED, rows_of, update, write_report

    folder = what.reports / study.name
    if Path(what.place(study)).is_file() or not (folder / TRIED).is_file():
        ledgers = {each: ledgers_in(what.place(study), what.tier, each, LEASE_SECONDS) for each in study.attentions}
        path = write_report(rows_of(ledgers, what.tier), folder)
    else:
        path = update(folder)
    show.line(f"report  {path}")
    if output.json:
        show.as_json({"study": study.name, "tier": what.tier, "report": path})
