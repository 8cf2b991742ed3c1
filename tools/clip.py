"""CLIP's generated documents, from committed files alone.

The page docs/clip.md has five generated parts (the map of CIFAR-10, robustness sets, the small CLIP, a classifier of
ImageNet, published weights); the precision reports and the plot of names are whole files. ``python -m tools.clip RUN``
takes the names that a run of ``diffvit clip train`` tried into reports/clip-cifar10/names.csv.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.ticker import PercentFormatter

from diffvit.clip import precision_report
from diffvit.clip.compare_page import in_order, shift_statements, statements
from diffvit.clip.published import expected, table
from diffvit.errors import DiffvitError, InputError
from diffvit.files import Row, read_csv, write_csv
from diffvit.measuring import stamp
from diffvit.reporting import stats, tables
from diffvit.reporting.rows import read
from diffvit.reporting.style import LIGHT, dress, figure, to_png
from diffvit.training.run_dir import RunDir
from tools.pages import ROOT, Content, Picture, in_block, render

REPORTS = Path("reports")
PAGE, MAP = Path("docs/clip.md"), Path("src/diffvit/clip/cifar10_imagenet.json")
SMALL, PUBLISHED, PRECISION = (REPORTS / name for name in ("clip-cifar10", "clip-published", "clip-precision"))
CLASSIFIER = REPORTS / "clip-efficientnet"
# Folder of a comparison: what it is of, and beside which ResNet-50.
COMPARISONS = {
    "imagenet-tv-v2": ("ImageNet's validation pictures", "torchvision V2"),
    "imagenet-tv-v1": ("ImageNet's validation pictures", "torchvision V1"),
    "cifar10-tv-v2": ("CIFAR-10's test pictures, nine classes", "torchvision V2"),
}
# A name's kind, by whether a caption held it and how many of its tokens some caption held.
SEEN, KNOWN, PARTLY, UNKNOWN = KINDS = (
    "in captions",
    "new, of known words",
    "new, partly of known words",
    "new, of no known word",
)


def documents(root: Path) -> dict[Path, Content]:
    """The page's five parts, the precision reports, and the plots.

    Raises:
        InputError: a committed file is missing or damaged.
    """
    found: dict[Path, Content] = {}
    for folder in sorted((root / REPORTS).glob(f"{PRECISION.name}*")):
        result = precision_report.read(folder / precision_report.RESULT)
        place = REPORTS / folder.name
        found[place / precision_report.REPORT] = precision_report.report(result)
        found[place / precision_report.PLOT] = Picture(stamp(result), partial(precision_report.plot, result))
    page = root / PAGE
    blocks = {
        "cifar10-map": render("clip-map.md", map=_json(root / MAP, "python -m tools.wordnet")),
        "robustness-sets": render("clip-robustness-sets.md", sets=table()["sets"]),
        "small-clip": small_clip(root),
        "clip-classifier": classifier(root / CLASSIFIER),
        "clip-published": published(root / PUBLISHED),
    }
    text = _read(page, f"git checkout {PAGE}")
    for name, block in blocks.items():
        text = in_block(text, page, name, block.rstrip())
    names = root / SMALL / "names.csv"
    digest = hashlib.sha256(names.read_bytes()).hexdigest()
    picture = Picture(digest, partial(names_plot, read_csv(names), digest))
    return {**found, PAGE: text, SMALL / "names.png": picture}


def _read(path: Path, again: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error.__class__.__name__})", f"Run: {again}") from None


def _json(path: Path, again: str) -> dict[str, Any]:
    try:
        return json.loads(_read(path, again))
    except ValueError as error:
        raise InputError(str(path), f"cannot be read ({error.__class__.__name__})", f"Run: {again}") from None


# The small CLIP


def small_clip(root: Path) -> str:
    """The page's part on the small CLIP and its supervised twin."""
    folder = root / SMALL
    names = read_csv(folder / "names.csv")
    result = _json(folder / "compare" / "compare.json", "make clip-cifar10")
    own = {row["class"]: row["recall"] for row in names if row["name"] == row["class"]}
    unknown = [row for row in names if kind_of(row) == UNKNOWN]
    return render(
        "clip-small.md",
        runs=tables.markdown(_runs(folder)),
        names=tables.markdown(_names(names, own)),
        apart=100 * max(abs(row["recall"] - own[row["class"]]) for row in names if kind_of(row) != UNKNOWN),
        unknown=len(unknown),
        half=sum(row["recall"] < own[row["class"]] / 2 for row in unknown),
        shared=len(unknown) - len({(row["class"], row["recall"]) for row in unknown}),
        whole=result["overall"],
        statements=statements(result) + shift_statements(result),
    )


