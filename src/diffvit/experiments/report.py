"""A study's report: rows, tables, plots and Markdown, the same bytes from the rows alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffvit.config import to_yaml
from diffvit.errors import ConfigError, InputError
from diffvit.experiments import plots
from diffvit.experiments.results import (
    Line,
    Results,
    beside,
    difference,
    over_all_arms,
    records_of,
    results_of,
)
from diffvit.experiments.runner import numbers_in, scores_of
from diffvit.experiments.study import TIERS, Study, TierName, cells_of, differing
from diffvit.files import Row, brought_up_to_date, disk_faults, read_csv, write_csv
from diffvit.files import replace as write_atomically
from diffvit.registry import label_of
from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import points, span
from diffvit.reporting.rows import ROWS_FILE, RunRecord, content_hash, read, write
from diffvit.reporting.stats import Interval
from diffvit.reporting.style import stamp_of
from diffvit.reporting.tables import NONE, Table, big, duration, percent, threads

REPORT, BEST, _COSTS = "report.md", "best.yaml", "cost.png"
PLOTS = {
    "accuracy.png": "Test accuracy of every arm and seed",
    "curves.png": "Training loss and accuracy against the epoch, bands over seeds",
    _COSTS: "Test accuracy against the cost of training",
}
_DRAWN: Mapping[str, Callable[..., bytes]] = {
    "accuracy.png": plots.accuracies,
    "curves.png": plots.curves,
    _COSTS: plots.costs,
}


def gathered(study: Study, runs: Path, reports: Path, *, tier: str | None = None) -> Results:
    """What is known of a study, from finished runs and committed rows.

    Args:
        study: which.
        runs: where the run folders lie; there may be none.
        reports: where committed rows lie.
        tier: which; by default the largest whose every arm has a row, else the one with the most rows.

    Raises:
        InputError: nothing is known, or a run or rows.csv is damaged.
    """
    found = [each for name in TIERS if tier in (None, name) and (each := _of_tier(study, name, runs, reports))]
    if not found:
        raise _nothing_known(study)
    whole = [each for each in found if not each.missing]
    return whole[-1] if whole else max(found, key=lambda each: len(each.records))


def _nothing_known(study: Study) -> InputError:
    hint = f"Run it first: diffvit study run {study.name}"
    return InputError(f"study {study.name}", "has no finished run and no committed row", hint)


def _of_tier(study: Study, tier: TierName, runs: Path, reports: Path) -> Results | None:
    """With rows of before studies kept images for validation beside them, or alone where there are no others."""
    found = []
    for validation in (True, False):
        cells = cells_of(study, tier, validation=validation)
        if records := records_of(cells, runs, reports, study.score):
            found.append(results_of(study, tier, cells, records))
    return beside(found) if found else None


def write_report(results: Results, reports: Path) -> Path:
    """Write rows.csv, epochs.csv, report.md, best.yaml and the plots; the path of report.md.

    What is as it should be is not touched: a plot that was made from these very rows stays, byte for byte. Rows of the
    study's other tiers stay too.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    folder = reports / results.study.name
    records = [record for each in (results, *results.others) for record in each.records]
    lines = [line for each in (results, *results.others) for line in each.lines]
    write_tables(folder, results.study.score, [(line.arm, each) for line in lines for each in line.records.values()])
    # Last the committed rows of other tiers, and of cells that the study no longer has.
    known = {record.key for record in records}
    stamp = write(folder, [*records, *(record for record in read(folder) if record.key not in known)])
    why = "is not made from the rows beside it"
    brought_up_to_date({folder / name: (text.encode(), why) for name, text in texts_of(results).items()}, check=False)
    for name, (wished, draw) in plots_of(results, stamp).items():
        if stamp_of(folder / name) != wished:
            with disk_faults(folder / name):
                write_atomically(folder / name, draw())
    assert stamp == content_hash(folder)
    return folder / REPORT


