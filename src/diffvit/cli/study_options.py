"""What the verbs of ``diffvit study`` share: which trials, where everything lies, and how they stand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffvit.cli.options import COMMAND
from diffvit.experiments.definitions import Study
from diffvit.experiments.tiers import TierName
from diffvit.experiments.trials import Trial, trials_of

if TYPE_CHECKING:
    from diffvit.experiments.ledger import Ledger
    from diffvit.experiments.pool import Conditions
    from diffvit.experiments.standing import Standing

Name = Annotated[str, Parameter(name="NAME", help="One of diffvit study list.")]
LEASE_SECONDS = 60.0
RUNS, REPORTS = Path("runs/studies"), Path("reports")


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class What:
    """Which trials of a study, and where everything lies."""

    tier: TierName = "short"
    """How much: smoke (seconds), short (minutes to hours of a CPU), full (a GPU)."""
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

    def reported(self, study: Study) -> str:
        """The command that reports these trials."""
        given = {"--tier": (self.tier, "short"), "--runs": (self.runs, RUNS), "--reports": (self.reports, REPORTS)}
        told = [part for flag, (value, usual) in given.items() if value != usual for part in (flag, str(value))]
        return shlex.join(["diffvit", "study", "report", study.name, *told])

    def arguments(self, study: Study) -> list[str]:
        """The same on a worker's command line."""
        found = [study.name, "--tier", self.tier, "--storage", self.place(study), "--runs", str(self.runs)]
        found += ["--reports", str(self.reports)]
        return found + (["--seeds", str(self.seeds)] if self.seeds else [])


WHAT = What()


def ledger_of(
    study: Study,
    what: What,
    trials: Sequence[Trial],
    conditions: Mapping[str, Conditions],
    lease: float = LEASE_SECONDS,
) -> Ledger:
    """The study's ledger for what its trials are computed on here, without the trials whose rows are committed."""
    from diffvit.experiments.ledger import Ledger
    from diffvit.experiments.pool import committed, tag_of

    known = committed(trials, conditions, what.reports)
    cells = [trial.name for trial in trials if trial.name not in known]
    return Ledger(what.place(study), f"{study.name}-{what.tier}-{tag_of(conditions.values())}", cells, lease)


def ledgers_of(study: Study, what: What, where: Mapping[str, Any], lease: float = LEASE_SECONDS) -> dict[str, Ledger]:
    """The study's ledgers: of a search one for each attention, else one, by no name.

    Args:
        study: which.
        what: which of its trials.
        where: settings that say where and how, such as ``data_dir`` and ``device``.
        lease: see :class:`~diffvit.experiments.ledger.Ledger`.
    """
    from diffvit.experiments.pool import located

    if not study.search:
        trials = what.trials(study)
        return {"": ledger_of(study, what, trials, located(trials, where), lease)}

    from diffvit.experiments.search import ledger_for, unpruned

    on = located(unpruned(what.tier)[:1], where)
    return {each: ledger_for(what.place(study), what.tier, each, lease, on) for each in study.attentions}


def standing_of(ledgers: Mapping[str, Ledger]) -> Standing:
    """How the trials stand, without those whose rows are committed."""
    if "" in ledgers:
        return ledgers[""].standing()

    from diffvit.experiments import search

    return search.standing_of(ledgers)
