"""Scores of a model's saliency maps on a data set, against baselines without attention; tables, CSV files and plots.

:func:`score_maps` scores one set of images, :func:`write_scores` a model for ``diffvit attention --score``,
:func:`attribution_scores` a run of a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from diffvit.attention.attribute import METHODS, attribute, randomisation, randomised
from diffvit.attention.baselines import by_place, mask_scores, of_images
from diffvit.attention.capture import Record, captures, classes_of, depth_of, grid_of
from diffvit.attention.inputs import LoadedModel, labelled_images, load_model
from diffvit.attention.metrics import coverage, rank_correlation, removal, road, roc_auc, saco
from diffvit.attention.rollout import rollout
from diffvit.config import to_dict
from diffvit.data import sources
from diffvit.data.images import Images
from diffvit.errors import InputError
from diffvit.files import Row, to_csv, write_files
from diffvit.models.vit import VisionTransformer
from diffvit.reporting.style import LIGHT, colour, dress, figure, to_png
from diffvit.training.evaluate import config_of
from diffvit.training.run_dir import RunDir

# Test images in a study of attribution: at each level of clutter, for removal, and for the sanity test.
_ATTRIBUTED, _TAKEN_APART, _SANITY = 300, 100, 50
METRICS = {"pointing": "pointing game", "mass": "mass on the object", "iou": "IoU at half the mass"}
FIRST_MAP = ", A1 alone"  # suffix of a map's name: differential attention without the subtraction
BASELINES = ("uniform", "centre", "random")  # maps without attention
CLUTTER = (0.0, 0.3, 0.6, 0.9)  # levels at which maps are scored if the data is shapes
HARD_CLUTTER = (0.1, 0.3, 0.6)  # levels of a study of attribution, on shapes-hard
REMOVAL = 200  # images for deletion and insertion, at most
_LINES: dict[str, Any] = {name: ("--", "-.")[place // 5] for place, name in enumerate(METHODS) if name != "rollout"}
_LINES |= {"uniform": (0, (1, 2)), "centre": (0, (4, 2)), "random": (0, (1, 1))}


@dataclass(frozen=True)
class Scores:
    """Scores of a model's maps on one set of images.

    Args:
        rows: one per map: ``map``, ``pointing``, ``mass``, ``iou`` (None without masks), ``deletion``, ``insertion``
            (None where not asked for), ``images``, ``removal_images``; means over the images.
        curves: per map and share of patches: ``map``, ``share``, ``deletion``, ``insertion``; means over the images.
    """

    rows: list[Row]
    curves: list[Row]


def saliency_maps(
    model: nn.Module, images: Float[Tensor, "n 3 h w"], methods: Sequence[str] = ()
) -> dict[str, Float[Tensor, "n rows columns"]]:
    """Every map that is scored, by name: each layer's, averaged over its heads, and rollout.

    For differential attention these are of the effective map, and beside them those of the first map alone (``layer 2,
    A1 alone``), so that the effect of the subtraction is seen within one model; rollout by ``clamp`` and ``positive``.
    ``methods``, by their names, explain the predicted class; the method ``rollout`` is rollout by ``clamp``.
    """
    parts: dict[str, list[Tensor]] = {}
    for record in captures(model, images):
        for name, saliency in _of_record(record).items():
            parts.setdefault(name, []).append(saliency.float())
    for method in methods:
        if method not in parts:
            parts[method] = [attribute(model, images, method).float()]
    return {name: torch.cat(found) for name, found in parts.items()}


def _of_record(record: Record) -> dict[str, Tensor]:
    layers = range(len(record.layers))
    found = {f"layer {record.blocks[at]}": record.to_patches(at).mean(dim=1) for at in layers}
    found["rollout"] = rollout(record)
    if record.differential:
        for at in layers:
            found[f"layer {record.blocks[at]}{FIRST_MAP}"] = record.to_patches(at, "positive").mean(dim=1)
        found[f"rollout{FIRST_MAP}"] = rollout(record, sign="positive")
    return found


def score_maps(model: LoadedModel, images: Images, *, removal_images: int = 0, methods: Sequence[str] = ()) -> Scores:
    """Score all of :func:`saliency_maps` and :func:`by_place` on one set of images.

    Args:
        model: a classifier.
        images: with masks for the scores against the object; without, deletion and insertion alone.
        removal_images: how many of them, the first, are used for deletion and insertion; the costly part.
            Scored by them: the maps of the last layer, rollout, the methods and the baselines.
        methods: of :data:`diffvit.attention.attribute.METHODS`, scored too.

    Raises:
        InputError: deletion and insertion of a model without classes.
    """
    if removal_images and not model.classes:
        raise InputError(model.name, "is not a classifier: deletion and insertion need class probabilities")
    maps = saliency_maps(model.model, model.normalised(images.pixels), methods)
    grid = next(iter(maps.values())).shape[1:]
    maps |= by_place(len(images), (grid[0], grid[1]))
    few = min(removal_images, len(images))
    last = f"layer {depth_of(model.model) - 1}"
    removed = {last, last + FIRST_MAP, "rollout", f"rollout{FIRST_MAP}", *methods, "centre", "random"}
    rows: list[Row] = []
    curves: list[Row] = []
    for name, saliency in maps.items():
        row: Row = {"map": name, "pointing": None, "mass": None, "iou": None, "deletion": None, "insertion": None}
        row |= {"images": len(images), "removal_images": None}
        if images.masks is not None:
            row |= {key: float(found.mean()) for key, found in mask_scores(saliency, images.masks).items()}
        if few and name in removed:
            found = removal(model.model, model.normalised(images.pixels[:few]), saliency[:few])
            areas = {"deletion": found.deletion_area, "insertion": found.insertion_area}
            row |= {key: float(area.mean()) for key, area in areas.items()} | {"removal_images": few}
            means = (found.shares.tolist(), found.deletion.mean(0).tolist(), found.insertion.mean(0).tolist())
            points = zip(*means, strict=True)
            curves += [{"map": name, "share": at, "deletion": gone, "insertion": put} for at, gone, put in points]
        rows.append(row)
    return Scores(rows, curves)


def attribution_scores(run: RunDir) -> dict[str, list[Row]]:
    """What a study with ``score: attribution`` measures, for every method and baseline, to five digits.

    Three tables. ``methods``: ``weights`` (``trained``; ``random``: as before any training, on the run's own images
    alone), ``clutter``, ``map``, the scores against the masks, where the test images have some, and those of removal on
    the run's own images.
    ``agreement``: rank correlation of each two methods' maps (``map``, ``other``). ``sanity``: as
    :func:`diffvit.attention.attribute.randomisation`. All explain the class that the trained model predicts.

    Raises:
        InputError: the data is missing or damaged, or the model has no maps.
    """
    model = load_model(run.path)
    own = labelled_images(model)
    own = own.select(range(min(_ATTRIBUTED, len(own))))
    levels = _levels(model, own, _ATTRIBUTED, HARD_CLUTTER) or [(None, own)]
    pixels = [model.normalised(images.pixels) for _, images in levels]
    trained = model.model
    assert isinstance(trained, VisionTransformer)  # as every run's
    classes = [classes_of(trained, each.to(next(trained.parameters())), None).cpu() for each in pixels]
    *_, (_, untrained) = randomised(trained)
    tables: dict[str, list[Row]] = {"methods": [], "agreement": []}
    for weights, network in (("trained", trained), ("random", untrained)):
        for (clutter, images), shown, target in zip(levels, pixels, classes, strict=True):
            if network is untrained and images.name != own.name:
                continue
            maps = {method: attribute(network, shown, method, target).float() for method in METHODS}
            key: Row = {"weights": weights, "clutter": clutter}
            if images.name == own.name and network is trained:
                tables["agreement"] += [
                    {"map": one, "other": other, "correlation": float(rank_correlation(maps[one], maps[other]).mean())}
                    for one, other in combinations(METHODS, 2)
                ]
            grid = grid_of(network, shown)
            maps |= {**of_images(images, grid), **by_place(len(images), grid)} if network is trained else {}
            for name, saliency in maps.items():
                row = key | {"map": name, "images": len(images)}
                if images.masks is not None:
                    found = mask_scores(saliency, images.masks)
                    found |= {"auc": roc_auc(saliency, coverage(images.masks, grid))}
                    row |= {name: float(each.mean()) for name, each in found.items()}
                if images.name == own.name and network is trained and name in (*METHODS, "centre", "random"):
                    row |= _removed(network, shown[:_TAKEN_APART], saliency[:_TAKEN_APART])
                tables["methods"].append(row)
    tables["sanity"] = randomisation(trained, model.normalised(own.pixels[:_SANITY]))
    columns = list(dict.fromkeys(name for row in tables["methods"] for name in row))
    tables["methods"] = [{name: row.get(name) for name in columns} for row in tables["methods"]]
    return {name: [_rounded(row) for row in rows] for name, rows in tables.items()}


def _removed(model: nn.Module, images: Tensor, saliency: Tensor) -> Row:
    found, debiased = removal(model, images, saliency), road(model, images, saliency)
    areas = {"deletion": found.deletion_area, "insertion": found.insertion_area}
    scores = areas | {"road": debiased.score, "saco": saco(model, images, saliency)}
    return {name: float(each.mean()) for name, each in scores.items()} | {"removal_images": len(images)}


def _rounded(row: Row) -> Row:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}


def write_scores(
    model: LoadedModel,
    out: Path,
    *,
    count: int,
    split: str = "test",
    data: str | None = None,
    data_dir: Path | None = None,
    methods: Sequence[str] = (),
) -> tuple[list[Row], list[tuple[str, list[str], list[list[str]]]], list[Path]]:
    """Score every map of a model and write tables and plots; on shapes at several clutter levels.

    Args:
        model: a model of ours.
        out: folder for the files.
        count: images of each set, the first.
        split: of the model's own data.
        data: another source than its own.
        data_dir: where the data lies.
        methods: of attribution, scored beside the maps.

    Returns:
        A row for each map and set of images, as :class:`Scores`, with ``data`` and ``clutter``; tables to print, as
        (title, columns, rows); and the files: scores.csv, removal.csv and the plots.

    Raises:
        ConfigError: the model does not say which data it is for.
        InputError: the data is missing, damaged, or not the model's.
        EnvironmentFault: a file cannot be written.
    """
    own = labelled_images(model, split=split, data=data, data_dir=data_dir)
    own = own.select(range(min(count, len(own))))
    rows: list[Row] = []
    curves: list[Row] = []
    levels = _levels(model, own, count, data=data) if split == "test" else []  # the other levels are test images
    for clutter, images in levels or [(None, own)]:
        found = score_maps(model, images, removal_images=REMOVAL if images.name == own.name else 0, methods=methods)
        rows += [{"data": images.name, "clutter": clutter, **row} for row in found.rows]
        curves += [{"data": images.name, **row} for row in found.curves]
    files = {"scores.csv": to_csv(rows)}
    if any(row["clutter"] is not None for row in rows):
        files["scores.png"] = _plot_clutter(model, rows)
    if curves:
        files |= {"removal.csv": to_csv(curves), "removal.png": _plot_removal(model, curves, own)}
    return rows, _tables(rows), write_files(out, files)


def _levels(
    model: LoadedModel, own: Images, count: int, levels: Sequence[float] = CLUTTER, data: str | None = None
) -> list[tuple[float, Images]]:
    """Shapes at every level of clutter, the model's own among them; empty for other data."""
    config = config_of(model.reference, model.meta)
    source = data or (config.data if config else "")
    if own.masks is None or config is None or source not in ("auto", "shapes", "shapes-hard"):
        return []
    settings = to_dict(config.shapes)
    found = []
    for clutter in sorted({*levels, settings["clutter"]}):
        if clutter == settings["clutter"]:
            found.append((clutter, own))
            continue
        more = {**settings, "clutter": clutter, "test": count}
        source = "shapes" if source == "auto" else source
        images = sources.load(source, "test", data_dir=None, image_size=model.image_size or 32, shapes=more)
        found.append((clutter, images if images.classes == own.classes else replace(images, classes=own.classes)))
    return found


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    found = []
    for name in dict.fromkeys(str(row["data"]) for row in rows):
        mine = [row for row in rows if row["data"] == name]
        titles = {**METRICS, "deletion": "deletion area", "insertion": "insertion area"}
        keys = [key for key in titles if any(row[key] is not None for row in mine)]
        cells = [[str(row["map"]), *(_cell(row[key], key) for key in keys)] for row in mine]
        found.append((f"{name}, {mine[0]['images']:,} images", ["map", *(titles[key] for key in keys)], cells))
    return found


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if key in METRICS else f"{value:.3f}"


