"""The experiments' results as one page, from the committed rows: ``python -m diffvit.experiments.page [--check]``.

It writes ``docs/results.md`` and the README's part about the studies, and brings every study's report up to date with
the rows beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffvit.experiments import goal, search, summary
from diffvit.experiments import report as words
from diffvit.experiments.report import REPORT, gathered, plot_stamp
from diffvit.experiments.results import Results
from diffvit.experiments.study import REPORTS, STUDIES, TIERS, Study
from diffvit.reporting import markdown
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.readme import stamp_of
from diffvit.reporting.rows import ROWS_FILE, content_hash

PAGE, README, CONFIGS = Path("docs/results.md"), Path("README.md"), Path("configs")
BLOCK = "studies"
_FIRST = "vit-vs-diffvit"  # the study that answers in a sentence of the README
_NO_RUNS = Path("none")  # the page is made from committed rows alone
INTRODUCTION = (
    "Every table here is made from the rows in [reports](../reports) by `make docs`. A study's "
    "arms differ in what it asks about, and in nothing else; its report has the loss curves, the cost of each arm, the "
    "best configuration as a file, and the command that runs it again. Where a study is exploratory (two seeds) no "
    "winner is named. The tiers: "
)


def page(reports: Path = REPORTS, configs: Path = CONFIGS) -> str:
    """The whole page as Markdown.

    Raises:
        InputError: damaged rows.
        ConfigError: a recipe that is not a valid configuration.
    """
    tiers = "; ".join(f"*{name}*, {tier.words}" for name, tier in TIERS.items() if name != "smoke")
    parts = ["# Results", f"{INTRODUCTION}{tiers}.", "## Over 80% within 50 epochs", *goal.words(reports, configs)]
    compared = _compared(reports)
    for title, table, note in (
        ("## The studies in short", summary.best_arms(compared), summary.BEST_NOTE),
        ("## Where differential attention helps", summary.where_it_helps(compared), summary.WHERE_NOTE),
    ):
        parts += [title, markdown.table(table), note] if table.rows else []
    for study in STUDIES.values():
        parts += [f"## {study.question}", *_section(study, reports)]
    return "\n\n".join(parts) + "\n"


def readme_block(reports: Path = REPORTS) -> str:
    """What the README says of the studies: the fair comparison in a sentence, and the best arm of every other.

    Raises:
        InputError: damaged rows.
    """
    compared = _compared(reports)
    table = summary.best_arms(compared)
    parts = []
    for results in (each for each in compared if each.study.name == _FIRST):
        line = f"*{results.study.question}* {_base(results)} {' '.join(words.answers(results))}"
        parts.append(f"{line} The recipe was found with softmax attention; one of its own might serve Diff-ViT better.")
    meanings = {each.tier: TIERS[each.tier].words for each in compared}
    tiers = " ".join(f"Tier {name}: {meaning}." for name, meaning in meanings.items())
    parts += [markdown.table(table), f"{tiers} {summary.BEST_NOTE}"] if table.rows else []
    return "\n\n".join(parts) or "No study has rows yet."


def _base(results: Results) -> str:
    """What the comparison is of, before what came out."""
    config = results.lines[0].config
    model = config.model
    tokens = "[CLS]" if model.pool == "cls" else "mean pooling"
    size = f"{model.embed_dim} wide, {model.depth} blocks"
    return f"After {config.epochs} epochs, patch {model.patch_size}, {size}, {tokens}:"


def _compared(reports: Path) -> list[Results]:
    """The studies that have rows."""
    known = [study for study in STUDIES.values() if not study.search]
    there = [each for each in known if (reports / each.name / ROWS_FILE).is_file()]
    return [gathered(each, _NO_RUNS, reports) for each in there]


def _section(study: Study, reports: Path) -> list[str]:
    folder = reports / study.name
    link = f"../{REPORTS}/{study.name}"
    if study.search:
        if not (folder / search.TRIALS_FILE).is_file():
            return [_not_yet(study)]
        best = search.words_of(study, folder)
        return [
            best,
            f"![Validation accuracy against each dial]({link}/{search.PLOT})",
            f"[Report]({link}/{REPORT})",
        ]
    if not (folder / ROWS_FILE).is_file():
        return [_not_yet(study)]
    results = gathered(study, _NO_RUNS, reports)
    kind = "exploratory" if study.exploratory else f"{results.seeds} seeds"
    parts = [f"*{study.name}, tier {results.tier}, {kind}.*", *words.answers(results)]
    parts.append(markdown.table(words.table(results)))
    if results.missing:
        parts.append(f"**Not complete:** {len(results.missing)} trials have no row yet.")
    return [*parts, f"![Test accuracy of every arm and seed]({link}/accuracy.png)", f"[Report]({link}/{REPORT})"]


def _not_yet(study: Study) -> str:
    return f"Not run yet: `diffvit study run {study.name} --tier short`."


def update(
    path: Path = PAGE, reports: Path = REPORTS, readme: Path = README, configs: Path = CONFIGS, *, check: bool = False
) -> list[str]:
    """Bring the page, the README and the studies' reports up to date with the committed rows, or only check them.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        InputError: damaged rows, or a README without the two markers.
        ConfigError: a recipe that is not a valid configuration.
        EnvironmentFault: a file cannot be written.
    """
    why = f"is not made from the rows in {reports}"
    wanted = {
        path: (page(reports, configs).encode(), why),
        readme: (with_block(readme, BLOCK, readme_block(reports)).encode(), why),
    }
    stale: list[str] = []
    for study in STUDIES.values():
        folder = reports / study.name
        if study.search or not (folder / ROWS_FILE).is_file():
            continue
        results = gathered(study, _NO_RUNS, reports)
        wanted[folder / REPORT] = (words.report(results).encode(), "is not made from the rows beside it")
        rows = content_hash(folder)
        old = [folder / name for name in words.PLOTS if stamp_of(folder / name) != plot_stamp(name, results, rows)]
        stale += [f"{plot}: was not made from the rows beside it; write it with diffvit study report" for plot in old]
    return [*brought_up_to_date(wanted, check=check), *stale]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input, 4."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.experiments.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"the page (default {PAGE})")
    parser.add_argument("--readme", type=Path, default=README, help=f"with the part about them (default {README})")
    parser.add_argument("--reports", type=Path, default=REPORTS, help=f"folder with the rows (default {REPORTS})")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help=f"folder with recipes (default {CONFIGS})")
    given = parser.parse_args(arguments)
    return finish(
        lambda: update(given.page, given.reports, given.readme, given.configs, check=given.check), check=given.check
    )


if __name__ == "__main__":
    sys.exit(main())