def kind_of(row: Mapping[str, Any]) -> str:
    """Which of :data:`KINDS` a name is."""
    if row["seen"]:
        return SEEN
    return KNOWN if row["known_tokens"] == 1 else PARTLY if row["known_tokens"] > 0 else UNKNOWN


def _runs(folder: Path) -> tables.Table:
    rows = []
    for row in (record.row for record in read(folder)):
        clip = row.get("zero_shot_accuracy") is not None
        name = f"CLIP ({row['run']})" if clip else f"its supervised twin ({row['run']})"
        cells = [tables.accuracy_cell([row]), tables.percent(row.get("unseen_names_accuracy"))]
        rows.append([name, *cells, f"{row['parameters']:,}", tables.duration(row["train_seconds"]), f"{row['epochs']}"])
    columns = ["", "Test accuracy", "With names in no caption", "Parameters", "Training time", "Epochs"]
    return tables.Table(columns, rows)


def _names(names: Sequence[Row], own: Mapping[str, float]) -> tables.Table:
    rows = []
    for kind in KINDS:
        if mine := [row for row in names if kind_of(row) == kind]:
            worst = min(mine, key=lambda row: row["recall"])
            means = [stats.mean([row["recall"] for row in mine]), stats.mean([own[row["class"]] for row in mine])]
            cells = [f"{len(mine)}", *(tables.percent(mean, 1) for mean in means)]
            rows.append([kind, *cells, f"{worst['name']}: {tables.percent(worst['recall'], 1)}"])
    return tables.Table(["Names", "How many", "Mean recall", "Of their classes' own names", "Lowest"], rows)


def names_plot(names: Sequence[Row], stamp: str = "") -> bytes:
    """Each name's recall, a line per class, a mark per kind of name, as PNG bytes."""
    classes = list(dict.fromkeys(row["class"] for row in names))
    made = figure(LIGHT, 9.0, 1.6 + 0.42 * len(classes))
    axes = made.add_subplot()
    dress(axes, LIGHT, title="Every name in its class's place", x="recall", y="", grid=False)
    for place, (kind, mark) in enumerate(zip(KINDS, "osD^", strict=True)):
        mine = [row for row in names if kind_of(row) == kind]
        heights = [classes.index(row["class"]) + 0.16 * (place - 1.5) for row in mine]
        across = [100 * row["recall"] for row in mine]
        axes.plot(across, heights, mark, color=LIGHT.series[place], ms=6, alpha=0.8, mew=0, label=kind)
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(axis="x", color=LIGHT.faint)
    made.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=LIGHT.ink, fontsize=9.5)
    return to_png(made, stamp)


def take_names(run: Path, folder: Path) -> None:
    """Write the names that a run of ``diffvit clip train`` tried as names.csv into a folder.

    Raises:
        InputError: it is no finished run of a CLIP.
    """
    path = RunDir.open(run).path / "evaluation.json"
    columns = ("class", "name", "seen", "known_tokens", "recall")
    try:
        tried = json.loads(path.read_bytes())["names"]
        write_csv(folder / "names.csv", [{name: row[name] for name in columns} for row in tried])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"has no names of a CLIP ({error.__class__.__name__})"
        raise InputError(str(path), why, "Give a finished run of diffvit clip train.") from None


# A classifier of ImageNet beside the small CLIP


def classifier(folder: Path) -> str:
    """The page's part on a trained classifier of ImageNet, on photographs and on CIFAR-10."""
    again = "make clip-efficientnet PHOTOS=folder WEIGHTS=file"
    photos, cifar = (_json(folder / name / "compare.json", again) for name in ("photos", "cifar10"))
    probes = _json(folder / "probe" / "evaluate.json", again)["linear_probe"]
    rows = []
    for result, classes in ((photos, "ImageNet's 1,000"), (cifar, "CIFAR-10's without deer")):
        for model in result["models"]:
            low, high = 100 * model["low"], 100 * model["high"]
            cells = [f"{tables.percent(model['accuracy'])} ({low:.1f} to {high:.1f})"]
            cells += [tables.percent(model[key], 1) for key in ("top5", "calibration_error", "mean_confidence")]
            rows.append([f"{result['images']:,} of {result['data']}", classes, model["model"], *cells])
    columns = ["Pictures", "Classes", "Model", "Accuracy", "Top-5", "Calibration error", "Mean confidence"]
    return render(
        "clip-classifier.md",
        accuracies=tables.markdown(tables.Table(columns, rows)),
        photos=photos,
        cifar=cifar,
        groups=sorted(photos["superclasses"], key=lambda row: -row["second"]),
        ends=sorted(cifar["per_class"], key=lambda row: -row["second"]),
        losses=tables.markdown(_losses(photos, cifar)),
        probes=probes,
        statements=statements(cifar),
        points=lambda value: tables.percent(value, 1),
        percent=tables.percent,
        best=lambda probe: max(each["accuracy"] for each in probe["searched"]),
    )


