"""The README's results, generated from the committed rows: ``python -m diffvit.reporting.readme [--check]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffvit.config import parse, read_yaml
from diffvit.errors import InputError
from diffvit.reporting import markdown, plots, stats, tables
from diffvit.reporting.arms import MODEL_NAMES, arms, statements
from diffvit.reporting.expected import is_run_of, preferred, where
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.rows import Row, RunRecord, content_hash, read
from diffvit.reporting.style import STAMP
from diffvit.training.files import disk_faults, replace

BLOCK = "results"
ROWS = Path("reports/cifar10-50-cpu")
# Folders beside it whose recipes get a sentence each where there are rows, and how it begins.
HIGHLIGHTS = {
    "cifar10-80-cpu": "In a hurry",
    "gpu-50-epochs": "On a GPU",
    "gpu-time-to-80": "80% on a GPU",
    "gpu-time-to-85": "85% on a GPU",
}
PLOT = "curves.png"


@dataclass(frozen=True)
class Highlight:
    """How a sentence begins, the runs it tells of, and the file of their recipe as the README reaches it, if any."""

    lead: str
    records: Sequence[RunRecord]
    recipe: str | None


def readme_block(records: Sequence[RunRecord], folder: Path = ROWS, highlights: Sequence[Highlight] = ()) -> str:
    """Table and plot of committed records as Markdown; ``folder`` is how the README reaches the plot."""
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
    shown = [*records, *(record for highlight in highlights for record in highlight.records)]
    parts = markdown.data_lines(record.row for record in shown)
    parts += [markdown.table(tables.Table(columns, rows)), *statements(grouped)]
    parts += [_sentence(highlight) for highlight in highlights]
    notes = [*_circumstances([record.row for record in records]), tables.INTERVAL_NOTE, tables.FLOPS_NOTE]
    parts.append(" ".join(notes))
    names = ", ".join(arm.label for arm in grouped)
    parts.append(f"![Loss and accuracy against the epoch: {names}]({(folder / PLOT).as_posix()})")
    return "\n\n".join(parts)


def _mean(rows: Sequence[Row], column: str) -> float:
    return stats.mean([float(row[column]) for row in rows])


def _sentence(highlight: Highlight) -> str:
    rows = [record.row for record in highlight.records]
    first, recipe = rows[0], highlight.recipe
    seeds = f"{len(rows)} seeds, mean and standard deviation" if len(rows) > 1 else "one seed"
    name = f"[{Path(recipe).name}]({recipe})" if recipe else MODEL_NAMES.get(str(first["attention"]), "it")
    compiling = max(float(row.get("compile_seconds") or 0.0) for row in rows)
    before = f", after at most {tables.duration(compiling)} of compiling" if compiling else ""
    return (
        f"**{highlight.lead}:** {name} reaches {tables.accuracy_cell(rows)} in "
        f"{tables.duration(_mean(rows, 'train_seconds'))} of training{before} "
        f"({seeds}; {first['data']}, {first['epochs']} epochs, {_tokens(first)}, {where(first)})."
    )


def _tokens(row: Row) -> str:
    return "the [CLS] token" if row.get("model.pool") == "cls" else "mean pooling"


def _circumstances(rows: Sequence[Row]) -> list[str]:
    """A sentence for all runs that differ in nothing it says but the seed."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        before = f"{row['epochs']} epochs of {row['train_images']:,} images, {_tokens(row)}"
        where_ = (row["hardware"], tables.threads(row), f"torch {row['torch']}", f"diffvit {row['diffvit']}")
        after = ", ".join(str(part) for part in (row["precision"], *where_) if part)
        of_these = seeds.setdefault((before, after), [])
        of_these += [int(row["seed"])] if int(row["seed"]) not in of_these else []
    return [f"{before}, {_seeds(sorted(found))}, {after}." for (before, after), found in seeds.items()]


def _seeds(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    return f"seeds {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def highlights_of(readme: Path, reports: Path) -> list[Highlight]:
    """A sentence for each arm of the folders of :data:`HIGHLIGHTS` that hold rows."""
    recipes = {path: parse(read_yaml(path), str(path)) for path in sorted((readme.parent / "configs").glob("*.yaml"))}
    found = []
    for name, lead in HIGHLIGHTS.items():
        for arm in arms(preferred(read(reports / name))):
            of_arm = (path for path, config in recipes.items() if is_run_of(arm.records[0], config))
            recipe = next((_from(readme, path).as_posix() for path in of_arm), None)
            found.append(Highlight(lead, arm.records, recipe))
    return found


def update(readme: Path, folder: Path, reports: Path | None = None, *, check: bool = False) -> list[str]:
    """Bring the README's results and the plot up to date with the committed rows, or only check them.

    Args:
        readme: the file with the two markers.
        folder: rows behind the table and the plot.
        reports: where the folders of :data:`HIGHLIGHTS` lie; None for no such sentences.
        check: write nothing.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        InputError: no rows, no README, or a README without the two markers.
        EnvironmentFault: a file cannot be written.
    """
    records = preferred(read(folder))
    if not records:
        raise InputError(str(folder), "has no rows.csv with runs", f"Write one: diffvit compare RUN ... --out {folder}")
    relative, told = _from(readme, folder), highlights_of(readme, reports) if reports else ()
    new = with_block(readme, BLOCK, readme_block(records, relative, told))
    stamp, plot = content_hash(folder), folder / PLOT
    stale = brought_up_to_date({readme: (new.encode(), f"its results are not those of {folder}")}, check=check)
    if stamp_of(plot) != stamp:
        stale.append(f"{plot}: was not made from the rows beside it")
    if not check:
        with disk_faults(plot):
            replace(plot, plots.curves(arms(records), stamp=stamp))
    return stale


def _from(readme: Path, folder: Path) -> Path:
    """The folder as a link in the README reaches it."""
    root, target = readme.resolve().parent, folder.resolve()
    return target.relative_to(root) if target.is_relative_to(root) else target


def stamp_of(plot: Path) -> str | None:
    """Which rows a plot was made from; None where it is missing, damaged or does not say."""
    try:
        with Image.open(plot, formats=["PNG"]) as image:
            return image.info.get(STAMP)
    except (OSError, UnidentifiedImageError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.reporting.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="folder with rows.csv and epochs.csv")
    parser.add_argument("--reports", type=Path, default=ROWS.parent, help=f"where {', '.join(HIGHLIGHTS)} lie")
    given = parser.parse_args(arguments)
    return finish(lambda: update(given.readme, given.rows, given.reports, check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
