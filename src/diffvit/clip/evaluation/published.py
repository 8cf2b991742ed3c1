"""The figures that need published weights: ``python -m diffvit.clip.evaluation.published [--check]``.

``diffvit clip published`` measures them; here they become a part of the page, from the committed files alone. Where
there are none the page says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffvit.clip.evaluation.compare_page import in_order
from diffvit.clip.precision_report import drift_table
from diffvit.errors import InputError
from diffvit.reporting import markdown
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.tables import NONE, Table, percent

FOLDER, PAGE, BLOCK = Path("reports/clip-published"), Path("docs/clip.md"), "clip-published"
COMMAND = "diffvit clip published IMAGENET"
# Folder of a comparison: what it is of, and beside which ResNet-50.
COMPARISONS = {
    "imagenet-tv-v2": ("ImageNet's validation pictures", "torchvision V2"),
    "imagenet-tv-v1": ("ImageNet's validation pictures", "torchvision V1"),
    "cifar10-tv-v2": ("CIFAR-10's test pictures, nine classes", "torchvision V2"),
}
RESULT, PRECISION = "compare.json", Path("precision/precision.json")
_ENDS = 3  # superclasses named at each end


def block(folder: Path = FOLDER) -> str:
    """The page's part as Markdown.

    Raises:
        InputError: a committed file is damaged.
    """
    found = {name: _read(folder / name / RESULT) for name in COMPARISONS}
    missing = [name for name, result in found.items() if result is None]
    missing += [PRECISION.name] if not (folder / PRECISION).is_file() else []
    parts = [_not_measured(any(found.values()))] if missing else []
    parts.append(markdown.table(_accuracies(found)))
    parts += [_sides(COMPARISONS[name], result) for name, result in found.items() if result and result["superclasses"]]
    if (measured := _read(folder / PRECISION)) is not None:
        parts += [f"Weights: {measured['encoder']['weights']}.", markdown.table(drift_table(measured))]
    return "\n\n".join(parts)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({error.__class__.__name__})", f"Run: {COMMAND}") from None


def _not_measured(some: bool) -> str:
    which = "what has no figure below" if some else "all of this"
    return (
        f"**Not measured here: {which}.** The published weights and ImageNet's pictures were not at "
        f"hand. `make clip-published IMAGENET=folder` (that is `{COMMAND}`) fetches the weights, fills this and "
        "writes a page for each comparison."
    )


def _accuracies(found: Mapping[str, Any]) -> Table:
    columns = ["Pictures", "Beside", "CLIP RN50, zero-shot", "ResNet-50", "Difference, points", "Top-5", "Templates"]
    rows = []
    for name, result in found.items():
        cells = [NONE] * 5
        if result:
            whole, models = result["overall"], result["models"]
            cells = [
                *(percent(whole[side]) for side in ("first", "second")),
                f"{100 * whole['difference']:+.2f} ({100 * whole['low']:+.2f} to {100 * whole['high']:+.2f})",
                " and ".join(percent(model["top5"], 1) for model in models),
                ", ".join(f"{each['count']}: {percent(each['accuracy'], 1)}" for each in result["templates"]),
            ]
        rows.append([*COMPARISONS[name], *cells])
    return Table(columns, rows)


def _sides(names: tuple[str, str], result: Mapping[str, Any]) -> str:
    """Where each of them wins."""
    rows = [row for row in in_order(result["superclasses"]) if row.get("decided")]
    best = [row for row in rows if row["low"] > 0][:_ENDS]
    worst = [row for row in rows if row["high"] < 0][::-1][:_ENDS]

    def named(some: Sequence[Mapping[str, Any]]) -> str:
        if not some:
            return "in none that is decided"
        return "most in " + ", ".join(f"{row['superclass']} ({100 * row['difference']:+.1f})" for row in some)

    weights = " and ".join(str(model["weights"]) for model in result["models"])
    return f"{names[0]}, beside {names[1]} ({weights}): CLIP wins {named(best)}; the ResNet-50 {named(worst)}."


def update(folder: Path = FOLDER, page: Path = PAGE, *, check: bool = False) -> list[str]:
    """Bring the page's part up to date with the committed files, or only check it.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        InputError: a file or the page is damaged.
        EnvironmentFault: the page cannot be written.
    """
    text = with_block(page, BLOCK, block(folder)).encode()
    return brought_up_to_date(
        {page: (text, f"its figures of published weights are not those of {folder}")}, check=check
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input, 4."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.clip.evaluation.published", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder with the figures (default {FOLDER})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"page with the part (default {PAGE})")
    given = parser.parse_args(arguments)
    return finish(lambda: update(given.folder, given.page, check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