def _losses(photos: Mapping[str, Any], cifar: Mapping[str, Any]) -> tables.Table:
    """Points lost to each corruption, as means over its severities."""
    one, two = (model["model"] for model in cifar["models"])
    rows = []
    for kind in cifar["shifts"]["kinds"]:
        there = next(each for each in photos["shifts"]["kinds"] if each["shift"] == kind["shift"])
        lost = (
            photos["shifts"]["original"]["second"] - there["second"],
            *(cifar["shifts"]["original"][side] - kind[side] for side in ("second", "first")),
        )
        decided = ("second" if kind["low"] < 0 else "first") if kind["decided"] else ""
        more = {"": "not decided", "first": two, "second": one}[decided]
        rows.append([kind["shift"], *(f"{100 * each:.1f}" for each in lost), more])
    columns = ["Points lost to", f"{two}, photographs", f"{two}, CIFAR-10", f"{one}, CIFAR-10", "Loses more, CIFAR-10"]
    return tables.Table(columns, rows)


# Published weights


def published(folder: Path) -> str:
    """The page's part on published weights; figures that are not there are said to be missing."""
    again = "diffvit clip published IMAGENET"
    paths = {name: folder / name / "compare.json" for name in COMPARISONS}
    found = {name: _json(path, again) if path.is_file() else None for name, path in paths.items()}
    path = folder / "precision" / precision_report.RESULT
    measured = precision_report.read(path) if path.is_file() else None
    sides = []
    for name, result in found.items():
        if not result or not result["superclasses"]:
            continue
        rows = [row for row in in_order(result["superclasses"]) if row.get("decided")]
        (of, beside), weights = COMPARISONS[name], " and ".join(str(model["weights"]) for model in result["models"])
        best, worst = [row for row in rows if row["low"] > 0], [row for row in rows if row["high"] < 0][::-1]
        sides.append({"of": of, "beside": beside, "weights": weights, "best": best[:3], "worst": worst[:3]})
    return render(
        "clip-published.md",
        missing=measured is None or None in found.values(),
        sources=table()["sources"],
        some=any(found.values()),
        accuracies=tables.markdown(_accuracies(found)),
        sides=sides,
        most=_most,
        measured=measured,
        precisions=tables.markdown(precision_report.summary_table(measured)) if measured else "",
    )


def _most(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "in none that is decided"
    return "most in " + ", ".join(f"{row['superclass']} ({100 * row['difference']:+.1f})" for row in rows)


def _expected(figure: str) -> str:
    return f"expected {figure}" if figure else "none published"


def _accuracies(found: Mapping[str, Any]) -> tables.Table:
    rows = []
    for name, result in found.items():
        pictures, beside = name.split("-", 1)
        figures = [expected(model, pictures) for model in ("RN50/openai", beside)]
        clip, resnet = (each["accuracy"] if each else None for each in figures)
        top5 = table()["models"][beside].get(f"{pictures} top-5")
        cells = [_expected(tables.percent(each) if each else "") for each in (clip, resnet)]
        cells[0] += " (ten classes)" if pictures == "cifar10" else ""
        cells.append(_expected(f"{100 * (clip - resnet):+.2f}" if clip and resnet else ""))
        cells.append(_expected(f"the ResNet-50's {tables.percent(top5, 1)}" if top5 else ""))
        cells.append(_expected(f"80: {tables.percent(clip, 1)}" if clip else ""))
        if result:
            whole, models = result["overall"], result["models"]
            cells = [
                *(tables.percent(whole[side]) for side in ("first", "second")),
                f"{100 * whole['difference']:+.2f} ({100 * whole['low']:+.2f} to {100 * whole['high']:+.2f})",
                " and ".join(tables.percent(model["top5"], 1) for model in models),
                ", ".join(f"{each['count']}: {tables.percent(each['accuracy'], 1)}" for each in result["templates"]),
            ]
        rows.append([*COMPARISONS[name], *cells])
    columns = ["Pictures", "Beside", "CLIP RN50, zero-shot", "ResNet-50", "Difference, points", "Top-5", "Templates"]
    return tables.Table(columns, rows)


if __name__ == "__main__":
    try:
        take_names(Path(sys.argv[1]), ROOT / SMALL)
    except DiffvitError as error:
        sys.exit(f"error: {error.line}")