def write_rows(study: Study, runs: Path, reports: Path, *, tier: TierName = "short") -> Path:
    """Write rows.csv, epochs.csv and the score's tables of a study without a report of its own; the path of rows.csv.

    What is committed stays as it is; a cell that has no row gets that of its finished run.

    Raises:
        InputError: nothing is known, or a run or a file of rows is damaged.
        ConfigError: the rows that are there are of another tier.
        EnvironmentFault: the disk refuses.
    """
    folder, cells = reports / study.name, cells_of(study, tier)
    committed, found = read(folder), records_of(cells, runs, reports, study.score)
    if not found:
        raise _nothing_known(study)
    known = {record.key[:2] for record in committed}
    new = [(cell.arm, found[cell.name][0]) for cell in cells if cell.name in found and cell.key not in known]
    if new and known - {cell.key for cell in cells}:
        raise ConfigError("--tier", f"{folder} has rows of other cells than tier {tier} has", "Give another --reports.")
    write_tables(folder, study.score, new)
    write(folder, [*committed, *(record for _, record in new)])  # last: it says that these cells are done
    return folder / ROWS_FILE


def write_tables(folder: Path, score: str, records: Sequence[tuple[str, RunRecord]]) -> None:
    """Put the tables of a score into ``TABLE.csv``, with the arm, config hash and seed before each row.

    Rows that are there stay, but for those of the same config and seed.

    Args:
        folder: of the report.
        score: the study's.
        records: arm and record of finished runs; committed ones, which have no run folder, are passed over.
    """
    tables: dict[str, list[Row]] = {}
    for arm, record in records:
        scores = (scores_of(record.folder, score) if record.folder else None) or {}
        key = {"arm": arm, "config_hash": record.key[0], "seed": record.key[1]}
        for name in (name for name in scores if name not in numbers_in(scores)):
            tables.setdefault(name, []).extend(key | row for row in scores[name])
    for name, rows in tables.items():
        path, replaced = folder / f"{name}.csv", {(row["config_hash"], row["seed"]) for row in rows}
        before = read_csv(path) if path.is_file() else []
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_csv(path, [*(row for row in before if (row["config_hash"], row["seed"]) not in replaced), *rows])


def texts_of(results: Results) -> dict[str, str]:
    """The report and the best configuration, by file name."""
    return {REPORT: report(results), BEST: to_yaml(results.best().config)}


def plots_of(results: Results, rows: str) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """The stamp of each plot and what draws it as PNG, by file name.

    A stamp says what a plot was made from: ``rows``, the digest of the rows; costs from the operations counted, too.
    """
    told = " ".join([rows, *(f"{line.flops:.0f}" for line in results.lines)])
    stamps = dict.fromkeys(_DRAWN, rows) | {_COSTS: hashlib.sha256(told.encode()).hexdigest()}
    return {name: (stamps[name], partial(draw, results, stamp=stamps[name])) for name, draw in _DRAWN.items()}


def report(results: Results) -> str:
    """The whole report as Markdown."""
    return template("report.md.j2").render(results=results, tier=TIERS[results.tier], plots=PLOTS) + "\n"


def answers(results: Results) -> list[str]:
    """What the rows allow to say, a paragraph each, as Markdown."""
    return _paragraphs(template("answers.md.j2").module.answers(results))


def template(name: str) -> Any:
    """A Jinja2 template beside this file, with the functions that these reports are made with."""
    loader = PackageLoader("diffvit.experiments", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=False, lstrip_blocks=True)
    environment.globals |= {
        "accuracy": accuracy,
        "arms": arms,
        "attentions_compared": _attentions_compared,
        "circumstances": _circumstances,
        "data_lines": _data_lines,
        "every_pair": _every_pair,
        "fit_gaps": _fit_gaps,
        "markdown_table": markdown.table,
        "paragraphs": _paragraphs,
        "percent": percent,
        "points": points,
        "rankings": _rankings,
        "score_table": _score_table,
        "span": span,
        "table": table,
    }
    return environment.get_template(name)


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def table(results: Results) -> Table:
    """A row per line."""
    validated = results.chosen_on == "validation"
    columns = ["", "Test accuracy", *(["Validation"] if validated else []), "Difference", "Training accuracy"]
    columns += ["Parameters", "FLOPs", "Training time", "Seeds"]
    firsts: dict[str, Line] = {}
    rows = []
    for line in results.lines:
        against = firsts.setdefault(line.attention, line) if results.study.attentions else results.lines[0]
        gap = difference(line, against) if line is not against else None
        rows.append(
            [
                *(line.label, accuracy(line), *([percent(line.validation)] if validated else [])),
                f"{100 * gap.estimate:+z.2f} ({span(gap)})" if gap else NONE,
                *(percent(line.last_training_accuracy, 1), f"{line.mean_of('parameters'):,.0f}", big(line.flops)),
                *(duration(line.mean_of("train_seconds")), f"{len(line.records)}"),
            ]
        )
    return Table(columns, rows)


