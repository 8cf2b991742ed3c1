"""``--score``: a model's maps scored on its own test images, as tables, CSV files and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diffvit.attention.scores import CHANCE, FIRST_MAP, METRICS, Row, Scores, score_maps
from diffvit.attention.subject import Subject, labelled_images
from diffvit.config import to_dict
from diffvit.data import sources
from diffvit.data.images import Images
from diffvit.files import disk_faults, write_csv
from diffvit.files import replace as write
from diffvit.reporting.style import LIGHT, colour, dress, figure, to_png
from diffvit.training.evaluate import config_of
from diffvit.training.load import load_with_meta

CLUTTER = (0.0, 0.3, 0.6, 0.9)  # at which maps are scored where the data is shapes
REMOVAL = 200  # images taken apart, at most
_FAINT = {"uniform": (0, (1, 2)), "centre": (0, (4, 2)), "random": (0, (1, 1))}


@dataclass(frozen=True)
class ScoreReport:
    """What scoring found and wrote.

    Args:
        rows: one per map and set of images, as :class:`diffvit.attention.scores.Scores`, with ``data`` and ``clutter``.
        tables: (title, columns, rows) to print.
        files: scores.csv, removal.csv and the plots.
    """

    rows: list[Row]
    tables: list[tuple[str, list[str], list[list[str]]]]
    files: list[Path]


def score_run(
    subject: Subject,
    reference: str,
    out: Path,
    *,
    count: int,
    split: str = "test",
    data: str | None = None,
    data_dir: Path | None = None,
) -> ScoreReport:
    """Score every map; on shapes at several clutter levels, whatever the model was trained at.

    Args:
        subject: the model.
        reference: the run it came from.
        out: folder for the files.
        count: images of each set, the first.
        split: of the model's own data.
        data: another source than its own.
        data_dir: where the data lies.

    Raises:
        ConfigError: the model does not say which data it is for.
        InputError: the data is missing, damaged, or not the model's.
        EnvironmentFault: a file cannot be written.
    """
    own = labelled_images(reference, split=split, data=data, data_dir=data_dir)
    own = own.select(range(min(count, len(own))))
    found: list[tuple[Images, float | None, Scores]] = []
    levels = _levels(reference, own, count, subject)
    for clutter, images in levels or [(None, own)]:
        removal = REMOVAL if images.name == own.name else 0
        found.append((images, clutter, score_maps(subject, images, removal_images=removal)))
    rows = [{"data": images.name, "clutter": clutter, **row} for images, clutter, part in found for row in part.rows]
    curves = [{"data": images.name, **row} for images, _, part in found for row in part.curves]
    return ScoreReport(rows, _tables(rows), _write(out, subject, rows, curves, own))


def _levels(reference: str, own: Images, count: int, subject: Subject) -> list[tuple[float, Images]]:
    """Shapes at every level of clutter, and at the model's own; empty for other data."""
    config = config_of(reference, load_with_meta(reference)[1])
    if own.masks is None or config is None or not own.name.startswith("shapes"):
        return []
    dials = to_dict(config.shapes)
    found = []
    for clutter in sorted({*CLUTTER, dials["clutter"]}):
        if clutter == dials["clutter"]:
            found.append((clutter, own))
            continue
        more = {**dials, "clutter": clutter, "test": count}
        images = sources.load("shapes", "test", data_dir=None, image_size=subject.side or 32, shapes=more)
        found.append((clutter, images if images.classes == own.classes else replace(images, classes=own.classes)))
    return found


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    found = []
    for name in dict.fromkeys(str(row["data"]) for row in rows):
        mine = [row for row in rows if row["data"] == name]
        keys = [*METRICS, "deletion", "insertion"]
        keys = [key for key in keys if any(row[key] is not None for row in mine)]
        titles = {**METRICS, "deletion": "deletion area", "insertion": "insertion area"}
        cells = [[str(row["map"]), *(_cell(row[key], key) for key in keys)] for row in mine]
        found.append((f"{name}, {mine[0]['images']:,} images", ["map", *(titles[key] for key in keys)], cells))
    return found


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if key in METRICS else f"{value:.3f}"


def _write(out: Path, subject: Subject, rows: list[Row], curves: list[Row], own: Images) -> list[Path]:
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "scores.csv", rows)
    files = [out / "scores.csv"]
    pictures = {}
    if any(row["clutter"] is not None for row in rows):
        pictures["scores.png"] = _against_clutter(subject, rows)
    if curves:
        write_csv(out / "removal.csv", curves)
        files.append(out / "removal.csv")
        pictures["removal.png"] = _removal(subject, curves, own)
    for name, content in pictures.items():
        with disk_faults(out / name):
            write(out / name, content)
        files.append(out / name)
    return files


def _shown(rows: Sequence[Row]) -> list[str]:
    """The maps that a plot has room for: no first map alone, no random numbers."""
    names = dict.fromkeys(str(row["map"]) for row in rows)
    return [name for name in names if FIRST_MAP not in name and name != "random"]


def _against_clutter(subject: Subject, rows: Sequence[Row]) -> bytes:
    made = figure(LIGHT, 12.6, 5.0)
    panels: Sequence[Axes] = list(made.subplots(1, 3))
    for axes, (metric, text) in zip(panels, METRICS.items(), strict=True):
        for place, name in enumerate(_shown(rows)):
            points = [(row["clutter"], 100 * row[metric]) for row in rows if row["map"] == name]
            _line(axes, points, name, place)
        dress(axes, LIGHT, title=text[0].upper() + text[1:], x="clutter (share of the background)", y="")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_ylim(bottom=0)
    made.suptitle(f"Where {subject.name} looks, against the object's true mask", x=0.01, ha="left", fontsize=13)
    _legend(made, panels[0])
    return to_png(made)


def _removal(subject: Subject, curves: Sequence[Row], own: Images) -> bytes:
    made = figure(LIGHT, 11.6, 5.0)
    panels: Sequence[Axes] = list(made.subplots(1, 2))
    for axes, metric, verb, wish in zip(
        panels, ("deletion", "insertion"), ("taken away", "put in"), ("lower", "higher"), strict=True
    ):
        for place, name in enumerate(dict.fromkeys(str(row["map"]) for row in curves)):
            points = [(100 * row["share"], row[metric]) for row in curves if row["map"] == name]
            _line(axes, points, name, place)
        dress(axes, LIGHT, title=f"{metric.capitalize()} ({wish} is better)", x=f"patches {verb}", y="probability")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_ylim(0, 1)
    title = f"{subject.name} on {own.name}: probability of the class it gives the whole image"
    made.suptitle(title, x=0.01, ha="left", fontsize=13)
    _legend(made, panels[0])
    return to_png(made)


def _line(axes: Axes, points: Sequence[tuple[float, float]], name: str, place: int) -> None:
    faint = name in CHANCE
    shade = LIGHT.ink if faint else colour(LIGHT, place)
    label = f"{name}: no attention" if faint else name
    axes.plot(*zip(*points, strict=True), color=shade, lw=1.2 if faint else 2.2, ls=_FAINT.get(name, "-"), label=label)


def _legend(made: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=10.5)
