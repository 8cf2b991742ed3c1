"""The README's results, generated from the committed rows: ``python -m diffvit.reporting.readme [--check]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffvit.errors import InputError
from diffvit.reporting import markdown, plots, stats, tables
from diffvit.reporting.arms import arms, statements
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.rows import RunRecord, content_hash, read
from diffvit.reporting.style import STAMP
from diffvit.training.files import disk_faults, replace

BLOCK = "results"
ROWS = Path("reports/cifar10-50-cpu")
QUICK_ROWS, QUICK_RECIPE = Path("reports/cifar10-80-cpu"), "configs/cifar10_80_cpu.yaml"
PLOT = "curves.png"


def readme_block(records: Sequence[RunRecord], folder: Path = ROWS, quick: Sequence[RunRecord] = ()) -> str:
    """Table and plot of committed records as Markdown; ``folder`` is how the README reaches the plot.

    ``quick`` are the runs of :data:`QUICK_RECIPE`, which get a sentence.
    """
    grouped = arms(records)
    rows = []
    for arm in grouped:
        of_arm = [record.row for record in arm.records]
        first = of_arm[0]
        cost = (f"{first['parameters']:,}", tables.big(first["flops_per_image"]))
        time = (tables.duration(first["train_seconds"]), tables.big(first["images_per_second"]))
        rows.append([arm.label, tables.accuracy_cell(of_arm), tables.percent(first["test_top5"]), *cost, *time])
    columns = ["", "Test accuracy", "Top-5", "Parameters", "FLOPs per image", "Training time", "Images/s"]
    parts = [markdown.data_line(name) for name in dict.fromkeys(str(record.row["data"]) for record in records)]
    parts += [markdown.table(tables.Table(columns, rows)), *statements(grouped)]
    parts += [_quick(arm.records) for arm in arms(quick)]
    parts.append(
        " ".join(
            [*dict.fromkeys(_circumstances(record) for record in records), tables.INTERVAL_NOTE, tables.FLOPS_NOTE]
        )
    )
    names = ", ".join(arm.label for arm in grouped)
    parts.append(f"![Loss and accuracy against the epoch: {names}]({(folder / PLOT).as_posix()})")
    return "\n\n".join(parts)


def _quick(records: Sequence[RunRecord]) -> str:
    rows = [record.row for record in records]
    first = rows[0]
    time = tables.duration(stats.mean([row["train_seconds"] for row in rows]))
    seeds = f"{len(rows)} seeds, mean and standard deviation" if len(rows) > 1 else "one seed"
    tokens = "the [CLS] token" if first.get("model.pool") == "cls" else "mean pooling"
    where = ", ".join(str(part) for part in (first["hardware"], tables.threads(first), first["precision"]) if part)
    recipe = f"[{Path(QUICK_RECIPE).name}]({QUICK_RECIPE})"
    return (
        f"**In a hurry:** {recipe} reaches {tables.accuracy_cell(rows)} in {time} of training "
        f"({seeds}; {first['data']}, {first['epochs']} epochs, {tokens}, {where})."
    )


def _circumstances(record: RunRecord) -> str:
    row = record.row
    tokens = "the [CLS] token" if row.get("model.pool") == "cls" else "mean pooling"
    parts = [
        *(f"{row['epochs']} epochs of {row['train_images']:,} images", tokens, f"seed {row['seed']}", row["precision"]),
        *(row["hardware"], tables.threads(row), f"torch {row['torch']}", f"diffvit {row['diffvit']}"),
    ]
    return ", ".join(str(part) for part in parts if part) + "."


def update(readme: Path, folder: Path, quick: Path | None = None, *, check: bool = False) -> list[str]:
    """Bring the README's results and the plot up to date with the committed rows, or only check them.

    Args:
        readme: the file with the two markers.
        folder: rows behind the table and the plot.
        quick: rows of :data:`QUICK_RECIPE`, if there are any.
        check: write nothing.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        InputError: no rows, no README, or a README without the two markers.
        EnvironmentFault: a file cannot be written.
    """
    records = read(folder)
    if not records:
        raise InputError(str(folder), "has no rows.csv with runs", f"Write one: diffvit compare RUN ... --out {folder}")
    relative = _from(readme, folder)
    new = with_block(readme, BLOCK, readme_block(records, relative, read(quick) if quick else ()))
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
    parser.add_argument("--quick", type=Path, default=QUICK_ROWS, help="the same of the quick recipe's runs")
    given = parser.parse_args(arguments)
    return finish(lambda: update(given.readme, given.rows, given.quick, check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