def arms(results: Results) -> Table:
    """The settings that are not the same in all arms."""
    found = differing({line.arm: line.config for line in results.lines})
    keys = [key for key in next(iter(found.values())) if key != "model.attention" or not results.study.attentions]
    rows = [
        [arm, *(f"{each[key]:g}" if isinstance(each[key], float) else str(each[key]) for key in keys)]
        for arm, each in found.items()
    ]
    return Table(["", *(f"`{key}`" for key in keys)], rows)


def accuracy(line: Line) -> str:
    """Mean and standard deviation of the test accuracy."""
    spread = stats.std(list(line.accuracies.values()))
    return percent(line.mean) + (f" ± {100 * spread:.2f}" if spread is not None else "")


def _score_table(results: Results) -> Table | None:
    """The numbers of a score that is not the test accuracy; None where it is."""
    names = list(dict.fromkeys(name for line in results.lines for name in line.scores))
    rows = []
    for line in results.lines:
        spreads = {name: stats.std(values) for name, values in line.scores.items()}
        cells = {
            name: f"{stats.mean(values):.4g}" + ("" if spreads[name] is None else f" ± {spreads[name]:.2g}")
            for name, values in line.scores.items()
        }
        rows.append([line.label, *(cells.get(name, NONE) for name in names)])
    return Table(["", *names], rows) if names else None


def _data_lines(results: Results) -> list[str]:
    return markdown.data_lines(each.row for each in results.records)


def _rankings(results: Results) -> list[dict[str, Any]]:
    """The best arm of each attention, and which others it surely beats; no ``seeds`` where no winner may be named."""
    found = []
    for attention in (each for each in results.study.attentions if results.of(each)):
        lines = results.of(attention)
        best, ranked = results.best(lines), results.ranking(lines)
        gaps = [
            (line, ranked.between(lines.index(best), lines.index(line)))
            for line in lines
            if ranked and line is not best
        ]
        found.append(
            {
                "name": label_of(attention),
                "best": best,
                "seeds": len(ranked.seeds) if ranked else 0,
                "beaten": [(line, gap) for line, gap in gaps if gap.low > 0],
                "undecided": [(line, gap) for line, gap in gaps if gap.low <= 0],
            }
        )
    return found


def _attentions_compared(results: Results) -> list[dict[str, Any]]:
    """Each further attention minus the first, over all arms."""
    first, *others = results.study.attentions or ("",)
    found = [(each, over_all_arms(results, each, first)) for each in others]
    return [
        {
            "one": label_of(each),
            "two": label_of(first),
            "interval": interval,
            "of_several": len(others) > 1,
        }
        for each, interval in found
        if interval is not None
    ]


def _every_pair(results: Results) -> tuple[int, list[tuple[Line, Line, Interval]]]:
    """All pairs of arms where these are of one attention each; with seeds, or 0 where no winner may be named."""
    if results.study.attentions:
        return 0, []
    ranked = results.ranking(results.lines)
    pairs = []
    for (first, one), (second, two) in combinations(enumerate(results.lines), 2):
        gap = ranked.between(first, second) if ranked else difference(one, two)
        if gap is not None:
            pairs.append((one, two, gap))
    return len(ranked.seeds) if ranked else 0, pairs


def _fit_gaps(results: Results) -> list[tuple[float, Line]]:
    """Training minus test accuracy of each line, the largest first, where the study asks for it."""
    known = [(line.last_training_accuracy, line) for line in results.lines if results.study.fit]
    return sorted(((seen - line.mean, line) for seen, line in known if seen is not None), key=lambda each: -each[0])


def _circumstances(results: Results) -> str:
    """Hardware, versions and data, each kind once."""
    found = []
    for record in results.records:
        row = record.row
        parts = [row["hardware"], row["device"], threads(row), row["precision"], f"torch {row['torch']}"]
        parts += [f"diffvit {row['diffvit']}", f"python {row['python']}", f"{row['train_images']:,} training images"]
        found.append(", ".join(str(part) for part in parts if part))
    return "; ".join(dict.fromkeys(found)) + "."
