"""The ``# Expected:`` line in the first comment of each recipe of ``configs/``, from the committed rows.

It has accuracy and time of the committed runs with exactly the recipe's settings, or ``not yet run``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffvit.config import Config, flat, parse, read_yaml
from diffvit.errors import InputError
from diffvit.reporting import stats, tables
from diffvit.reporting.rows import ROWS_FILE, Row, RunRecord, arm_settings, read
from tools.pages import Content

MARK = "# Expected:"


def documents(root: Path) -> dict[Path, Content]:
    """Every recipe, with its line.

    Raises:
        InputError: a recipe whose first comment lacks the command or the one line that begins with ``# Expected:``.
        ConfigError: a recipe that is not a valid configuration.
    """
    studies = {path.parent.name: read(path.parent) for path in sorted((root / "reports").glob(f"*/{ROWS_FILE}"))}
    made: dict[Path, Content] = {}
    for path in sorted((root / "configs").glob("*.yaml")):
        line = _line(parse(read_yaml(path), str(path)), studies)
        made[path.relative_to(root)] = _with_line(path, path.read_text(encoding="utf-8"), line)
    return made


def _with_line(path: Path, text: str, line: str) -> str:
    comment = []
    for each in text.splitlines():
        if not each.startswith("#"):
            break
        comment.append(each)
    places = [number for number, each in enumerate(comment) if each.startswith(MARK)]
    if len(places) != 1 or not any(path.name in each or "make demo" in each for each in comment):
        hint = f"Begin it with its command and a line '{MARK}', which make docs fills in."
        raise InputError(str(path), f"its first comment must name its command and hold '{MARK}' once", hint)
    lines = text.splitlines(keepends=True)
    lines[places[0]] = f"{line}\n"
    return "".join(lines)


def _line(config: Config, studies: dict[str, list[RunRecord]]) -> str:
    """The study with most runs of these settings speaks for the recipe; one on JPEG pixels only where no other does."""
    found = {name: [each for each in records if is_run_of(each, config)] for name, records in studies.items()}
    wanted = {record.row["data"] for record in preferred([each for records in found.values() for each in records])}
    found = {name: [each.row for each in records if each.row["data"] in wanted] for name, records in found.items()}
    name = max(found, key=lambda each: len(found[each]), default=None)
    if name is None or not found[name]:
        return f"{MARK} not yet run"
    rows = found[name]
    data, note = str(rows[0]["data"]), rows[0].get("data_note")
    accuracies, times = ([float(row[column]) for row in rows] for column in ("test_accuracy", "train_seconds"))
    seeds = f"{len(rows)} seeds, mean" if len(rows) > 1 else "one seed"
    return (
        f"{MARK} {tables.percent(stats.mean(accuracies), 1)} of {data}'s test set{f' ({note})' if note else ''} in "
        f"{tables.duration(stats.mean(times))} of training ({seeds}; {where(rows[0])}; reports/{name})"
    )


def preferred(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs on official pixels; those on CIFAR-10 (JPEG) only where there are no others. reports/ keeps them all."""
    official = [record for record in records if record.row["data"] != tables.JPEG]
    return official or list(records)


def where(row: Row) -> str:
    """The machine of a run: its hardware, its threads on a CPU, its precision."""
    threads = tables.threads(row) if row["device"] == "cpu" else None
    return ", ".join(str(part) for part in (row["hardware"], threads, row["precision"]) if part)


def is_run_of(record: RunRecord, config: Config) -> bool:
    """Whether a run had the recipe's settings; a setting that the row's diffvit did not know yet had its default."""
    if record.row.get("objective") != getattr(config, "objective", None):
        return False  # a CLIP and its supervised twin have all other settings in common
    default, asked = flat(type(config)()), flat(config)
    names = arm_settings(config).keys() | (record.settings.keys() & default.keys())
    had = {name: default[name] if record.row.get(name) is None else record.row[name] for name in names - {"source"}}
    same = all(str(had[name]) == str(asked[name]) for name in had)
    return same and record.row["epochs"] == config.epochs and record.row["source"] == config.data
