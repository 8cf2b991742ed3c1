"""The attention study's report, from its rows alone: ``python -m tools.attention_study [--check]``.

What is scored, and on what, is :mod:`diffvit.attention.study`'s; here the numbers are paired, tested and drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from diffvit.reporting.attention_rows import Study
from diffvit.reporting.csv_files import read_csv
from diffvit.reporting.generated import finish
from diffvit.reporting.rows import EPOCHS_FILE, ROWS_FILE, read
from diffvit.training.files import disk_faults, replace
from tools import attention_plots as plots
from tools import attention_words as words
from tools.readme import stamp_of

FOLDER = Path("reports/attention")
SCORES, CURVES, REPORT = "scores.csv", "removal.csv", "report.md"
PLOTS = {
    "on-object.png": plots.on_object,
    "last-layer.png": plots.last_layer,
    "subtraction.png": plots.subtraction,
    "removal.png": plots.removal,
    "accuracy.png": plots.accuracy,
}


def stamp(folder: Path) -> str:
    """SHA-256 over the rows: what a plot carries to say which it was made from."""
    digest = hashlib.sha256()
    for name in (ROWS_FILE, EPOCHS_FILE, SCORES, CURVES):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def update(folder: Path = FOLDER, *, check: bool = False) -> list[str]:
    """Bring the report and its plots up to date with the rows beside them, or only check them.

    Returns:
        What was out of date, one line each; empty when nothing was, or when nothing was scored yet.

    Raises:
        InputError: damaged rows.
        EnvironmentFault: a file cannot be written.
    """
    page, stale = folder / REPORT, []
    if not (folder / SCORES).is_file():
        return [f"{page}: there are no rows beside it"] if page.exists() else []
    study = Study(read(folder), read_csv(folder / SCORES), read_csv(folder / CURVES))
    text = words.report(study).encode()
    if not page.exists() or page.read_bytes() != text:
        stale.append(f"{page}: is not made from the rows beside it")
    mark = stamp(folder)
    for name, draw in PLOTS.items():
        plot = folder / name
        if stamp_of(plot) == mark:
            continue
        stale.append(f"{plot}: was not made from the rows beside it")
        if not check:
            with disk_faults(plot):
                replace(plot, draw(study, stamp=mark))
    if not check:
        with disk_faults(page):
            replace(page, text)
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.attention_study", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder with the rows (default {FOLDER})")
    given = parser.parse_args(arguments)
    return finish(lambda: update(given.folder, check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
