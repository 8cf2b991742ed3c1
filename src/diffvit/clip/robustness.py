"""Accuracy on ImageNet-V2, -A, -R, -Sketch and ObjectNet against accuracy on ImageNet, as numbers and as a picture.

As in Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image Classification" (arXiv
2007.00644): for a set with some of ImageNet's classes both accuracies are among those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffvit.clip.evaluate import Evaluation, Watch, evaluate, predictions_of, share
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import Labelled, imagenet_groups, named_folders, open_labelled
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.published import part_of, points, set_of, table
from diffvit.clip.templates import Templates
from diffvit.data.layout import class_folders
from diffvit.errors import ConfigError, InputError, few
from diffvit.files import to_csv, to_json
from diffvit.reporting.style import LIGHT, dress, figure, to_png

SETS = ("imagenet-v2", "imagenet-sketch", "imagenet-r", "imagenet-a", "objectnet")
_DEPTH = 2  # of folders in a folder of sets: objectnet-1.0/images
_COLUMNS = 3
_GREY = 6  # place in a theme's series


def find_sets(root: Path, imagenet: Labelled) -> tuple[dict[str, Labelled], list[str]]:
    """Which of :data:`SETS` a folder is, or holds up to two folders deep; known by content, as ``part_of`` says.

    Returns the sets by name, and in words the folders of ImageNet's classes that are none of them.

    Raises:
        InputError: no folder, no set in it, two folders that are the same set, a class without images, or an
            ``imagenet`` whose folders are not ImageNet's or lack classes of a set.
    """
    if not root.is_dir():
        raise InputError(str(root), "is not a folder" if root.exists() else "no such folder", "It holds the sets.")
    found: dict[str, Labelled] = {}
    unknown: list[str] = []
    for folder in _candidates(root, _DEPTH):
        labelled = open_labelled(folder)
        name = part_of(labelled)
        if name not in SETS:
            unknown.append(f"{folder}, {len(labelled):,} images of {len(labelled.classes):,} classes")
        elif name in found:
            raise InputError(str(folder), f"is {_title(name)}, and so is another folder", "Take one of them away.")
        else:
            found[name] = labelled
    if not found:
        why = f"holds none of {', '.join(map(_title, SETS))} (found {few(unknown) or 'no folders of their classes'})"
        raise InputError(str(root), why, "A set is known by the folders of all its classes.")
    for name, labelled in found.items():
        wanted = set(_homes(labelled))
        if lacking := sorted(wanted - set(imagenet.wordnet_ids or ())):
            why = f"lacks {len(lacking):,} of the {len(wanted):,} classes of {_title(name)} ({few(lacking)})"
            raise InputError(imagenet.name, why, "Give ImageNet's validation set, a folder for each WordNet id.")
    return {name: found[name] for name in SETS if name in found}, unknown


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    """Folders whose own folders are named as ImageNet's classes; not its training set, which takes minutes to list."""
    inner = class_folders(folder)
    if named_folders(inner)[0]:
        yield folder
    elif depth:
        for name in inner:
            if not name.lower().startswith("train"):
                yield from _candidates(folder / name, depth - 1)


def _title(name: str) -> str:
    return table()["sets"][name]["name"]


def _homes(labelled: Labelled) -> dict[str, int]:
    """For each WordNet id of a set its class's place there."""
    order, (places, groups) = imagenet_wordnet_ids(), imagenet_groups(labelled)
    return {order[one]: label for label, group in zip(places, groups, strict=True) for one in group}


def robustness(
    clip: Clip,
    supervised: Supervised | None,
    imagenet: Labelled,
    sets: Mapping[str, Labelled],
    templates: Templates,
    *,
    watch: Watch | None = None,
) -> tuple[dict[str, Any], list[InputError]]:
    """Evaluate CLIP zero-shot and a model of ImageNet's 1000 classes on ImageNet and on sets of :func:`find_sets`.

    Returns the figures and the errors of unreadable images. A set's models have also ``imagenet``, the accuracy of
    the set's classifier on ImageNet's images of the set's classes, from the features that are there; ``points`` of
    :func:`diffvit.clip.published.points` are given where the set and ImageNet are whole.

    Raises:
        ConfigError: the supervised model has other classes.
        InputError: no image of a set, or of its classes, can be read, or a model's features are not finite.
    """
    if supervised is not None and supervised.classes is not None:
        raise ConfigError("--supervised", f"{supervised.version} has other classes than ImageNet's 1000")
    faults: list[InputError] = []
    warnings: dict[str, None] = {}  # each once

    def evaluated(labelled: Labelled, name: str) -> Evaluation:
        told = None if watch is None else lambda what, watch=watch: watch(f"{name}: {what}")
        found = evaluate(clip, labelled, [templates], supervised=supervised, watch=told)
        faults.extend(found.faults)
        warnings.update(dict.fromkeys(found.warnings))
        return found

    base, rows = evaluated(imagenet, "ImageNet"), []
    whole = set_of(imagenet) == "imagenet"
    kept = ("data", "images", "unreadable", "models")
    for name, labelled in sets.items():
        found, of = evaluated(labelled, _title(name)), table()["sets"][name]["images"]
        for model, own in zip(found.result["models"], _on_imagenet(base, found), strict=True):
            model["imagenet"] = own
            if None in (model["accuracy"], own["accuracy"]):
                raise faults[0]
        compared = points(name) if whole and len(labelled) == of else []
        row = {"set": name, "name": _title(name), "of": of, "points": compared}
        rows.append(row | {key: found.result[key] for key in kept})
    about = {"whole": whole, **{key: base.result[key] for key in (*kept, "templates")}}
    result = {"imagenet": about, "sets": rows, "warnings": list(warnings)}
    return result | {"failed": [fault.line for fault in faults]}, faults


