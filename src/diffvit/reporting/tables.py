"""The tables of a report: figures of arms side by side, accuracy by class, differing settings; commands to repeat."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffvit.config import Config, flat
from diffvit.registry import MEMORY
from diffvit.reporting import stats
from diffvit.reporting.arms import Arm, differences
from diffvit.reporting.rows import Row, RunRecord

JPEG = "CIFAR-10 (JPEG)"
JPEG_NOTE = (
    "The images are a JPEG re-encoding of CIFAR-10, not the official pixels. "
    "Figures on them are lower than, and not comparable with, published CIFAR-10 figures."
)
UNKNOWN_NOTE = (
    "The images are neither the official pixels of CIFAR-10 nor a copy that diffvit knows. "
    "Figures on them compare with no published ones."
)
SHAPES_NOTE = "The images are shapes drawn by diffvit itself, not photographs: good for a try, not a benchmark."
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with a heading per column; the first cell of a row names the row."""

    columns: list[str]
    rows: list[list[str]]


def markdown(table: Table) -> str:
    """A table as Markdown; the figures' columns are right-aligned."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(table.columns) - 1)
    return "\n".join([line(table.columns), rule, *(line(row) for row in table.rows)])


def data_note(name: str) -> str:
    """The sentence that must stand beside figures on this data; empty where the name says it all."""
    known = {JPEG: JPEG_NOTE, "CIFAR-10 (unknown copy)": UNKNOWN_NOTE}
    return known.get(name, SHAPES_NOTE if name.startswith("shapes") else "")


def data_notes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Each data's name in these rows, with the footnote that its rows carry or else its :func:`data_note`."""
    named = ((str(row["data"]), row.get("data_note")) for row in rows)
    return list(dict.fromkeys((name, f"{note}." if note else data_note(name)) for name, note in named))


def reading_order(names: Sequence[str]) -> list[int]:
    """Places of class names in the order of a table: "2" before "10" where they are sorted as text, as folders are.

    Names in an order of their own keep it. Labels are never in this order.
    """
    places = list(range(len(names)))
    if list(names) != sorted(names):
        return places
    split = [re.split(r"(\d+)", name) for name in names]  # text and digits by turns
    return sorted(places, key=lambda n: [int(part) if odd % 2 else part for odd, part in enumerate(split[n])])


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent."""
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def accuracy_cell(rows: Sequence[Row]) -> str:
    """Test accuracy: of one run with the interval its test images allow, of several with their standard deviation."""
    values = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    if not values:
        return NONE
    spread = stats.std(values)
    if spread is not None:
        return f"{percent(stats.mean(values))} ± {100 * spread:.2f}"
    count = rows[0].get("test_images")
    if not count:
        return percent(values[0])
    interval = stats.wilson(round(values[0] * count), int(count))
    return f"{percent(values[0])} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def big(value: float | None) -> str:
    """A count with its thousands, millions, billions and so on."""
    if value is None:
        return NONE
    for factor, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * factor:  # which three digits round up
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as the two units a reader needs."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _plain(value: Any) -> str:
    return NONE if value is None else f"{value}"


def _hardware(row: Row) -> str:
    parts = [row["hardware"], f"{row['device']}" if row["device"] else None]
    parts += [threads(row) if row["device"] != "cuda" else None]
    return ", ".join(str(part) for part in parts if part) or NONE


def threads(row: Row) -> str | None:
    """How many CPU threads a run used, in words."""
    count = row["threads"]
    return f"{count} thread{'' if count == 1 else 's'}" if count else None


def _commit(row: Row) -> str:
    """Ten digits, and the ``+`` of a checkout that differed from its commit."""
    commit = str(row["commit"])
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _versions(row: Row) -> str:
    parts = [f"{name} {row[name]}" for name in ("diffvit", "torch", "python") if row[name]]
    return ", ".join(parts + ([f"commit {_commit(row)}"] if row["commit"] else [])) or NONE


def mean_of(name: str, show: Callable[[float | None], str]) -> Callable[[Sequence[Row]], str]:
    """A figure's mean over an arm's runs."""

    def cell(rows: Sequence[Row]) -> str:
        values = [row[name] for row in rows if row.get(name) is not None]
        return show(stats.mean(values)) if values else NONE

    return cell


def _each(show: Callable[[Row], str]) -> Callable[[Sequence[Row]], str]:
    """The different values in an arm's runs."""
    return lambda rows: ", ".join(dict.fromkeys(show(row) for row in rows))