def _plot_clutter(model: LoadedModel, rows: Sequence[Row]) -> bytes:
    made = figure(LIGHT, 12.6, 5.0)
    panels: Sequence[Axes] = list(made.subplots(1, 3))
    names = dict.fromkeys(str(row["map"]) for row in rows if FIRST_MAP not in row["map"] and row["map"] != "random")
    for axes, (metric, text) in zip(panels, METRICS.items(), strict=True):
        for place, name in enumerate(names):
            points = [(row["clutter"], 100 * row[metric]) for row in rows if row["map"] == name]
            _line(axes, points, name, place)
        dress(axes, LIGHT, title=text[0].upper() + text[1:], x="clutter (share of the background)", y="")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_ylim(bottom=0)
    made.suptitle(f"Maps of {model.name} against the object's mask", x=0.01, ha="left", fontsize=13)
    _legend(made, panels[0])
    return to_png(made)


def _plot_removal(model: LoadedModel, curves: Sequence[Row], own: Images) -> bytes:
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
    title = f"{model.name} on {own.name}: probability of the class it gives the whole image"
    made.suptitle(title, x=0.01, ha="left", fontsize=13)
    _legend(made, panels[0])
    return to_png(made)


def _line(axes: Axes, points: Sequence[tuple[float, float]], name: str, place: int) -> None:
    faint = name in BASELINES
    shade = LIGHT.ink if faint else colour(LIGHT, place)
    label = f"{name}: no attention" if faint else name
    axes.plot(*zip(*points, strict=True), color=shade, lw=1.2 if faint else 2.2, ls=_LINES.get(name, "-"), label=label)


def _legend(made: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=10.5)
