"""The README's results and their plot, from the committed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from diffvit.config import parse, read_yaml
from diffvit.errors import InputError
from diffvit.registry import label_of
from diffvit.reporting import plots, stats, tables, texts
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import Row, RunRecord, content_hash, read
from tools.pages import Content, Picture, render, with_block
from tools.recipes import is_run_of, preferred, where

README, REPORTS = Path("README.md"), Path("reports")
PUBLISHED = Path(__file__).parent / "published.yaml"
BLOCK = "results"
ROWS = REPORTS / "cifar10-50"
# Folders beside it whose recipes get a sentence each where there are rows, and how it begins.
HIGHLIGHTS = {
    "cifar10-80-cpu": "In a hurry",
    "cifar10-85-cpu": "85% on two cores",
    "cifar10-90-cpu": "90% on two cores",
    "gpu-50-epochs": "On a GPU",
    "gpu-time-to-80": "80% on a GPU",
    "gpu-time-to-85": "85% on a GPU",
}
PLOT = "curves.png"
SEEDS_NOTE = "±: the standard deviation over seeds."


def documents(root: Path) -> dict[Path, Content]:
    """The README with its results, and the plot that they show.

    Raises:
        InputError: no rows, no README, or a README without the two markers.
        ConfigError: a recipe that is not a valid configuration.
    """
    records = preferred(read(root / ROWS))
    if not records:
        raise InputError(str(ROWS), "has no rows.csv with runs", f"Write one: diffvit compare RUN ... --out {ROWS}")
    block = readme_block(records, highlights_of(root))
    stamp = content_hash(root / ROWS)
    return {
        README: with_block(root / README, BLOCK, block),
        ROWS / PLOT: Picture(stamp, partial(plots.curves, arms(records), stamp=stamp)),
    }


def readme_block(records: Sequence[RunRecord], highlights: Sequence[dict[str, Any]] = ()) -> str:
    """Table and plot of committed records as Markdown.

    Args:
        records: behind the table and the plot.
        highlights: sentences about others (see :func:`highlight`).
    """
    grouped = arms(records)
    rows = []
    for arm in grouped:
        of_arm = [record.row for record in arm.records]
        first = of_arm[0]
        cost = (f"{first['parameters']:,}", tables.big(first["flops_per_image"]))
        time = (tables.duration(_mean(of_arm, "train_seconds")), tables.big(_mean(of_arm, "images_per_second")))
        top5 = tables.mean_of("test_top5", tables.percent)(of_arm)
        rows.append([arm.label, tables.accuracy_cell(of_arm), top5, *cost, *time])
    columns = ["", "Test accuracy", "Top-5", "Parameters", "FLOPs per image", "Training time", "Images/s"]
    if all(row[2] == tables.NONE for row in rows):
        columns, rows = [*columns[:2], *columns[3:]], [[*row[:2], *row[3:]] for row in rows]
    rows_shown = [*(record.row for record in records), *(each["first"] for each in highlights)]
    return render(
        "readme-results.md",
        data_lines=texts.data_lines(rows_shown),
        results=tables.Table(columns, rows),
        published=published(),
        patch=records[0].row["model.patch_size"],
        statements=texts.statements(grouped),
        highlights=highlights,
        tokens=_tokens,
        where=where,
        circumstances=_circumstances([record.row for record in records]),
        interval_note=SEEDS_NOTE if all(len(arm.records) > 1 for arm in grouped) else tables.INTERVAL_NOTE,
        flops_note=tables.FLOPS_NOTE,
        names=", ".join(arm.label for arm in grouped),
        plot=(ROWS / PLOT).as_posix(),
    ).rstrip()


def published() -> tables.Table:
    """Others' figures with their conditions and sources."""
    found = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    rows = [[f"[{name}]({link})", *map(str, figures)] for name, link, *figures in found]
    return tables.Table(["Published", "Test accuracy", "Epochs", "Parameters", "Patches"], rows)


def _mean(rows: Sequence[Row], column: str) -> float:
    return stats.mean([float(row[column]) for row in rows])


def highlight(lead: str, records: Sequence[RunRecord], recipe: str | None) -> dict[str, Any]:
    """What a sentence about one arm says.

    Args:
        lead: how it begins.
        records: the arm's runs.
        recipe: the file of their recipe as the README reaches it, if there is one.
    """
    rows = [record.row for record in records]
    first = rows[0]
    compiling = max(float(row.get("compile_seconds") or 0.0) for row in rows)
    return {
        "lead": lead,
        "recipe": recipe,
        "name": f"[{Path(recipe).name}]({recipe})" if recipe else label_of(first["attention"]),
        "accuracy": tables.accuracy_cell(rows),
        "time": tables.duration(_mean(rows, "train_seconds")),
        "speed": tables.big(_mean(rows, "images_per_second")),
        "compiling": tables.duration(compiling) if compiling else None,
        "seeds": len(rows),
        "first": first,
    }


def _tokens(row: Row) -> str:
    return "the [CLS] token" if row.get("model.pool") == "cls" else "mean pooling"


def _circumstances(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What all runs have in common that differ in nothing of it but the seed."""
    seeds: dict[tuple[str, str, str, str], dict[str, set[int]]] = {}
    for row in rows:
        machine = (row["precision"], row["hardware"], tables.threads(row))
        machine += (f"torch {row['torch']}", f"diffvit {row['diffvit']}")
        key = (str(row["epochs"]), f"{row['train_images']:,}", _tokens(row), ", ".join(str(m) for m in machine if m))
        seeds.setdefault(key, {}).setdefault(label_of(row["attention"]), set()).add(int(row["seed"]))
    names = ("epochs", "images", "tokens", "machine")
    return [{**dict(zip(names, key, strict=True)), "seeds": _of_each(found)} for key, found in seeds.items()]


def _of_each(found: Mapping[str, set[int]]) -> str:
    """The seeds of all models, or of each where they differ."""
    said = {label: _seeds(sorted(seeds)) for label, seeds in found.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{seeds} ({label})" for label, seeds in said.items())


def _seeds(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    return f"seeds {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def highlights_of(root: Path) -> list[dict[str, Any]]:
    """What is said of each arm of the folders of :data:`HIGHLIGHTS`; where some have a recipe still, of those alone."""
    recipes = {path: parse(read_yaml(path), str(path)) for path in sorted((root / "configs").glob("*.yaml"))}
    found = []
    for name, lead in HIGHLIGHTS.items():
        of_folder: list[dict[str, Any]] = []
        for arm in arms(preferred(read(root / REPORTS / name))):
            of_arm = (path for path, config in recipes.items() if is_run_of(arm.records[0], config))
            recipe = next((path.relative_to(root).as_posix() for path in of_arm), None)
            of_folder.append(highlight(lead, arm.records, recipe))
        found += [each for each in of_folder if each["recipe"]] or of_folder
    return found
