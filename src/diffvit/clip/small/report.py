"""What the small CLIP shows, from committed figures alone: ``python -m diffvit.clip.small.report [--check]``.

``--run RUN`` takes the names that a run of ``diffvit clip train`` tried into :data:`NAMES` first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import PercentFormatter

from diffvit.clip.evaluation.compare_page import shift_statements, statements
from diffvit.errors import InputError
from diffvit.reporting import markdown, stats, tables
from diffvit.reporting.csv_files import Row, read_csv, write_csv
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.rows import read
from diffvit.reporting.style import LIGHT, Theme, dress, figure, stamp_of, to_png
from diffvit.training.files import disk_faults, replace
from diffvit.training.run_dir import RunDir

FOLDER, PAGE, BLOCK = Path("reports/clip-cifar10"), Path("docs/clip.md"), "small-clip"
NAMES, PLOT, COMPARISON = "names.csv", "names.png", Path("compare/compare.json")
_COLUMNS = ("class", "name", "seen", "known_tokens", "recall")
# A name's kind, by whether a caption held it and how many of its tokens some caption held.
SEEN, KNOWN, PARTLY, UNKNOWN = KINDS = (
    "in captions",
    "new, of known words",
    "new, partly of known words",
    "new, of no known word",
)


def kind_of(row: Mapping[str, Any]) -> str:
    """Which of :data:`KINDS` a name is."""
    if row["seen"]:
        return SEEN
    return KNOWN if row["known_tokens"] == 1 else PARTLY if row["known_tokens"] > 0 else UNKNOWN


def take_names(run: Path, folder: Path = FOLDER) -> None:
    """The names that a run tried, as :data:`NAMES` in this folder.

    Raises:
        InputError: it is no finished run of a CLIP.
        EnvironmentFault: the file cannot be written.
    """
    path = RunDir.open(run).path / "evaluation.json"
    try:
        tried = json.loads(path.read_bytes())["names"]
        write_csv(folder / NAMES, [{name: row[name] for name in _COLUMNS} for row in tried])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"has no names of a CLIP ({error.__class__.__name__})"
        raise InputError(str(path), why, "Give a finished run of diffvit clip train.") from None


def block(folder: Path = FOLDER) -> str:
    """The page's part as Markdown.

    Raises:
        InputError: the committed figures are missing or damaged.
    """
    names = read_csv(folder / NAMES)
    result = _comparison(folder / COMPARISON)
    one, two = (model["model"] for model in result["models"])
    parts = [_trained(folder), _name_table(names), _name_words(names), f"![Recall by name](../{folder / PLOT})"]
    parts.append(f"Beside the twin, from the packaged weights ([page](../{folder / COMPARISON.with_suffix('.html')})):")
    said = statements(result)
    said += shift_statements(result["shifts"], one, two) if result["shifts"] else []
    parts.append("\n".join(f"- {line}" for line in said))
    return "\n\n".join(parts)


def _comparison(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({error.__class__.__name__})", "Run: make clip-cifar10") from None


def _trained(folder: Path) -> str:
    """Both runs, a row each."""
    columns = ["", "Test accuracy", "With names in no caption", "Parameters", "Training time", "Epochs"]
    rows = []
    for record in read(folder):
        row = record.row
        clip = row.get("zero_shot_accuracy") is not None
        rows.append(
            [
                f"CLIP ({row['run']})" if clip else f"its supervised twin ({row['run']})",
                tables.accuracy_cell([row]),
                tables.percent(row.get("unseen_names_accuracy")),
                f"{row['parameters']:,}",
                tables.duration(row["train_seconds"]),
                f"{row['epochs']}",
            ]
        )
    return markdown.table(tables.Table(columns, rows))


def _name_table(names: Sequence[Row]) -> str:
    own = {row["class"]: row["recall"] for row in names if row["name"] == row["class"]}
    rows = []
    for kind in KINDS:
        mine = [row for row in names if kind_of(row) == kind]
        if mine:
            worst = min(mine, key=lambda row: row["recall"])
            usual = stats.mean([own[row["class"]] for row in mine])
            mean = stats.mean([row["recall"] for row in mine])
            cells = [f"{len(mine)}", tables.percent(mean, 1), tables.percent(usual, 1)]
            rows.append([kind, *cells, f"{worst['name']}: {tables.percent(worst['recall'], 1)}"])
    columns = ["Names", "How many", "Mean recall", "Of their classes' own names", "Lowest"]
    return markdown.table(tables.Table(columns, rows))


def _name_words(names: Sequence[Row]) -> str:
    """What the table says, in words that follow from it."""
    own = {row["class"]: row["recall"] for row in names if row["name"] == row["class"]}
    unknown = [row for row in names if kind_of(row) == UNKNOWN]
    others = [row for row in names if kind_of(row) != UNKNOWN]
    apart = max(abs(row["recall"] - own[row["class"]]) for row in others)
    said = (
        "Recall: the images of a class that are given to it where the name stands beside the other classes' own. "
        f"Every name with a word of the captions is within {100 * apart:.1f} points of its class's own name."
    )
    if not unknown:
        return said
    groups = {(row["class"], row["recall"]) for row in unknown}
    half = sum(row["recall"] < own[row["class"]] / 2 for row in unknown)
    return (
        f"{said} A word that no caption held has no vector: the prompt is left without a name, and what it then points "
        f"to is chance: {half} of {len(unknown)} such names lose more than half of their class's images, and "
        f"{len(unknown) - len(groups)} share their recall exactly with another of their class."
    )


def plot(names: Sequence[Row], *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """Each name's recall, a line per class, a mark per kind of name."""
    classes = list(dict.fromkeys(row["class"] for row in names))
    made = figure(theme, 9.0, 1.6 + 0.42 * len(classes))
    axes = made.add_subplot()
    dress(axes, theme, title="Every name in its class's place", x="recall", y="", grid=False)
    for place, (kind, mark) in enumerate(zip(KINDS, "osD^", strict=True)):
        mine = [row for row in names if kind_of(row) == kind]
        heights = [classes.index(row["class"]) + 0.16 * (place - 1.5) for row in mine]
        across = [100 * row["recall"] for row in mine]
        axes.plot(across, heights, mark, color=theme.series[place], ms=6, alpha=0.8, mew=0, label=kind)
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(axis="x", color=theme.faint)
    made.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=theme.ink, fontsize=9.5)
    return to_png(made, stamp)


def update(folder: Path = FOLDER, page: Path = PAGE, *, check: bool = False) -> list[str]:
    """Bring the page's part and the plot up to date with the committed figures, or only check them.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        InputError: figures or page are missing or damaged.
        EnvironmentFault: a file cannot be written.
    """
    text, drawn = with_block(page, BLOCK, block(folder)).encode(), folder / PLOT
    stale = brought_up_to_date({page: (text, f"its small CLIP is not that of {folder}")}, check=check)
    stamp = hashlib.sha256((folder / NAMES).read_bytes()).hexdigest()
    if stamp_of(drawn) != stamp:
        stale.append(f"{drawn}: was not made from the names beside it")
        if not check:
            with disk_faults(drawn):
                replace(drawn, plot(read_csv(folder / NAMES), stamp=stamp))
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input, 4."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.clip.small.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--run", type=Path, help="take the names from this run first")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder with the figures (default {FOLDER})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"page with the part (default {PAGE})")
    given = parser.parse_args(arguments)

    def updated() -> list[str]:
        if given.run is not None:
            take_names(given.run, given.folder)
        return update(given.folder, given.page, check=given.check)

    return finish(updated, check=given.check)


if __name__ == "__main__":
    sys.exit(main())
