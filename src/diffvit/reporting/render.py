"""Reports from run folders: CSV rows, plots, Markdown, and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffvit import __version__
from diffvit.errors import ConfigError, InputError
from diffvit.files import disk_faults, replace
from diffvit.reporting import markdown, plots, tables
from diffvit.reporting.arms import Arm, arms, statements
from diffvit.reporting.rows import ROWS_FILE, Row, RunRecord, merge, read, read_run, write
from diffvit.reporting.style import DARK, LIGHT
from diffvit.training.run_dir import RunDir

_MOST_PICTURES = 6  # of a kind in one report, so that a study of thirty runs stays readable


@dataclass(frozen=True)
class Report:
    """Where a report went.

    Args:
        path: the self-contained report.html.
        rows: one dict per run, as in rows.csv.
        folder: the folder with rows.csv, epochs.csv, report.md, the plots and report.html.
    """

    path: Path
    rows: list[Row]
    folder: Path


@dataclass(frozen=True)
class _Picture:
    file: str
    alt: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class _Pictures:
    curves: list[_Picture]
    lambdas: list[_Picture]
    classes: list[_Picture]


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
        raise ConfigError(
            "compare", "no runs given", "Name at least one run folder, as in: diffvit compare runs/a runs/b"
        )
    if out is None:
        if not folders:
            raise ConfigError("compare", "no folder to write to", "Name one with --out.")
        names = "-".join(folder.name for folder in folders)
        out = folders[0].parent / f"compare-{names[:80]}"
    with disk_faults(f"report {out}"):
        return _write_comparison(records, Path(out))


def run_report(run: RunDir | Path | str) -> Path:
    """Write curves.png and report.html into one run's folder; returns the path of report.html.

    Raises:
        InputError: the run is missing, damaged or not finished.
        EnvironmentFault: the report cannot be written.
    """
    record = read_run(run)
    assert record.folder is not None
    grouped = arms([record])
    path = record.folder / "report.html"
    page = _page(grouped, _draw(grouped, ""), f"{grouped[0].label}: {record.row['run']}")
    with disk_faults(f"report {path}"):
        replace(record.folder / "curves.png", plots.curves(grouped))
        replace(path, page.encode())
    return path


def _write_comparison(records: Sequence[RunRecord], out: Path) -> Report:
    stamp = write(out, records)
    grouped = arms(records)
    pictures = _draw(grouped, stamp)
    replace(out / "curves.png", plots.curves(grouped, stamp=stamp))
    for picture in (*pictures.lambdas, *pictures.classes):
        replace(out / picture.file, picture.light)
    title = " and ".join(arm.label for arm in grouped)
    if len(title) > 60:
        title = f"{len(grouped)} arms compared"
    links = [("curves.png", "Loss and accuracy"), *((p.file, p.alt) for p in (*pictures.lambdas, *pictures.classes))]
    replace(out / "report.md", markdown.report(grouped, title, links).encode())
    page = _page(grouped, pictures, title)
    replace(out / "report.html", page.encode())
    return Report(out / "report.html", [record.row for record in records], out)


def _draw(grouped: Sequence[Arm], stamp: str) -> _Pictures:
    """Every picture of a report, on white and on dark."""
    names = ", ".join(arm.label for arm in grouped)
    curves = [
        _both("loss.png", f"Loss against the epoch: {names}", lambda theme: plots.loss(grouped, theme=theme)),
        _both(
            "accuracy.png", f"Accuracy against the epoch: {names}", lambda theme: plots.accuracy(grouped, theme=theme)
        ),
    ]
    lambdas: list[_Picture] = []
    confusions: list[_Picture] = []
    for index, arm in enumerate(grouped):
        suffix = "" if len(grouped) == 1 else f"-{index + 1}"
        if _has_lambdas(arm) and len(lambdas) < _MOST_PICTURES:
            draw = partial(plots.lambdas, arm, stamp=stamp)
            lambdas.append(_both(f"lambda{suffix}.png", f"Lambda of every block against the epoch: {arm.label}", draw))
        if arm.confusion and len(confusions) < _MOST_PICTURES:
            draw = partial(plots.confusion, arm, stamp=stamp)
            confusions.append(_both(f"confusion{suffix}.png", f"Confusion matrix: {arm.label}", draw))
    return _Pictures(curves, lambdas, [*_class_bars(grouped, stamp), *confusions])


def _has_lambdas(arm: Arm) -> bool:
    return any(row.get("lambda") for row in arm.records[0].epochs)


def _class_bars(grouped: Sequence[Arm], stamp: str) -> list[_Picture]:
    kept = [arm for arm in grouped if arm.confusion][:_MOST_PICTURES]
    if not kept or len(kept[0].classes) > 40 or any(arm.classes != kept[0].classes for arm in kept):
        return []
    alt = f"Accuracy of each class: {', '.join(arm.label for arm in kept)}"
    return [_both("classes.png", alt, partial(plots.per_class, kept, stamp=stamp))]


def _both(file: str, alt: str, draw: Callable[..., bytes]) -> _Picture:
    return _Picture(file, alt, draw(theme=LIGHT), draw(theme=DARK))


def _page(grouped: Sequence[Arm], pictures: _Pictures, title: str) -> str:
    records = [record for arm in grouped for record in arm.records]
    runs = ", ".join(str(record.row["run"]) for record in records)
    environment = Environment(
        loader=PackageLoader("diffvit.reporting", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        title=title,
        subtitle=f"diffvit {__version__}, {len(records)} run{'s' if len(records) > 1 else ''}: {runs}",
        data=tables.data_notes(record.row for record in records),
        statements=statements(grouped),
        many=len(grouped) > 1,
        figures=tables.side_by_side(grouped),
        figure_notes=tables.FIGURE_NOTES,
        curves=_inline(pictures.curves),
        lambdas=_inline(pictures.lambdas),
        class_pictures=_inline(pictures.classes),
        classes=tables.class_table(grouped),
        differing=tables.difference_table(grouped),
        commands=[(arm.label, tables.command(arm)) for arm in grouped],
    )


def _inline(pictures: Sequence[_Picture]) -> list[dict[str, str]]:
    def encode(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return [{"alt": each.alt, "light": encode(each.light), "dark": encode(each.dark)} for each in pictures]