_FIGURES: tuple[tuple[str, Callable[[Sequence[Row]], str]], ...] = (
    ("Test accuracy", accuracy_cell),
    ("On the exact images alone", mean_of("test_accuracy_exact", percent)),
    ("Top-5", mean_of("test_top5", percent)),
    ("Balanced accuracy", mean_of("test_balanced_accuracy", percent)),
    ("Macro-F1", mean_of("test_macro_f1", percent)),
    ("Validation accuracy", mean_of("val_accuracy", percent)),
    ("Calibration error", mean_of("calibration_error", percent)),
    ("Test loss (nats)", mean_of("test_loss", lambda value: f"{value:.3f}")),
    ("Parameters", _each(lambda row: NONE if row["parameters"] is None else f"{row['parameters']:,}")),
    ("FLOPs per image", _each(lambda row: big(row["flops_per_image"]))),
    ("Training images/s", mean_of("images_per_second", big)),
    ("Training time", mean_of("train_seconds", duration)),
    ("Data loading (not in training time)", mean_of("data_seconds", duration)),
    ("Compiling (not in training time)", mean_of("compile_seconds", lambda value: duration(value) if value else NONE)),
    ("Epochs", _each(lambda row: _plain(row["epochs"]))),
    ("Seed", _each(lambda row: _plain(row["seed"]))),
    ("Precision", _each(lambda row: _plain(row["precision"]))),
    ("Data", _each(lambda row: _plain(row["data"]))),
    ("Hardware", _each(_hardware)),
    ("Versions", _each(_versions)),
)
INTERVAL_NOTE = (
    "In brackets: Wilson's 95% interval, which covers the sampling of test images, not the variation between training "
    "runs; with several seeds the mean and the standard deviation over them."
)
FLOPS_NOTE = "FLOPs: one forward pass of one image, matrix products only, a multiply-add counted as two."
FIGURE_NOTES = f"{INTERVAL_NOTE} Calibration error: expected, 15 bins. {FLOPS_NOTE}"


def side_by_side(grouped: Sequence[Arm]) -> Table:
    """One column per arm, one line per figure; lines that no arm can fill are left out."""
    rows = [[name, *(show([record.row for record in arm.records]) for arm in grouped)] for name, show in _FIGURES]
    return Table(["", *(arm.label for arm in grouped)], [row for row in rows if any(cell != NONE for cell in row[1:])])


def class_table(grouped: Sequence[Arm]) -> Table | None:
    """Accuracy (recall) and precision of every class over an arm's seeds; None unless some run kept its evaluation.

    Of arms with other classes than the first there are none.
    """
    kept = [arm for arm in grouped if arm.confusion]
    if not kept:
        return None
    names = kept[0].classes
    kept = [arm for arm in kept if arm.classes == names]
    columns = [column for arm in kept for column in (arm.class_accuracies, arm.class_precisions)]
    rows = [[names[index], *(percent(column[index], 1) for column in columns)] for index in reading_order(names)]
    return Table(["Class", *(name for arm in kept for name in (arm.label, f"{arm.label}, precision"))], rows)


def difference_table(grouped: Sequence[Arm]) -> Table | None:
    """Settings in which the arms differ; None where there are none."""
    found = {
        name: values for name, values in differences([arm.records[0] for arm in grouped]).items() if name != "seed"
    }
    if not found:
        return None
    rows = [[name, *(_short(value) for value in values)] for name, values in found.items()]
    return Table(["Setting", *(arm.label for arm in grouped)], rows)


def _short(value: object) -> str:
    text = NONE if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def command(arm: Arm) -> str:
    """The commands that repeat an arm's runs: every setting that is not the default, as a flag.

    Captions are no flags, and rows do not say where a folder lies: such runs are repeated from ``config.yaml``.
    """
    return "\n".join(_train_command(record) for record in arm.records)


def _train_command(record: RunRecord) -> str:
    again = ["--out", f"runs/{record.row['run']}-again"]
    clip, source = record.settings.get("objective") is not None, record.settings.get("source")
    if clip or source == "folder":  # whose place is not in the row
        verb = ["clip", "train"] if clip else ["train"]
        return shlex.join(["diffvit", *verb, f"runs/{record.row['run']}/config.yaml", *again])
    if source == MEMORY:
        return f"diffvit.train(config, data=...) in Python, with the config of runs/{record.row['run']}/config.yaml"
    default = flat(Config())
    given = record.settings | {"epochs": record.row["epochs"], "seed": record.row["seed"]}
    parts = ["diffvit", "train", "--data", str(given.pop("source", "cifar10"))]
    for name, value in given.items():
        if value is None or value == default.get(name):
            continue
        head, _, last = name.replace("_", "-").rpartition(".")
        prefix = f"--{head}." if head else "--"
        if isinstance(value, bool):
            parts.append(prefix + last if value else f"{prefix}no-{last}")
        else:
            parts += [prefix + last, str(value)]
    if record.row["precision"]:
        parts += ["--precision", str(record.row["precision"])]
    return shlex.join([*parts, *again])
