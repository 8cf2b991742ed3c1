"""The experiments' results: docs/results.md, the README's part about the studies, and every study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffvit.config import Config, parse, read_yaml
from diffvit.experiments import report
from diffvit.experiments.report import gathered
from diffvit.experiments.results import (
    TRIALS_FILE,
    Line,
    Results,
    best_of,
    comparable,
    compared_arms,
    difference,
    over_all_arms,
)
from diffvit.experiments.study import BOTH, REPORTS, STUDIES, TIERS, Study, load_study, recipe_of
from diffvit.files import read_csv
from diffvit.registry import label_of
from diffvit.reporting import stats
from diffvit.reporting.arms import Arm, arms, span
from diffvit.reporting.rows import ROWS_FILE, RunRecord, content_hash, read
from diffvit.reporting.stats import Interval
from diffvit.reporting.tables import JPEG, NONE, Table, accuracy_cell, duration, percent
from tools.pages import Content, Picture, render, with_block
from tools.recipes import is_run_of, where

PAGE, README = Path("docs/results.md"), Path("README.md")
BLOCK = "studies"
GOAL, EPOCHS = 0.80, 50
_FIRST = "vit-vs-diffvit"  # the study that answers in a sentence of the README
_KIND = ("Tier, seeds", "Data")
_NO_RUNS = Path("none")  # everything is made from committed rows alone
BEST_NOTE = (
    "The best arm of each attention and its mean test accuracy; chosen by validation accuracy where the study's rows "
    "have one, else, marked *, on the test set. **Bold** beats every other arm of its study (simultaneous 95% "
    "intervals of all pairs of arms, over seeds and test images); the others do not, or have too few seeds to say."
)


def documents(root: Path) -> dict[Path, Content]:
    """The page, the README with its part, and the files of every study that has rows.

    Raises:
        InputError: damaged rows, or a README without the two markers.
        ConfigError: a recipe that is not a valid configuration.
    """
    found = with_rows(root / REPORTS)
    made: dict[Path, Content] = {
        PAGE: page(root, found),
        README: with_block(root / README, BLOCK, readme_block(found)),
    }
    files = {name: report.files_of(results, content_hash(root / REPORTS / name)) for name, results in found.items()}
    files |= {study.name: report.search_files(study, root / REPORTS / study.name) for study in _searched(root)}
    for name, of_study in files.items():
        for file, content in of_study.items():
            made[REPORTS / name / file] = content if isinstance(content, str) else Picture(*content)
    return made


def studies(reports: Path) -> dict[str, Study]:
    """The built-in studies with a report, and those whose YAML file lies beside their rows (``NAME/NAME.yaml``)."""
    found = {name: study for name, study in STUDIES.items() if study.report}
    files = sorted(path for path in reports.glob("*/*.yaml") if path.stem == path.parent.name)
    return {**found, **{path.stem: load_study(path) for path in files}}


def with_rows(reports: Path) -> dict[str, Results]:
    """What is known of every study that has committed rows, by its name."""
    there = (study for study in studies(reports).values() if not study.search)
    there = [study for study in there if (reports / study.name / ROWS_FILE).is_file()]
    return {study.name: gathered(study, _NO_RUNS, reports) for study in there}


def _searched(root: Path) -> list[Study]:
    there = (study for study in STUDIES.values() if study.search)
    return [study for study in there if (root / REPORTS / study.name / TRIALS_FILE).is_file()]


def words_of(study: Study, folder: Path) -> str:
    """A search in a few sentences, from its trials.csv."""
    assert study.search is not None
    rows = comparable(read_csv(folder / TRIALS_FILE))
    found = [
        f"{attention if study.arms else label_of(attention)}: {percent(best['val_accuracy'])} validation accuracy with "
        + ", ".join(f"{setting} {report.short(best[setting])}" for setting in study.search.settings)
        for attention, best in best_of(rows).items()
    ]
    tier = rows[0]["tier"]
    head = f"*{study.name}, tier {tier}, {len(rows)} trials of up to {recipe_of(study, tier).epochs} epochs"
    return f"{head}, exploratory.* The best of each: {'; '.join(found)}."


def page(root: Path, found: Mapping[str, Results]) -> str:
    """docs/results.md.

    Args:
        root: of the project, with ``configs`` and ``reports``.
        found: the studies that have rows.

    Raises:
        InputError: damaged rows.
        ConfigError: a recipe that is not a valid configuration.
    """
    passed = passing(root)
    return render(
        "results.md",
        tiers=TIERS,
        passed=Table(
            ["Run", "Recipe", "Test accuracy", "Epochs", "Training time", "On", "Data"],
            [_passed_row(*each) for each in passed],
        ),
        best=_best_recipe(passed),
        best_arms=best_arms(_built_in(found)),
        best_note=BEST_NOTE,
        where_it_helps=where_it_helps(_built_in(found)),
        studies=studies(root / REPORTS),
        built_in=STUDIES,
        found=found,
        searched={study.name: words_of(study, root / REPORTS / study.name) for study in _searched(root)},
        settings_plot=report.SEARCH_PLOT,
        answers=report.answers,
        table=report.table,
    )


def readme_block(found: Mapping[str, Results]) -> str:
    """What the README says of the studies: the fair comparison in a sentence, and the best arm of every other.

    Studies of CIFAR-10 (JPEG) are not in it: their figures compare with no others there.
    """
    every = _built_in(found)
    official = [results for results in every if _data(results) != JPEG]
    return render(
        "readme-studies.md",
        first=found.get(_FIRST),
        answers=report.answers,
        best_arms=best_arms(official),
        best_note=BEST_NOTE,
        tiers=TIERS,
        tier_names=list(dict.fromkeys(each.tier for each in official)),
        left_out=len(every) - len(official),
    ).rstrip()


def _built_in(found: Mapping[str, Results]) -> list[Results]:
    return [results for name, results in found.items() if name in STUDIES]


def passing(root: Path) -> list[tuple[Path, Arm, Path | None]]:
    """Arms of committed runs, studies left out, that all pass the goal: folder, arm and recipe; the best first."""
    recipes = {path: parse(read_yaml(path), str(path)) for path in sorted((root / "configs").glob("*.yaml"))}
    known = {**STUDIES, **studies(root / REPORTS)}
    folders = sorted(path.parent for path in (root / REPORTS).glob(f"*/{ROWS_FILE}") if path.parent.name not in known)
    classifiers = {folder: [each for each in read(folder) if _counts(each)] for folder in folders}
    found = [(folder, arm) for folder, records in classifiers.items() for arm in arms(records)]
    passed = [(folder, arm) for folder, arm in found if min(arm.accuracies.values(), default=0) > GOAL]
    passed.sort(key=lambda each: -stats.mean(list(each[1].accuracies.values())))
    return [(folder, arm, _recipe(arm, recipes)) for folder, arm in passed]


def _counts(record: RunRecord) -> bool:
    """A classifier of CIFAR-10 within the epochs."""
    row = record.row
    known = row["test_accuracy"] is not None and row.get("zero_shot_accuracy") is None
    return known and str(row["data"]).startswith("CIFAR-10") and row["epochs"] <= EPOCHS


def _recipe(arm: Arm, recipes: dict[Path, Config]) -> Path | None:
    """The recipe whose settings all runs of an arm had."""
    same = (path for path, config in recipes.items() if all(is_run_of(each, config) for each in arm.records))
    return next(same, None)


def _best_recipe(passed: Sequence[tuple[Path, Arm, Path | None]]) -> dict[str, Any] | None:
    """The highest of them, with what repeats it; None where it has no recipe."""
    if not passed:
        return None
    _, arm, recipe = passed[0]
    if recipe is None:
        return None
    return {
        **{"link": _link(recipe), "recipe": f"configs/{recipe.name}", "run": f"runs/{recipe.stem.replace('_', '-')}"},
        **{"accuracy": percent(stats.mean(list(arm.accuracies.values()))), "epochs": arm.records[0].row["epochs"]},
        "seeds": len(arm.records),
        "data": arm.records[0].row["data"],
    }


def _link(recipe: Path) -> str:
    return f"[{recipe.name}](../configs/{recipe.name})"


def _passed_row(folder: Path, arm: Arm, recipe: Path | None) -> list[str]:
    rows = [record.row for record in arm.records]
    first = rows[0]
    return [
        f"[{first['run'] if len(rows) == 1 else folder.name}](../reports/{folder.name}/report.md)",
        _link(recipe) if recipe else NONE,
        accuracy_cell(rows),
        f"{first['epochs']}",
        duration(stats.mean([row["train_seconds"] for row in rows])),
        where(first),
        str(first["data"]),
    ]


def best_arms(found: Sequence[Results]) -> Table:
    """A row per study that compares arms of both attentions: the best arm of each."""
    rows = [
        [results.study.question, *(_best(results.of(attention), results) for attention in BOTH), *_kind(results)]
        for results in found
        if results.study.attentions
    ]
    return Table(["Question", *(label_of(attention) for attention in BOTH), *_KIND], rows)


def _best(lines: Sequence[Line], results: Results) -> str:
    if not lines:
        return NONE
    best = results.best(lines)
    ranked = results.ranking(lines)
    others = [place for place, line in enumerate(lines) if line is not best]
    surely = ranked and others and all(ranked.between(lines.index(best), place).low > 0 for place in others)
    name = f"**{best.arm}**" if surely else best.arm
    return f"{name}, {percent(best.mean, 1)}{'*' if results.chosen_on == 'test' else ''}"


def where_it_helps(found: Sequence[Results]) -> Table:
    """A row per study: differential minus softmax over all arms, and the arms where it stands best and worst."""
    rows = []
    for results in found:
        over_all = over_all_arms(results, "differential", "softmax")
        apart = sorted(_by_arm(results), key=lambda each: -each[1])
        if over_all is None or len(apart) < 2:
            continue
        best, worst = (f"{arm}, {100 * apart_by:+z.2f} points" for arm, apart_by in (apart[0], apart[-1]))
        mean = f"{100 * over_all.estimate:+z.2f} ({span(over_all)})"
        rows.append([results.study.name, mean, best, worst, _verdict(over_all, results), *_kind(results)])
    title = "Diff-ViT minus ViT, mean over the arms"
    return Table(["Study", title, "Best at", "Worst at", "Ahead", *_KIND], rows)


def _by_arm(results: Results) -> list[tuple[str, float]]:
    apart = ((ours.arm, difference(ours, theirs)) for ours, theirs in compared_arms(results, "differential", "softmax"))
    return [(arm, found.estimate) for arm, found in apart if found is not None]


def _verdict(interval: Interval, results: Results) -> str:
    if not results.may_rank:
        return "exploratory"
    if not interval.excludes_zero:
        return "not decided"
    return label_of("differential" if interval.estimate > 0 else "softmax")


def _kind(results: Results) -> tuple[str, str]:
    return f"{results.tier}, {results.seeds}", _data(results)


def _data(results: Results) -> str:
    return str(results.records[0].row["data"])
