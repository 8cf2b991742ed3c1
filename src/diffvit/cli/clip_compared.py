"""What ``diffvit clip compare`` found, on the terminal and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffvit.cli import show
from diffvit.errors import ConfigError

if TYPE_CHECKING:
    from diffvit.clip.evaluation.compare import Comparison
    from diffvit.clip.evaluation.labelled import Labelled
    from diffvit.clip.evaluation.shifts import Shift

ALL_OF_THEM, NONE_OF_THEM = "all", "none"
SHIFT_PICTURES = 500
ALL = 20  # categories in the terminal's table; of more, so many of both ends together


def changes_of(kinds: str, pictures: int) -> tuple[Shift, ...]:
    """The shifts asked for.

    Raises:
        ConfigError: no such kind, or no pictures.
    """
    from diffvit.clip.evaluation.shifts import KINDS, shifts

    if pictures < 1:
        raise ConfigError("--shift-pictures", f"must be at least 1 (found {pictures})")
    if kinds == NONE_OF_THEM:
        return ()
    return shifts(KINDS if kinds == ALL_OF_THEM else [kind.strip() for kind in kinds.split(",")])


def tell(result: Mapping[str, Any]) -> None:
    """The figures of :func:`diffvit.clip.evaluation.compare.compare`."""
    from diffvit.clip.evaluation.compare_page import in_order, shift_statements, statements

    one, two = result["models"]
    show.pairs(
        {
            "data": f"{result['data']}, {result['images']:,} pictures, {len(result['classes']):,} classes",
            "first": f"{one['model']}: {show.percent(one['accuracy'])}",
            "second": f"{two['model']}: {show.percent(two['accuracy'])}",
        }
    )
    for line in statements(result):
        show.line(line)
    _differences("category", "class", in_order(result["per_class"]))
    if result["superclasses"]:
        _differences("superclass", "superclass", in_order(result["superclasses"]))
    else:
        show.line(f"note: no superclasses: {result['no_superclasses']}")
    if result["shifts"]:
        for line in shift_statements(result["shifts"], one["model"], two["model"]):
            show.line(line)


def _differences(title: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row, or for those at both ends."""
    from diffvit.clip.evaluation.compare_page import DECIDED, decided_note

    shown = list(rows) if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]
    show.table(
        [title, "pictures", "first", "second", "difference", "95% interval", "decided"],
        [
            [
                row[key],
                f"{row['images']:,}",
                *(show.percent(row[name]) for name in ("first", "second")),
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                DECIDED[row["decided"]],
            ]
            for row in shown
        ],
    )
    show.line(decided_note(rows))


def write(out: Path, found: Comparison, labelled: Labelled, changes: Sequence[Shift], command: str) -> list[Path]:
    """The page, the plots, the figures, and a line per category, superclass and change."""
    from diffvit.clip.evaluation.compare_page import in_order, page_of
    from diffvit.clip.evaluation.compare_plots import forest, shift_curves
    from diffvit.reporting.csv_files import to_csv
    from diffvit.reporting.style import to_png
    from diffvit.training.files import disk_faults, replace, to_json

    result = found.result
    one, two = (model["model"] for model in result["models"])
    files = {
        "compare.html": page_of(found, labelled, changes, command).encode(),
        "compare.json": to_json(result),
        "categories.csv": to_csv(result["per_class"]),
        "categories.png": to_png(forest(in_order(result["per_class"]), one, two)),
    }
    if above := result["superclasses"]:
        named = [{**row, "classes": "; ".join(row["classes"])} for row in above]
        files |= {"superclasses.csv": to_csv(named)}
        files |= {"superclasses.png": to_png(forest(in_order(above), one, two, key="superclass"))}
    if changed := result["shifts"]:
        rows = [{"shift": "none", "severity": 0, "words": "", **changed["original"]}, *changed["cells"]]
        files |= {"shifts.csv": to_csv(rows), "shifts.png": to_png(shift_curves(changed, one, two))}
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]
