"""Published accuracies of published weights, from ``published.json``, and how a measured one compares."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from diffvit.clip.labelled import CIFAR10, OBJECTNET, Labelled, objectnet, subsets
from diffvit.clip.load import IMAGENET
from diffvit.data.cifar10 import CLASSES

NEAR = 0.003  # of an accuracy, within which it is as published


@cache
def table() -> dict[str, Any]:
    """``models`` (accuracies by set, and their ``source``), ``sets`` (name, images, classes) and ``sources``."""
    return json.loads(resources.files("diffvit.clip").joinpath("published.json").read_bytes())


def set_of(labelled: Labelled) -> str | None:
    """Which published test set these images are, by :func:`part_of` and their number; None for any other."""
    name = part_of(labelled)
    return name if name and len(labelled) == table()["sets"][name]["images"] else None


def part_of(labelled: Labelled) -> str | None:
    """Which published test set these images are, or a part with all of its classes; None for any other.

    ImageNet-A, -R and ObjectNet are known by their classes. Of the sets with all of ImageNet's classes, V2 is known by
    its folders ("0" to "999"), Sketch by its files ("sketch_12.JPEG"), and each by its number of images.
    """
    images, classes, ids = len(labelled), set(labelled.classes), set(labelled.wordnet_ids or ())
    if not ids:
        if classes == set(CLASSES) and all(place.startswith("test/") for place in labelled.places):
            return CIFAR10
        return OBJECTNET if classes == objectnet().keys() else None
    if name := next((name for name, wanted in subsets().items() if ids == wanted), None):
        return name
    if len(ids) < IMAGENET:
        return None
    if all(place.rpartition("/")[2].startswith("sketch_") for place in labelled.places):
        return "imagenet-sketch"
    if all(place.partition("/")[0].isdecimal() for place in labelled.places):
        return "imagenet-v2"
    known = {(each["images"], each["classes"]): name for name, each in table()["sets"].items()}
    found = known.get((images, len(ids)))
    validation = any("ILSVRC2012_val" in place for place in labelled.places)
    return None if validation and found != "imagenet" else found


def expected(model: str | None, name: str | None) -> dict[str, Any] | None:
    """The published accuracy of a model (``RN50/openai``, ``tv-v2``) on a set; None where there is none."""
    models = table()["models"]
    figures = models.get(model, {})
    if name not in figures:  # of the same weights under another name
        figures = models.get(figures.get("elsewhere"), {})
    if name not in figures:
        return None
    source, of = table()["sources"][figures["source"]], table()["sets"][name]["name"]
    return {"accuracy": figures[name], "source": source, "set": of}


def points(name: str) -> list[dict[str, Any]]:
    """Published accuracies on a set beside those on ImageNet: ``model``, ``accuracy``, ``imagenet``, ``source``.

    ``matched``: ``imagenet`` is over the set's classes alone, or those are all; ``zero_shot``: the model is a CLIP.
    """
    every = table()["sets"][name]["classes"] == IMAGENET
    found = []
    for model, figures in table()["models"].items():
        own = figures.get(f"imagenet on {name}")
        if name in figures and "imagenet" in figures:
            row = {"model": model, "accuracy": figures[name], "imagenet": figures["imagenet"] if own is None else own}
            row |= {"matched": every or own is not None, "zero_shot": "/" in model}
            found.append(row | {"source": table()["sources"][figures["source"]]})
    return found


def beside(model: str | None, labelled: Labelled, accuracy: float | None) -> dict[str, Any] | None:
    """What is published of a model on these images, and whether ``accuracy`` is ``as_published``; None without that."""
    found = expected(model, set_of(labelled))
    if found is None or accuracy is None:
        return None
    difference = accuracy - found["accuracy"]
    return {**found, "difference": difference, "as_published": abs(difference) <= NEAR}