def _on_imagenet(base: Evaluation, found: Evaluation) -> list[dict[str, Any]]:
    """The accuracy of each of a set's classifiers on ImageNet's images of the set's classes."""
    homes = _homes(found.labelled)
    labels = torch.tensor([homes.get(wordnet_id, -1) for wordnet_id in base.labelled.wordnet_ids or ()])
    labels = labels[torch.tensor(base.labelled.labels)]
    kept = (labels >= 0) & base.found.predictions[0].readable
    shares = []
    for model, encoded in zip(found.models, base.found.encoded, strict=True):
        all_readable = torch.ones(int(kept.sum()), dtype=torch.bool)
        rank = predictions_of(model.probabilities(encoded.rows[kept]), labels[kept], all_readable).rank
        shares.append(share(int((rank == 0).sum()), len(rank)))
    return shares


def robustness_files(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The figures as JSON and CSV, published points too, and the picture."""
    rows: list[dict[str, Any]] = []
    for each in result["sets"]:
        for model in each["models"]:
            figures = {name: model[name] for name in ("model", "images", "accuracy", "low", "high")}
            figures |= {f"imagenet_{name}": value for name, value in model["imagenet"].items()}
            rows.append({"set": each["set"], **figures, "same_classes": True, "source": "measured"})
        for point in each["points"]:
            figures = {"model": point["model"], "accuracy": point["accuracy"], "imagenet_accuracy": point["imagenet"]}
            rows.append({"set": each["set"], **figures, "same_classes": point["matched"], "source": point["source"]})
    picture = to_png(robustness_picture(result["sets"]))
    return {"robustness.png": picture, "robustness.csv": to_csv(rows), "robustness.json": to_json(dict(result))}


def robustness_picture(sets: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy on each set against accuracy on ImageNet's images of its classes, with Wilson's 95% intervals.

    Published points are grey: CLIPs as triangles, others as circles, hollow where ImageNet's accuracy is over all 1,000
    classes.
    """
    columns = min(_COLUMNS, len(sets))
    lines = -(-len(sets) // columns)
    made = figure(LIGHT, max(4.2 * columns, 8.4), 1.6 + 4.2 * lines)
    panels = list(made.subplots(lines, columns, squeeze=False).flat)
    drawn: dict[str, Any] = {}  # for the legend
    for each, axes in zip(sets, panels, strict=False):
        part = f"\n{each['images']:,} of {each['of']:,} images" if each["images"] != each["of"] else ""
        dress(axes, LIGHT, title=each["name"] + part, x="accuracy on ImageNet, same classes", y="accuracy")
        ends: list[float] = []
        for shade, model in zip(LIGHT.series, each["models"], strict=False):
            (left, x, right), (low, y, high) = (
                [100 * of[name] for name in ("low", "accuracy", "high")] for of in (model["imagenet"], model)
            )
            bars = {"xerr": [[x - left], [right - x]], "yerr": [[y - low], [high - y]]}
            drawn[model["model"]] = axes.errorbar([x], [y], **bars, fmt="s", color=shade, zorder=3, clip_on=False)
            ends += [left, right, low, high]
        for point in each["points"]:
            x, y = 100 * point["imagenet"], 100 * point["accuracy"]
            kind, mark = ("CLIPs", "^") if point["zero_shot"] else ("supervised models", "o")
            over = "" if point["matched"] else ", ImageNet over all 1,000 classes"
            label = f"published {kind}{over} ({point['source']})"
            face = LIGHT.series[_GREY] if point["matched"] else "none"
            [drawn[label]] = axes.plot([x], [y], mark, mec=LIGHT.series[_GREY], mfc=face, ms=5, clip_on=False)
            ends += [x, y]
        span = max(0.0, min(ends) - 4), min(100.0, max(ends) + 4)
        [drawn["the same accuracy on both"]] = axes.plot(span, span, color=LIGHT.ink, lw=0.8, ls="--")
        axes.set(xlim=span, ylim=span, aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(PercentFormatter(decimals=0))
    for axes in panels[len(sets) :]:
        axes.set_visible(False)
    made.legend(drawn.values(), drawn, loc="outside lower left", frameon=False, labelcolor=LIGHT.ink)
    return made
