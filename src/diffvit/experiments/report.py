"""A study's report, from run folders and committed rows: the same bytes from the rows alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from diffvit.config import to_yaml
from diffvit.errors import InputError
from diffvit.experiments import plots, words
from diffvit.experiments.definitions import Study
from diffvit.experiments.pool import records_of, report_of
from diffvit.experiments.results import Results, beside, results_of
from diffvit.experiments.tiers import TIERS
from diffvit.experiments.trials import trials_of
from diffvit.reporting.generated import brought_up_to_date
from diffvit.reporting.rows import content_hash, read, write
from diffvit.reporting.style import stamp_of
from diffvit.training.files import disk_faults, replace

REPORT = "report.md"
_COSTS = "cost.png"
_DRAWN: Mapping[str, Callable[..., bytes]] = {
    "accuracy.png": plots.accuracies,
    "curves.png": plots.curves,
    _COSTS: plots.costs,
}


def gathered(study: Study, runs: Path, reports: Path, *, tier: str | None = None) -> Results:
    """What is known of a study, from finished runs and committed rows.

    Args:
        study: which.
        runs: where the run folders lie; there may be none.
        reports: where committed rows lie.
        tier: which; by default the largest whose every arm has a row, else the one with the most rows.

    Raises:
        InputError: nothing is known, or a run or rows.csv is damaged.
    """
    found = [each for name in ([tier] if tier else TIERS) if (each := _of_tier(study, name, runs, reports))]
    if not found:
        hint = f"Run it first: diffvit study run {study.name}"
        raise InputError(f"study {study.name}", "has no finished run and no committed row", hint)
    whole = [each for each in found if not each.missing]
    return whole[-1] if whole else max(found, key=lambda each: len(each.records))


def _of_tier(study: Study, tier: str, runs: Path, reports: Path) -> Results | None:
    """With rows of before studies kept images for validation beside them, or alone where there are no others."""
    found = []
    for validation in (True, False):
        trials = trials_of(study, tier, validation=validation)
        if records := records_of(trials, runs, reports):
            found.append(results_of(study, tier, trials, records))
    return beside(found) if found else None


def write_report(results: Results, reports: Path) -> Path:
    """Write rows.csv, epochs.csv, report.md, best.yaml and the plots; the path of report.md.

    What is as it should be is not touched: a plot that was made from these very rows stays, byte for byte. Rows of the
    study's other tiers stay too.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    folder = report_of(results.study.name, reports)
    records = [record for each in (results, *results.others) for record in each.records]
    # Last the committed rows of other tiers, and of trials that the study no longer has.
    known = {record.key for record in records}
    stamp = write(folder, [*records, *(record for record in read(folder) if record.key not in known)])
    best = results.best()
    wanted = {
        folder / REPORT: (words.report(results).encode(), "is not made from the rows beside it"),
        folder / words.BEST: (to_yaml(best.config).encode(), "is not the best of the rows beside it"),
    }
    brought_up_to_date(wanted, check=False)
    for name, draw in _DRAWN.items():
        wished = plot_stamp(name, results, stamp)
        if stamp_of(folder / name) != wished:
            with disk_faults(folder / name):
                replace(folder / name, draw(results, stamp=wished))
    assert stamp == content_hash(folder)
    return folder / REPORT


def plot_stamp(name: str, results: Results, rows: str) -> str:
    """What a plot's stamp says it was made from: the rows; the plot of costs from the operations counted, too."""
    if name != _COSTS:
        return rows
    return hashlib.sha256(" ".join([rows, *(f"{line.flops:.0f}" for line in results.lines)]).encode()).hexdigest()
