"""Published accuracies: which set images are, and whether a measured accuracy is as published."""

from __future__ import annotations

from typing import Any

import pytest

from diffvit.clip import published
from diffvit.clip.labelled import Labelled
from diffvit.data.cifar10 import CLASSES
from diffvit.reporting.texts import render


def images(count: int, classes: int, *, ids: bool = True, place: str = "a/{}.png") -> Labelled:
    names = tuple(f"class {number}" for number in range(classes)) if ids else tuple(CLASSES[:classes])
    folders = tuple(f"n{number:08}" for number in range(classes)) if ids else None
    labels = tuple(number % classes for number in range(count))
    places = tuple(place.format(number) for number in range(count))
    return Labelled("a set", names, folders, labels, places, places, lambda _: pytest.fail("no image is read"))


def test_cifar10_is_known_by_its_test_images_and_all_classes() -> None:
    assert published.set_of(images(10_000, 10, ids=False, place="test/{}")) == "cifar10"
    assert published.set_of(images(10_000, 10, ids=False, place="train/{}")) is None
    assert published.set_of(images(10_000, 9, ids=False, place="test/{}")) is None


def test_every_figure_has_a_set_and_a_source_and_is_a_fraction() -> None:
    table = published.table()
    for figures in table["models"].values():
        others = ("source", "elsewhere", "imagenet top-5")
        of_sets = {name: value for name, value in figures.items() if name not in others}
        assert {name.removeprefix("imagenet on ") for name in of_sets} <= table["sets"].keys()
        assert all(0 <= value < 0.95 for value in of_sets.values())
        assert figures.get("elsewhere", "tv-v1") in table["models"]
        assert figures["source"] in table["sources"]


def test_a_figure_within_three_tenths_of_a_point_is_as_published() -> None:
    whole = images(50_000, 1000)
    for accuracy, near in ((0.5982, True), (0.6011, True), (0.5953, True), (0.6013, False), (0.5951, False)):
        found = published.beside("RN50/openai", whole, accuracy)
        assert found is not None
        assert found["as_published"] is near
        assert found["difference"] == pytest.approx(accuracy - 0.5982)
    assert published.beside("RN50/openai", images(10, 5), 0.5) is None
    assert published.beside("tv-v1", images(7_500, 1000), 0.5) is None
    of_same_weights = published.beside("tv-v1", images(10_000, 1000), 0.6333)
    assert of_same_weights is not None
    assert of_same_weights["as_published"]
    assert published.beside(None, whole, 0.5) is None
    assert published.beside("tv-v2", whole, None) is None


def test_the_verdict_is_a_line_of_its_own() -> None:
    figures: dict[str, Any] = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "top5": None, "calibration_error": 0.1}
    figures |= {"mean_confidence": 0.5, "images": 50_000, "computed": 5, "images_per_second": None}
    model: dict[str, Any] = {"model": "CLIP RN50", "parameters": 1, "dtype": "float32", "device": "cpu", "weights": "w"}
    model |= {**figures, "preprocessing": "p", "published": published.beside("RN50/openai", images(50_000, 1000), 0.5)}
    other = model | {"model": "ResNet-50", "published": published.beside("tv-v2", images(50_000, 1000), 0.8086)}
    result = {"data": "folder val", "images": 1, "unreadable": 0, "classes": ["a"], "models": [model, other]}
    more = {"templates": {"name": "single", "count": 1, "first": "{}"}, "labels_computed": 1, "left_out": []}
    for page, about in (
        ("evaluate", more | {"same_names": []}),
        ("compare", {"said": ["A sentence."], "no_superclasses": "none"}),
    ):
        lines = render(f"clip/pages/{page}.txt", **result, **about).splitlines()
        told = [line for line in lines if line.startswith("published")]
        assert len(told) == 2
        assert told[0].endswith("class names, interpolation")
        assert "-9.82 points" in told[0]
        assert told[1].endswith("as published")
