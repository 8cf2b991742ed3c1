"""Reports from run folders: CSV rows, plots, Markdown, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from diffvit import __version__
from diffvit.errors import ConfigError, InputError
from diffvit.files import write_file
from diffvit.reporting import plots, tables, texts
from diffvit.reporting.arms import Arm, arms
from diffvit.reporting.rows import ROWS_FILE, Row, RunRecord, merge, read, read_run, write
from diffvit.reporting.style import DARK, LIGHT
from diffvit.training.run_dir import RunDir

_MOST_PICTURES = 6  # of a kind in one report, so that a study of thirty runs stays readable


@dataclass(frozen=True)
class Report:
    """Where a report went: the self-contained report.html and its folder; and what is in it.

    ``rows`` are those of rows.csv as dicts; ``figures`` has a column per arm.
    """

    path: Path
    rows: list[Row]
    folder: Path
    figures: tables.Table


class Picture(NamedTuple):
    """A plot as PNG bytes on white and on dark, its file's name, and its description in words."""

    file: str
    alt: str
    light: bytes
    dark: bytes


def compare(runs: Sequence[RunDir | Path | str], *, out: Path | None = None, committed: Path | None = None) -> Report:
    """Compare finished runs: one folder with rows, plots, report.md and a self-contained report.html.

    Args:
        runs: run folders.
        out: where the report goes; by default ``compare-A-B`` beside the first run.
        committed: a folder whose rows.csv and epochs.csv are merged in (same config hash and seed: the run wins).

    Raises:
        ConfigError: nothing to compare.
        InputError: a run is missing, damaged or not finished.
        EnvironmentFault: the report cannot be written.
    """
    records = list({Path(record.folder or "").resolve(): record for record in map(read_run, runs)}.values())
    folders = [record.folder for record in records if record.folder is not None]
    if committed is not None:
        if not (committed / ROWS_FILE).is_file():
            raise InputError(str(committed), f"has no {ROWS_FILE}", "Nothing was written; name a folder of a report.")
        records = merge(read(committed), records)
    if not records:
        hint = "Name at least one run folder, as in: diffvit compare runs/a runs/b"
        raise ConfigError("compare", "no runs given", hint)
    if out is None:
        if not folders:
            raise ConfigError("compare", "no folder to write to", "Name one with --out.")
        names = "-".join(folder.name for folder in folders)
        out = folders[0].parent / f"compare-{names[:80]}"
    return _write_comparison(records, Path(out))


def run_report(run: RunDir | Path | str) -> Path:
    """Write curves.png and report.html into one run's folder; returns the path of report.html."""
    record = read_run(run)
    assert record.folder is not None
    grouped = arms([record])
    page = _page(grouped, pictures_of(grouped), f"{grouped[0].label}: {record.row['run']}")
    write_file(record.folder / "curves.png", plots.curves(grouped))
    return write_file(record.folder / "report.html", page.encode())


def _write_comparison(records: Sequence[RunRecord], out: Path) -> Report:
    stamp = write(out, records)
    grouped = arms(records)
    pictures = pictures_of(grouped, stamp)
    write_file(out / "curves.png", plots.curves(grouped, stamp=stamp))
    links = [("curves.png", "Loss and accuracy")]
    for picture in (*pictures["lambdas"], *pictures["class_pictures"]):
        write_file(out / picture.file, picture.light)
        links.append((picture.file, picture.alt))
    title = " and ".join(arm.label for arm in grouped)
    if len(title) > 60:
        title = f"{len(grouped)} arms compared"
    write_file(out / "report.md", texts.report(grouped, title, links).encode())
    write_file(out / "report.html", _page(grouped, pictures, title).encode())
    return Report(out / "report.html", [record.row for record in records], out, tables.side_by_side(grouped))


def pictures_of(grouped: Sequence[Arm], stamp: str = "") -> dict[str, list[Picture]]:
    """The plots of a report: ``curves``, ``lambdas`` and ``class_pictures``; ``stamp`` is kept inside the files."""

    def draw(file: str, alt: str, plot: Callable[..., bytes]) -> Picture:
        return Picture(f"{file}.png", alt, plot(theme=LIGHT), plot(theme=DARK))

    names = ", ".join(arm.label for arm in grouped)
    curves = [
        draw(name, f"{name.capitalize()} against the epoch: {names}", partial(plots.curve, name, grouped))
        for name in ("loss", "accuracy")
    ]
    lambdas: list[Picture] = []
    classes: list[Picture] = []
    evaluated = [arm for arm in grouped if arm.confusion][:_MOST_PICTURES]
    if evaluated and len(evaluated[0].classes) <= 40 and all(arm.classes == evaluated[0].classes for arm in evaluated):
        alt = f"Accuracy of each class: {', '.join(arm.label for arm in evaluated)}"
        classes.append(draw("classes", alt, partial(plots.per_class, evaluated, stamp=stamp)))
    for index, arm in enumerate(grouped):
        suffix = f"-{index + 1}" if len(grouped) > 1 else ""
        if any(row.get("lambda") for row in arm.records[0].epochs) and len(lambdas) < _MOST_PICTURES:
            alt = f"Lambda of every block against the epoch: {arm.label}"
            lambdas.append(draw(f"lambda{suffix}", alt, partial(plots.lambdas, arm, stamp=stamp)))
        if arm in evaluated:
            plot = partial(plots.confusion, arm, stamp=stamp)
            classes.append(draw(f"confusion{suffix}", f"Confusion matrix: {arm.label}", plot))
    return {"curves": curves, "lambdas": lambdas, "class_pictures": classes}


def _page(grouped: Sequence[Arm], pictures: dict[str, list[Picture]], title: str) -> str:
    records = [record for arm in grouped for record in arm.records]
    runs = ", ".join(str(record.row["run"]) for record in records)
    return texts.render(
        "reporting/report.html",
        title=title,
        subtitle=f"diffvit {__version__}, {len(records)} run{'s' if len(records) > 1 else ''}: {runs}",
        data=tables.data_notes(record.row for record in records),
        statements=texts.statements(grouped),
        many=len(grouped) > 1,
        figures=tables.side_by_side(grouped),
        figure_notes=tables.FIGURE_NOTES,
        **pictures,
        classes=tables.class_table(grouped),
        differing=tables.difference_table(grouped),
        commands=[(arm.label, tables.command(arm)) for arm in grouped],
    )
