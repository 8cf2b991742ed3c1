"""The search's report: what was tried, what came out, and how much each dial seemed to matter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from diffvit.config import to_yaml
from diffvit.errors import InputError
from diffvit.experiments.definitions import BOTH
from diffvit.experiments.ledger import CELL, Ledger
from diffvit.experiments.search import DIALS, EPOCHS, ON, trial_of
from diffvit.reporting import markdown
from diffvit.reporting.arms import MODEL_NAMES
from diffvit.reporting.csv_files import Row, read_csv, write_csv
from diffvit.reporting.generated import brought_up_to_date
from diffvit.reporting.style import LIGHT, Theme, colour, dress, figure, stamp_of, to_png
from diffvit.reporting.tables import Table, percent
from diffvit.training.files import disk_faults, replace

TRIED, REPORT, PLOT, BEST = "trials.csv", "report.md", "dials.png", "best-{}.yaml"
_ON = ("data", "precision", "device")
_SHOWN = 5  # of each attention in the table
_DONE = {"COMPLETE": "complete", "PRUNED": "pruned"}
_COLUMNS = 4


def rows_of(ledgers: Mapping[str, Sequence[Ledger]], tier: str) -> list[Row]:
    """Every trial that is done, a row each.

    Args:
        ledgers: by attention, each for other data, precision or device.
        tier: how much.
    """
    rows: list[Row] = []
    for attention, ledger in ((attention, each) for attention, found in ledgers.items() for each in found):
        seen: set[str] = set()
        for trial in ledger.history():
            cell = trial.user_attrs[CELL]
            if trial.state.name in _DONE and cell not in seen:
                seen.add(cell)
                values = trial.intermediate_values
                value = trial.values[0] if trial.values else max(values.values(), default=0.0)
                known = {"tier": tier, "attention": attention, "trial": cell, "state": _DONE[trial.state.name]}
                known |= dict.fromkeys(_ON) | trial.user_attrs.get(ON, {})
                known |= {"epochs": max(values, default=0), "val_accuracy": value}
                rows.append({**known, **{dial.setting: trial.params.get(dial.setting) for dial in DIALS}})
    return rows


def write_report(rows: Sequence[Row], folder: Path) -> Path:
    """Write trials.csv, report.md, the best of each attention as YAML, and the plot; the path of report.md.

    Raises:
        InputError: nothing was tried yet.
        EnvironmentFault: the disk refuses.
    """
    if not rows:
        raise InputError("study search", "has tried nothing yet", "Run it first: diffvit study run search")
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / TRIED, rows)
    return update(folder)


def update(folder: Path) -> Path:
    """Bring all but trials.csv up to date with it.

    Raises:
        InputError: trials.csv is missing or damaged.
    """
    rows = read_csv(folder / TRIED)
    wanted: dict[Path, tuple[bytes, str]] = {
        folder / REPORT: (report(rows).encode(), "is not made from trials.csv"),
    }
    for attention, best in best_of(comparable(rows)).items():
        values = {dial.setting: best[dial.setting] for dial in DIALS}
        config = trial_of(best["tier"], attention, best["trial"], values).config
        wanted[folder / BEST.format(attention)] = (to_yaml(config).encode(), "is not the best of trials.csv")
    brought_up_to_date(wanted, check=False)
    stamp = stamp_from(folder)
    if stamp_of(folder / PLOT) != stamp:
        with disk_faults(folder / PLOT):
            replace(folder / PLOT, plot(comparable(rows), stamp=stamp))
    return folder / REPORT


def stamp_from(folder: Path) -> str:
    """What the plot carries to say what it was made from."""
    return hashlib.sha256((folder / TRIED).read_bytes()).hexdigest()


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows of the data, precision and device that most trials were computed on; trials of others are not ranked."""
    together: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(tuple(row.get(name) for name in _ON), []).append(row)
    return max(together.values(), key=len)


