"""Which committed runs pass the project's goal, and the recipe that repeats each."""

from __future__ import annotations

from pathlib import Path

from diffvit.config import Config, parse, read_yaml
from diffvit.experiments.study import STUDIES
from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import Arm, arms
from diffvit.reporting.expected import is_run_of, where
from diffvit.reporting.rows import ROWS_FILE, RunRecord, read
from diffvit.reporting.tables import NONE, Table, accuracy_cell, duration, percent

GOAL, EPOCHS = 0.80, 50


def words(reports: Path, configs: Path) -> list[str]:
    """The best configuration in a sentence, and all that pass the goal as a table, the best first.

    Args:
        reports: folder of reports, each with a rows.csv; studies are left out.
        configs: folder of recipes, ``*.yaml``.

    Raises:
        InputError: damaged rows.
        ConfigError: a recipe that is not a valid configuration.
    """
    recipes = {path: parse(read_yaml(path), str(path)) for path in sorted(configs.glob("*.yaml"))}
    classifiers = {folder: [each for each in read(folder) if _counts(each)] for folder in _folders(reports)}
    found = [(folder, arm) for folder, records in classifiers.items() for arm in arms(records)]
    passed = [(folder, arm) for folder, arm in found if min(arm.accuracies.values(), default=0) > GOAL]
    passed.sort(key=lambda each: -stats.mean(list(each[1].accuracies.values())))
    if not passed:
        return ["No committed run does yet."]
    rows = [_row(folder, arm, _recipe(arm, recipes)) for folder, arm in passed]
    columns = ["Run", "Recipe", "Test accuracy", "Epochs", "Training time", "On"]
    return [*_best(passed[0][1], _recipe(passed[0][1], recipes)), markdown.table(Table(columns, rows))]


def _folders(reports: Path) -> list[Path]:
    return sorted(path.parent for path in reports.glob(f"*/{ROWS_FILE}") if path.parent.name not in STUDIES)


def _counts(record: RunRecord) -> bool:
    """A classifier of CIFAR-10 within the epochs."""
    row = record.row
    known = row["test_accuracy"] is not None and row.get("zero_shot_accuracy") is None
    return known and str(row["data"]).startswith("CIFAR-10") and row["epochs"] <= EPOCHS


def _recipe(arm: Arm, recipes: dict[Path, Config]) -> Path | None:
    """The recipe whose settings all runs of an arm had."""
    same = (path for path, config in recipes.items() if all(is_run_of(each, config) for each in arm.records))
    return next(same, None)


def _best(arm: Arm, recipe: Path | None) -> list[str]:
    """The highest of them, with the command that repeats it."""
    if recipe is None:
        return []
    mean, epochs = stats.mean(list(arm.accuracies.values())), arm.records[0].row["epochs"]
    seeds = f"the mean of {len(arm.records)} seeds" if len(arm.records) > 1 else "one seed"
    command = f"diffvit train configs/{recipe.name} --out runs/{recipe.stem.replace('_', '-')}"
    return [
        f"The best configuration so far is {_link(recipe)}: {percent(mean)} of the test images after {epochs} epochs "
        f"({seeds}). To repeat it: `{command}`."
    ]


def _link(recipe: Path) -> str:
    return f"[{recipe.name}](../configs/{recipe.name})"


def _row(folder: Path, arm: Arm, recipe: Path | None) -> list[str]:
    rows = [record.row for record in arm.records]
    first = rows[0]
    return [
        f"[{first['run'] if len(rows) == 1 else folder.name}](../reports/{folder.name}/report.md)",
        _link(recipe) if recipe else NONE,
        accuracy_cell(rows),
        f"{first['epochs']}",
        duration(stats.mean([row["train_seconds"] for row in rows])),
        where(first),
    ]
