"""Published accuracies of published weights, from ``published.json``, and how a measured one compares."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from diffvit.clip.labelled import CIFAR10, Labelled
from diffvit.data.cifar10 import CLASSES

NEAR = 0.003  # of an accuracy, within which it is as published


@cache
def table() -> dict[str, Any]:
    """``models`` (accuracies by set, and their ``source``), ``sets`` (name, images, classes) and ``sources``."""
    return json.loads(resources.files("diffvit.clip").joinpath("published.json").read_bytes())


def set_of(labelled: Labelled) -> str | None:
    """Which published test set these images are, by the classes and their number; None for any other, or a part of one.

    ImageNet's sets are told apart by their numbers of classes and images, and have folders named by WordNet ids.
    """
    images, classes = len(labelled), len(labelled.classes)
    if labelled.wordnet_ids is None:
        known = images == table()["sets"][CIFAR10]["images"] and sorted(labelled.classes) == sorted(CLASSES)
        return CIFAR10 if known and all(place.startswith("test/") for place in labelled.places) else None
    sets = table()["sets"].items()
    return next((name for name, each in sets if (each["images"], each["classes"]) == (images, classes)), None)


def expected(model: str | None, name: str | None) -> dict[str, Any] | None:
    """The published accuracy of a model (``RN50/openai``, ``tv-v2``) on a set; None where there is none."""
    figures = table()["models"].get(model, {})
    if name not in figures:
        return None
    source, of = table()["sources"][figures["source"]], table()["sets"][name]["name"]
    return {"accuracy": figures[name], "source": source, "set": of}


def beside(model: str | None, labelled: Labelled, accuracy: float | None) -> dict[str, Any] | None:
    """What is published of a model on these images, and whether ``accuracy`` is ``as_published``; None without that."""
    found = expected(model, set_of(labelled))
    if found is None or accuracy is None:
        return None
    difference = accuracy - found["accuracy"]
    return {**found, "difference": difference, "as_published": abs(difference) <= NEAR}
