"""The reports of studies and searches, from rows: tables, plots, the best configuration, and what may be said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from diffvit.config import to_yaml
from diffvit.errors import ConfigError, InputError
from diffvit.experiments import plots
from diffvit.experiments.results import (
    TRIALS_FILE,
    Line,
    Results,
    best_of,
    comparable,
    difference,
    over_all_arms,
    records_of,
    results_of,
    tuned,
)
from diffvit.experiments.runner import numbers_in, scores_of
from diffvit.experiments.search import CONDITIONS, cell_of, space_of
from diffvit.experiments.study import STUDIES, TIERS, Study, TierName, cells_of, differing, recipe_of, slug
from diffvit.files import Row, brought_up_to_date, read_csv, sha256_of, write_csv, write_file
from diffvit.registry import label_of
from diffvit.reporting import stats, texts
from diffvit.reporting.arms import span
from diffvit.reporting.rows import ROWS_FILE, RunRecord, merge, read, write
from diffvit.reporting.stats import Interval
from diffvit.reporting.style import stamp_of
from diffvit.reporting.tables import NONE, Table, big, duration, percent, threads

Files = dict[str, str | tuple[str, Callable[[], bytes]]]  # texts; of each plot its stamp and what draws it as PNG
REPORT, BEST, _COSTS = "report.md", "best.yaml", "cost.png"
_PLOTS: Mapping[str, tuple[str, Callable[..., bytes]]] = {
    "accuracy.png": ("Test accuracy of every arm and seed", plots.accuracies),
    "curves.png": ("Training loss and accuracy against the epoch, bands over seeds", plots.curves),
    _COSTS: ("Test accuracy against the cost of training", plots.costs),
}
SEARCH_PLOT = "settings.png"
_SHOWN = 5  # trials of each arm or attention in the table


def gathered(study: Study, runs: Path, reports: Path, *, tier: TierName | None = None) -> Results:
    """Results of a study, from finished runs and committed rows.

    By default of the largest tier whose every arm has a row, else of the one with the most rows.

    Raises:
        InputError: nothing is known, or a run or rows.csv is damaged.
    """
    found: list[Results] = []
    for name in TIERS if tier is None else (tier,):
        if (own := tuned(study, name, reports)) is None:
            continue
        # Rows of before studies kept images for validation stand beside the others, or alone where there are none.
        kinds = dict.fromkeys(cells_of(own, name, validation=validation) for validation in (True, False))
        known = {cells: records_of(cells, runs, reports, study.score) for cells in kinds}
        found += [results_of(own, name, known)] if any(known.values()) else []
    if not found:
        hint = f"Run it first: diffvit study run {study.name}"
        raise InputError(f"study {study.name}", "has no finished run and no committed row", hint)
    whole = [each for each in found if not each.missing]
    return whole[-1] if whole else max(found, key=lambda each: len(each.records))


def write_report(results: Results, reports: Path) -> Path:
    """Write rows.csv, epochs.csv, the score's tables, report.md, best.yaml and the plots; the path of report.md.

    A committed row keeps its place, and a run's row of the same key replaces it; rows of the study's other tiers stay.
    A plot that was made from these very rows stays, byte for byte. Of a study without a report only rows and tables are
    written, and the path is that of rows.csv.

    Raises:
        ConfigError: the study has no report, and the rows that are there are of another tier.
        EnvironmentFault: the disk refuses.
    """
    study, folder = results.study, reports / results.study.name
    every = (results, *results.others)
    committed, cells = read(folder), {cell.key for cell in cells_of(study, results.tier)}
    if not study.report and any(record.key[:2] not in cells for record in committed):
        why = f"{folder} has rows of other cells than tier {results.tier} has"
        raise ConfigError("--tier", why, "Give another --reports.")
    _write_tables(
        folder, study.score, [(line.arm, run) for each in every for line in each.lines for run in line.records]
    )
    stamp = write(folder, merge(committed, [record for each in every for record in each.records]))
    if not study.report:
        return folder / ROWS_FILE
    return _brought_up_to_date(folder, files_of(results, stamp))


def _write_tables(folder: Path, score: str, records: Sequence[tuple[str, RunRecord]]) -> None:
    """Put the tables of a score into ``TABLE.csv``, with the arm, config hash and seed before each row.

    Given are the arm and record of finished runs; committed ones, which have no run folder, are passed over. Rows of
    the same config and seed are replaced in their place, all others stay.
    """
    tables: dict[str, dict[tuple[str, int], list[Row]]] = {}
    for arm, record in records:
        scores = (scores_of(record.folder, score) if record.folder else None) or {}
        key = record.key[:2]
        for name in scores.keys() - numbers_in(scores).keys():
            own = {"arm": arm, "config_hash": key[0], "seed": key[1]}
            tables.setdefault(name, {})[key] = [own | row for row in scores[name]]
    for name, found in tables.items():
        path = folder / f"{name}.csv"
        rows: dict[tuple[str, int], list[Row]] = {}
        for row in read_csv(path) if path.is_file() else []:
            rows.setdefault((row["config_hash"], row["seed"]), []).append(row)
        write_csv(path, [row for each in (rows | found).values() for row in each])


def _brought_up_to_date(folder: Path, files: Files) -> Path:
    """Write the texts and plots that are not as they should be; the path of report.md."""
    for name, content in files.items():
        if isinstance(content, str):
            brought_up_to_date({folder / name: (content.encode(), "")}, check=False)
        elif stamp_of(folder / name) != content[0]:
            write_file(folder / name, content[1]())
    return folder / REPORT


def files_of(results: Results, rows: str) -> Files:
    """The report, the best configuration and the plots of a study.

    A stamp says what a plot was made from: ``rows``, the digest of the rows; costs from the operations counted, too.
    """
    files: Files = {REPORT: report(results), BEST: to_yaml(results.best().config)}
    told = " ".join([rows, *(f"{line.flops:.0f}" for line in results.lines)])
    stamps = dict.fromkeys(_PLOTS, rows) | {_COSTS: hashlib.sha256(told.encode()).hexdigest()}
    return files | {n: (stamps[n], partial(draw, results, stamp=stamps[n])) for n, (_, draw) in _PLOTS.items()}


def report(results: Results) -> str:
    """The whole report as Markdown."""
    return texts.render(
        "experiments/report.md",
        results=results,
        command_name=results.study.name + ("" if results.study.name in STUDIES else ".yaml"),
        tier=TIERS[results.tier],
        parts=[_part(each) for each in (results, *results.others)],
        arms=arms(results),
        fit_gaps=fit_gaps(results),
        best=results.best(),
        plots={name: alt for name, (alt, _) in _PLOTS.items()},
        accuracy=accuracy,
    )


def _part(results: Results) -> dict[str, Any]:
    """What the report says of rows of the same data, precision and hardware."""
    return {
        "results": results,
        "data_lines": texts.data_lines(each.row for each in results.records),
        "answers": answers(results),
        "table": table(results),
        "scores": score_table(results),
        "totals": totals(results),
        "circumstances": circumstances(results),
    }


def answers(results: Results) -> list[str]:
    """Conclusions that the rows support, a paragraph each, as Markdown."""
    seeds, pairs = every_pair(results)
    first, *others = results.study.attentions or ("",)
    compared = [(label_of(each), label_of(first), over_all_arms(results, each, first)) for each in others]
    text = texts.render(
        "experiments/answers.md",
        results=results,
        rankings=rankings(results),
        attentions=[each for each in compared if each[2] is not None],
        seeds=seeds,
        pairs=pairs,
        accuracy=accuracy,
    )
    return text.splitlines()


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
                *(duration(line.train_seconds), f"{len(line.records)}"),
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


def score_table(results: Results) -> Table | None:
    """The numbers of a score that is not the test accuracy; None where it is."""
    names = list(dict.fromkeys(name for line in results.lines for name in line.scores))

    def cell(values: list[float]) -> str:
        spread = stats.std(values)
        return f"{stats.mean(values):.4g}" + ("" if spread is None else f" ± {spread:.2g}")

    rows = [
        [line.label, *(cell(line.scores[name]) if name in line.scores else NONE for name in names)]
        for line in results.lines
    ]
    return Table(["", *names], rows) if names else None


def rankings(results: Results) -> list[dict[str, Any]]:
    """The best arm of each attention, and its lead over each other arm; no ``seeds`` where no winner may be named."""
    found = []
    for attention in (each for each in results.study.attentions if results.of(each)):
        lines = results.of(attention)
        best, ranked = results.best(lines), results.ranking(lines)
        gaps = [
            (line, ranked.between(lines.index(best), place))
            for place, line in enumerate(lines)
            if ranked and line is not best
        ]
        seeds = len(ranked.seeds) if ranked else 0
        found.append({"name": label_of(attention), "best": best, "seeds": seeds, "gaps": gaps})
    return found


def every_pair(results: Results) -> tuple[int, list[tuple[Line, Line, Interval]]]:
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


def fit_gaps(results: Results) -> list[tuple[float, Line]]:
    """Training minus test accuracy of each line, the largest first, where the study asks for it."""
    known = [(line.last_training_accuracy, line) for line in results.lines if results.study.fit]
    return sorted(((seen - line.mean, line) for seen, line in known if seen is not None), key=lambda each: -each[0])


def totals(results: Results) -> list[tuple[str, int, float]]:
    """Runs and training time in seconds of each attention, or of all arms where these have one each."""
    found: dict[str, list[float]] = {}
    for line in results.lines:
        name = label_of(line.attention) if results.study.attentions else "all arms"
        found.setdefault(name, []).extend(float(record.row["train_seconds"]) for record in line.records)
    return [(name, len(seconds), sum(seconds)) for name, seconds in found.items()]


def circumstances(results: Results) -> str:
    """Hardware, versions and data, each kind once."""
    found = []
    for row in (record.row for record in results.records):
        parts = [row["hardware"], row["device"], threads(row), row["precision"], f"torch {row['torch']}"]
        parts += [f"diffvit {row['diffvit']}", f"python {row['python']}", f"{row['train_images']:,} training images"]
        found.append(", ".join(str(part) for part in parts if part))
    return "; ".join(dict.fromkeys(found)) + "."


def write_search(study: Study, folder: Path, rows: Sequence[Row] | None = None) -> Path:
    """Write report.md, the best of each attention as YAML, and the plot; the path of report.md.

    They are made from trials.csv, into which ``rows``, where given, are put first in place of those of their tier.

    Raises:
        InputError: nothing was tried yet, or trials.csv is missing or damaged.
        EnvironmentFault: the disk refuses.
    """
    if rows is not None:
        if not rows:
            hint = f"Run it first: diffvit study run {study.name}"
            raise InputError(f"study {study.name}", "has tried nothing yet", hint)
        file = folder / TRIALS_FILE
        kept = [row for row in (read_csv(file) if file.is_file() else []) if row["tier"] != rows[0]["tier"]]
        write_csv(file, [*kept, *rows])
    return _brought_up_to_date(folder, search_files(study, folder))


def search_files(study: Study, folder: Path) -> Files:
    """The report of a search's trials, the best of each as YAML, and the plot, whose stamp is the digest of trials.csv.

    Of several tiers the largest is reported.

    Raises:
        InputError: trials.csv is missing or damaged.
    """
    file = folder / TRIALS_FILE
    rows = read_csv(file)
    largest = max((row["tier"] for row in rows), key=list(TIERS).index)
    ranked = comparable([row for row in rows if row["tier"] == largest])
    tier, settings, best = ranked[0]["tier"], list(space_of(study).settings), best_of(ranked)
    complete = sorted((row for row in ranked if row["state"] == "complete"), key=lambda row: -row["val_accuracy"])
    tables = {}
    for attention in study.searched:
        if any(row["attention"] == attention for row in ranked):
            shown = [row for row in complete if row["attention"] == attention][:_SHOWN]
            cells = [
                [row["trial"], percent(row["val_accuracy"]), *(short(row[name]) for name in settings)] for row in shown
            ]
            tables[attention if study.arms else label_of(attention)] = Table(
                ["Trial", "Validation accuracy", *settings], cells
            )
    text = texts.render(
        "experiments/search.md",
        study=study,
        tier=tier,
        rows=ranked,
        epochs=recipe_of(study, tier).epochs,
        complete=len(complete),
        conditions=", ".join(str(ranked[0][name]) for name in CONDITIONS if ranked[0].get(name)),
        apart=len(rows) - len(ranked),
        tables=tables,
        best=[_best_file(name) for name in best],
    )
    stamp = sha256_of(file)
    files: Files = {REPORT: text, SEARCH_PLOT: (stamp, partial(plots.settings, study, ranked, stamp=stamp))}
    for attention, row in best.items():
        cell = cell_of(study, tier, attention, row["trial"], {name: row[name] for name in settings})
        files[_best_file(attention)] = to_yaml(cell.config)
    return files


def _best_file(name: str) -> str:
    return f"best-{slug(name)}.yaml"


def short(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"
