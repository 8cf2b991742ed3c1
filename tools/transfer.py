"""The results of docs/transfer.md, from the committed rows of the two transfer recipes."""

from __future__ import annotations

from pathlib import Path

from diffvit.reporting import stats, tables
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import read
from diffvit.reporting.texts import statements
from tools.pages import Content, render, with_block
from tools.recipes import where

PAGE, REPORTS, BLOCK = Path("docs/transfer.md"), Path("reports"), "transfer"
# Folder of rows: recipe, and what it trains on.
RECIPES = {
    "transfer-cifar100-sample": ("transfer_cifar100_sample.yaml", "images of 100 classes of CIFAR-100"),
    "transfer-cifar10-few": ("transfer_cifar10_few.yaml", "images of CIFAR-10, 20 of each class"),
}


def documents(root: Path) -> dict[Path, Content]:
    """The page with a table and the statements of each recipe's runs.

    Raises:
        InputError: damaged rows, or a page without the two markers.
    """
    parts = []
    for name, (recipe, words) in RECIPES.items():
        grouped = arms(read(root / REPORTS / name))
        first = grouped[0].records[0].row
        rows = []
        for arm in grouped:
            of_arm = [record.row for record in arm.records]
            times = [float(row["train_seconds"]) for row in of_arm]
            rows.append([arm.label, tables.accuracy_cell(of_arm), tables.duration(stats.mean(times))])
        table = tables.Table(["", "Test accuracy", "Training time"], rows)
        made = {"name": name, "recipe": recipe, "words": words, "first": first, "table": table, "where": where(first)}
        parts.append(made | {"statements": statements(grouped)})
    return {PAGE: with_block(root / PAGE, BLOCK, render("transfer.md", parts=parts))}
