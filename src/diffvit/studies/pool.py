"""The run folders of all studies at a tier: one per config and seed, whichever studies ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffvit.reporting.rows import RunRecord, read, read_run
from diffvit.studies.trials import Trial
from diffvit.training.run_dir import RunDir

RUNS, REPORTS = Path("runs/studies"), Path("reports")


def folder_of(trial: Trial, runs: Path = RUNS) -> Path:
    """The run folder of a trial; trials of the same config and seed share it, as those of the base recipe do."""
    digest, seed = trial.key
    return runs / trial.tier / f"{digest}-s{seed}"


def report_of(study: str, reports: Path = REPORTS) -> Path:
    """Where a study's rows and report lie."""
    return reports / study


def committed(trials: Sequence[Trial], reports: Path = REPORTS) -> dict[str, RunRecord]:
    """Trials whose rows are in a committed report, by name: they are not run again.

    Raises:
        InputError: a damaged rows.csv.
    """
    found: dict[str, RunRecord] = {}
    for study in dict.fromkeys(trial.study for trial in trials):
        known = {record.key: record for record in read(report_of(study, reports))}
        found |= {trial.name: known[trial.key] for trial in trials if trial.study == study and trial.key in known}
    return found


def records_of(trials: Sequence[Trial], runs: Path = RUNS, reports: Path = REPORTS) -> Mapping[str, RunRecord]:
    """What is known of each trial by name: of its finished run, else of its committed row.

    Raises:
        InputError: a damaged run or rows.csv.
    """
    found = committed(trials, reports)
    for trial in trials:
        run = RunDir(folder_of(trial, runs))
        if run.finished:
            found[trial.name] = read_run(run)
    return found