def best_of(rows: Sequence[Row]) -> dict[str, Row]:
    """For each attention the complete trial with the highest validation accuracy."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.get(row["attention"])
        if row["state"] == "complete" and (before is None or row["val_accuracy"] > before["val_accuracy"]):
            found[row["attention"]] = row
    return found


def report(rows: Sequence[Row]) -> str:
    """The whole report as Markdown."""
    everything, rows = rows, comparable(rows)
    tier = str(rows[0]["tier"])
    complete = sum(row["state"] == "complete" for row in rows)
    parts = [
        "# search: What do the recipe's main dials want?",
        f"Tier {tier}: {len(rows)} trials of up to {EPOCHS[tier]} epochs, {complete} of them complete, the others "
        "pruned on their way. TPE (Optuna) looked at the validation split only, at images that were not trained on; "
        "the best of many is a little too good. One seed: exploratory, no setting is named a winner.",
    ]
    if known := ", ".join(str(rows[0][name]) for name in _ON if rows[0].get(name)):
        parts.append(f"Data, precision, device: {known}.")
    if apart := len(everything) - len(rows):
        parts.append(f"{apart} trials on other data, precisions or devices are in {TRIED} and are not ranked here.")
    for attention in BOTH:
        mine = [row for row in rows if row["attention"] == attention]
        if mine:
            parts += [f"## {MODEL_NAMES[attention]}", markdown.table(table(mine))]
    parts += [f"![Validation accuracy against each dial]({PLOT})"]
    names = ", ".join(f"`{BEST.format(attention)}`" for attention in best_of(rows))
    parts.append(
        f"The best of each: {names}, for `diffvit train`. Generated from {TRIED} by `diffvit study report search`."
    )
    return "\n\n".join(parts) + "\n"


def words_of(folder: Path) -> str:
    """The search in a few sentences, from its trials.csv."""
    rows = comparable(read_csv(folder / TRIED))
    found = [
        f"{MODEL_NAMES[attention]}: {percent(best['val_accuracy'])} validation accuracy with "
        + ", ".join(f"{dial.setting} {_short(best[dial.setting])}" for dial in DIALS)
        for attention, best in best_of(rows).items()
    ]
    tier = rows[0]["tier"]
    head = f"*search, tier {tier}, {len(rows)} trials of up to {EPOCHS[str(tier)]} epochs, exploratory.*"
    return f"{head} The best of each: {'; '.join(found)}."


def table(rows: Sequence[Row]) -> Table:
    """The best complete trials."""
    order = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["val_accuracy"])
    columns = ["Trial", "Validation accuracy", *(dial.setting for dial in DIALS)]
    cells = [
        [row["trial"], percent(row["val_accuracy"]), *(_short(row[dial.setting]) for dial in DIALS)]
        for row in order[:_SHOWN]
    ]
    return Table(columns, cells)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def plot(rows: Sequence[Row], *, theme: Theme = LIGHT, stamp: str = "") -> bytes:
    """A panel per dial, a mark per trial."""
    lines = -(-len(DIALS) // _COLUMNS)
    made = figure(theme, 3.0 * _COLUMNS, 0.6 + 2.7 * lines)
    panels = made.subplots(lines, _COLUMNS, sharey=True, squeeze=False).flat
    for dial, axes in zip(DIALS, panels, strict=False):
        for place, attention in enumerate(BOTH):
            mine = [row for row in rows if row["attention"] == attention and row["state"] == "complete"]
            across = [row[dial.setting] for row in mine]
            values = [100 * row["val_accuracy"] for row in mine]
            shade, label = colour(theme, place), MODEL_NAMES[attention]
            axes.plot(across, values, "os"[place], color=shade, ms=5, alpha=0.75, mew=0, label=label)
        dress(axes, theme, title="", x=dial.setting, y="validation images right")
        axes.set_xscale("log" if dial.log else "linear")
        if dial.log:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if dial.choices:
            axes.set_xticks(list(dial.choices))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        if axes.get_subplotspec() and not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=theme.ink)
    return to_png(made, stamp)
