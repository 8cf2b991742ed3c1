"""Probabilities and figures against float64 loops; two models beside each other, up to ``diffvit clip compare``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_folders import class_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from small_clip import small_clip
from torch import Tensor

from diffvit.cli.main import run
from diffvit.clip import evaluate as subject
from diffvit.clip import zero_shot
from diffvit.clip.encode import Encoder
from diffvit.clip.evaluate import (
    Model,
    Predictions,
    decided,
    gallery,
    outliers,
    paired,
    predict,
    predictions_of,
    sensitivity,
    summary,
    supervised_probabilities,
    under_shifts,
)
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import Labelled, superclasses, wordnet_names
from diffvit.clip.load import Clip
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.small.load import load_small
from diffvit.clip.templates import load_templates, twins
from diffvit.clip.zero_shot import Classifier, zero_shot_classifier, zero_shot_probabilities
from diffvit.data.cifar10 import CLASSES
from diffvit.data.shifts import shifts
from diffvit.errors import InputError
from diffvit.files import read_csv
from diffvit.reporting.stats import wilson
from diffvit.training.score import metrics_of

Captured = pytest.CaptureFixture[str]
UNREADABLE = 7
SIDE = 8
LOOK = Preprocessing(SIDE, SIDE, "bilinear", False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return small_clip()


def softmax(row: list[float]) -> list[float]:
    highest = max(row)
    raised = [math.exp(value - highest) for value in row]
    return [value / sum(raised) for value in raised]


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def classifier_of(weights: torch.Tensor, labels: tuple[str, ...]) -> Classifier:
    return Classifier(weights, labels, 0, twins(labels))


def test_zero_shot_probabilities_are_a_loops(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "PIECE", 3)
    rows, weights = unit(8, 32, 0), unit(5, 32, 1)
    weights[3] = weights[1]
    rows[4] = torch.nan
    found = zero_shot_probabilities(clip, classifier_of(weights, ("a", "b", "c", "b", "d")), rows)
    scale = math.exp(float(clip.model.logit_scale))  # pyright: ignore
    for place, row in enumerate(rows.double().tolist()):
        if place == 4:
            assert bool(found[4].isnan().all())
            continue
        cosines = [sum(x * y for x, y in zip(row, each, strict=True)) for each in weights.double().tolist()]
        expected = softmax([scale * cosine for cosine in cosines])
        assert found[place].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(found[:4, 1], found[:4, 3])


def test_supervised_probabilities_are_a_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PIECE", 3)
    logits = 5 * torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    logits[2] = torch.nan
    groups = [[3, 999, 17], [0], [500, 4]]
    found = supervised_probabilities(logits, groups)
    for place, row in enumerate(logits.double().tolist()):
        if place == 2:
            assert bool(found[2].isnan().all())
            continue
        chances = softmax([row[member] for group in groups for member in group])
        expected = [sum(chances[:3]), chances[3], sum(chances[4:])]
        assert found[place].tolist() == pytest.approx(expected, abs=1e-6)


def naive(row: list[float], label: int) -> tuple[list[int], int]:
    order = sorted(range(len(row)), key=lambda place: (-row[place], place))
    return order[:5], order.index(label)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_answers_are_a_loops_also_with_ties(data: st.DataObject) -> None:
    count, classes = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 9))
    levels = st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.5])  # few, so that many are equal
    table = data.draw(st.lists(st.lists(levels, min_size=classes, max_size=classes), min_size=count, max_size=count))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    readable = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    chances = torch.tensor(table).reshape(count, classes)
    chances[~torch.tensor(readable, dtype=torch.bool)] = torch.nan
    before = chances.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "PIECE", 4)
        found = predictions_of(
            chances, torch.tensor(labels, dtype=torch.int64), torch.tensor(readable, dtype=torch.bool)
        )
    assert torch.equal(chances.nan_to_num(9), before.nan_to_num(9))
    assert found.top.shape == found.probabilities.shape == (count, min(5, classes))
    for place, (row, label) in enumerate(zip(chances.tolist(), labels, strict=True)):
        if not readable[place]:
            assert found.top[place].tolist() == [-1] * min(5, classes)
            assert found.rank[place] == classes
            assert math.isnan(found.truth[place])
            continue
        top, rank = naive(row, label)
        assert (found.top[place].tolist(), int(found.rank[place])) == (top, rank)
        assert found.probabilities[place].tolist() == [row[each] for each in top]
        assert float(found.truth[place]) == row[label]
    figures = summary(found, [str(number) for number in range(classes)])
    seen = [naive(row, label)[1] for row, label, good in zip(table, labels, readable, strict=True) if good]
    assert (figures["images"], figures["unreadable"]) == (len(seen), count - len(seen))
    assert figures["accuracy"] == (seen.count(0) / len(seen) if seen else None)
    assert figures["top5"] == (sum(rank < 5 for rank in seen) / len(seen) if seen and classes > 5 else None)
    assert sum(row["images"] for row in figures["per_class"]) == len(seen)


def calibration(confidences: list[float], right: list[bool]) -> float:
    """Bin by bin, in float64."""
    total = 0.0
    for place in range(15):
        inside = [n for n, value in enumerate(confidences) if place / 15 < value <= (place + 1) / 15]
        if inside:
            accuracy = sum(right[n] for n in inside) / len(inside)
            total += abs(accuracy - sum(confidences[n] for n in inside) / len(inside)) * len(inside)
    return total / len(confidences)


def test_the_figures_of_a_set() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 8, generator=draw)
    labels = torch.where(torch.rand(400, generator=draw) < 0.5, logits.argmax(1), torch.randint(0, 7, (400,)))
    readable = torch.rand(400, generator=draw) < 0.9
    found = predictions_of(logits.softmax(1), labels, readable)
    figures = summary(found, list("abcdefghi"))
    assert list(figures) == [
        *("images", "accuracy", "low", "high", "unreadable", "top5", "mean_confidence", "calibration_error"),
        "per_class",
    ]
    rows, names = logits[readable].double().softmax(1).numpy(), labels[readable].numpy()
    right = [bool(row.argmax() == name) for row, name in zip(rows, names, strict=True)]
    interval = wilson(sum(right), len(right))
    assert (figures["accuracy"], figures["low"], figures["high"]) == (interval.estimate, interval.low, interval.high)
    assert figures["mean_confidence"] == pytest.approx(rows.max(axis=1).mean(), abs=1e-6)
    assert figures["calibration_error"] == pytest.approx(calibration(rows.max(axis=1).tolist(), right), abs=1e-6)
    theirs = metrics_of(logits[readable], labels[readable])
    assert figures["calibration_error"] == pytest.approx(theirs["calibration_error"], abs=1e-6)
    assert [row["accuracy"] for row in figures["per_class"][:8]] == theirs["per_class_accuracy"]
    mine = [hit for hit, name in zip(right, names, strict=True) if name == 2]
    third = figures["per_class"][2]
    assert (third["class"], third["images"], third["accuracy"]) == ("c", len(mine), np.mean(mine))
    assert third["low"] < third["accuracy"] < third["high"]
    assert figures["per_class"][8] == {"class": "i", "images": 0, "accuracy": None, "low": None, "high": None}


def made_predictions(seed: int, count: int = 90) -> Predictions:
    """More often right than wrong among three classes; one image could not be read."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    values = torch.rand(count, 3, generator=generator)
    values[torch.arange(count), labels] += 0.3
    return predictions_of(values / values.sum(1, keepdim=True), labels, torch.arange(count) != UNREADABLE)


@pytest.mark.parametrize("places", [None, [0], [2], [0, 2]])
def test_the_difference_and_its_interval_are_those_of_a_loop(places: list[int] | None) -> None:
    one, two = made_predictions(0), made_predictions(1)
    found = paired([one, two], places)
    here = [n for n in range(90) if n != UNREADABLE and (places is None or int(one.labels[n]) in places)]
    first, second = ([int(each.rank[n]) == 0 for n in here] for each in (one, two))
    assert found["images"] == len(here)
    assert found["first"] == sum(first) / len(here)
    assert found["second"] == sum(second) / len(here)
    only = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((first, second), (second, first))]
    assert [found["only_first"], found["only_second"]] == only
    assert found["difference"] == pytest.approx((sum(first) - sum(second)) / len(here), abs=1e-12)
    assert found["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found["low"] <= found["difference"] <= found["high"]


def right_and_wrong(only_first: int, only_second: int, both: int = 0) -> list[Predictions]:
    """Two models on pictures of class 0: so many that only the one, only the other, or both get right."""
    kinds = torch.tensor([0] * only_first + [1] * only_second + [2] * both)
    made = []
    for missed in (1, 0):
        right = (kinds != missed).float()
        labels, readable = torch.zeros_like(kinds), torch.ones_like(kinds).bool()
        made.append(predictions_of(torch.stack([right, 1 - right], dim=1), labels, readable))
    return made


@pytest.mark.parametrize("both", [0, 3, 994])
@pytest.mark.parametrize(
    ("first", "second", "verdict"), [(1, 0, 0), (0, 1, 0), (5, 0, 0), (0, 5, 0), (6, 0, 1), (0, 6, -1), (8, 1, 1)]
)
def test_a_category_is_decided_by_the_exact_test_alone(first: int, second: int, both: int, verdict: int) -> None:
    found = paired(right_and_wrong(first, second, both))
    assert (found["low"] > 0) - (found["high"] < 0) == verdict
    assert -1 <= found["low"] < found["high"] <= 1
    assert [row["decided"] for row in decided([found])] == [verdict != 0]


def test_many_categories_are_judged_together() -> None:
    same = paired([made_predictions(0), made_predictions(0)])
    assert same["low"] < same["difference"] == 0 < same["high"]
    six, nine = paired(right_and_wrong(6, 0, 44)), paired(right_and_wrong(0, 12, 38))
    none = paired([made_predictions(0), made_predictions(1)], [5])
    rows = decided([none, six, nine, *[six] * 18])
    # Holm: the smallest of 20 values, 2 / 2**12, is below 0.05 / 20; the next, 2 / 2**6, is not below 0.05 / 19
    assert [row["decided"] for row in rows] == [False, False, True, *[False] * 18]
    assert all(row["low"] > 0 for row in rows[3:])
    assert none["difference"] is None


def made_labelled(classes: Sequence[str], each: int, ids: Sequence[str] | None = None) -> Labelled:
    """Pictures of one grey level each, dark ones first in every class; the second of them cannot be read."""
    count = len(classes) * each
    levels = np.random.default_rng(3).integers(0, 256, count)

    def read(number: int) -> np.ndarray:
        if number == 1:
            raise InputError("picture 1", "cannot be decoded")
        return np.full((3, SIDE, SIDE), levels[number], dtype=np.uint8)

    return Labelled(
        "made",
        tuple(classes),
        None if ids is None else tuple(ids),
        tuple(number // each for number in range(count)),
        tuple(str(number) for number in range(count)),
        tuple(f"{level}" for level in levels),
        read,
    )


def looking_at(classes: int, *, sign: float) -> Model:
    """A model that puts a picture's brightness, or darkness, into one of the classes."""

    def chances(rows: Tensor) -> Tensor:
        bright = (sign * rows[:, :1] + 1) / 2
        return torch.softmax(-20 * (bright - (torch.arange(classes) + 0.5) / classes).abs(), dim=1)

    def encode(squares: Tensor) -> Tensor:
        return LOOK.normalised(squares).mean((1, 2, 3))[:, None]

    return Model(Encoder(f"sign {sign}", LOOK, 1, f"made {sign}", encode), chances)


def test_what_one_side_cannot_read_counts_for_none_and_is_told_once() -> None:
    sides = [looking_at(2, sign=1), looking_at(2, sign=-1)]
    found = predict(sides, made_labelled(["dark", "bright"], 6))
    assert [fault.what for fault in found.faults] == ["picture 1"]
    for each in found.predictions:
        assert each.readable.tolist() == [n != 1 for n in range(12)]
    one, two = (each.rank[each.readable] == 0 for each in found.predictions)
    assert bool((one ^ two).all())  # what one gets the other misses


def test_under_inversion_two_opposite_models_change_places() -> None:
    sides = [looking_at(2, sign=1), looking_at(2, sign=-1)]
    labelled = made_labelled(["dark", "bright"], 20)
    assert labelled.spread(6, range(40)).places == ("0", "6", "13", "20", "26", "33")
    assert labelled.spread(99, range(3, 30)).places == tuple(str(n) for n in range(3, 30))
    few = labelled.spread(30, [n for n in range(40) if n != 1])
    found = under_shifts(sides, few, shifts(["inversion", "grey"], [4, 5]))
    assert found["images"] == 30
    before = found["original"]
    cells = {(cell["shift"], cell["severity"]): cell for cell in found["cells"]}
    assert list(cells) == [("inversion", 4), ("inversion", 5), ("grey", 4), ("grey", 5)]
    whole = cells["inversion", 5]  # every value inverted
    assert (whole["first"], whole["second"]) == (before["second"], before["first"])
    assert cells["grey", 5]["difference"] == before["difference"]  # pictures of one grey level
    inversion, grey = found["kinds"]
    assert grey["low"] < grey["change"] == 0 < grey["high"]
    mean = (cells["inversion", 4]["difference"] + whole["difference"]) / 2
    assert inversion["difference"] == pytest.approx(mean)
    assert inversion["change"] == pytest.approx(mean - before["difference"])
    assert inversion["low"] <= inversion["change"] <= inversion["high"]
    assert inversion["low"] < inversion["high"]
    alone = under_shifts(sides, labelled.spread(1, [0]), shifts(["inversion", "grey"]))
    for kind in [grey, *alone["kinds"]]:  # one picture decides nothing
        assert kind["low"] <= 0 <= kind["high"]
        assert kind["low"] < kind["high"]
        assert not kind["decided"]


def test_superclasses_of_imagenets_and_cifar10s_classes() -> None:
    """The committed partitions: each class in one group, and what is a kind of what."""
    ids = imagenet_wordnet_ids()
    groups = superclasses(made_labelled([str(place) for place in range(1000)], 1, ids))
    assert sorted(place for group in groups for place in group.members) == list(range(1000))
    assert 15 <= len(groups) <= 40
    named = {group.name: group.members for group in groups}
    assert len(named) == len(groups)
    assert named["dog"] == tuple(range(151, 269))
    assert named["bird"] == (*range(7, 25), *range(80, 101), *range(127, 147))
    assert {"fish", "reptile", "primate", "vehicle", "musical instrument", "clothing", "furniture"} <= named.keys()
    few = superclasses(made_labelled(["tench", "dog"], 1, [ids[0], ids[200]]))
    assert [(group.name, group.members) for group in few] == [("fish", (0,)), ("dog", (1,))]
    small = superclasses(made_labelled(CLASSES, 1))
    assert {group.name: [CLASSES[place] for place in group.members] for group in small} == {
        "vehicle": ["airplane", "automobile", "ship", "truck"],
        "placental": ["cat", "deer", "dog", "horse"],
        "other vertebrate": ["bird", "frog"],
    }
    assert superclasses(made_labelled(["red", "green"], 2)) == ()


@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("members", [[0], [0, 2], [1, 2, 0]])
def test_a_gallery_is_sorted_by_the_gap_and_bounded(members: list[int], most: int) -> None:
    one, two = made_predictions(0), made_predictions(1)
    gaps = {n: float(one.truth[n]) - float(two.truth[n]) for n in range(90) if n != UNREADABLE and n % 3 in members}
    expected: list[int] = []
    for n in sorted(gaps, key=lambda n: (-gaps[n], n)):
        if gaps[n] > 0 and [each % 3 for each in expected].count(n % 3) < 2:
            expected.append(n)
    assert gallery(one, two, members, most) == expected[:most]
    assert not set(expected) & set(gallery(two, one, members, 50))
    assert gallery(one, one, members, most) == []


def test_outliers_are_the_largest_differences_either_way() -> None:
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"images": 50, "difference": round(float(each), 1), "p_value": float(draw.random())}
        for each in draw.uniform(-1, 1, 60)
    ]
    rows[3] = {"images": 0, "difference": None, "p_value": None}
    rows[4]["difference"] = 0.0
    found = [(rows[place]["difference"], rows[place]["p_value"]) for place in outliers(rows)]
    seen = sorted((row["difference"], row["p_value"]) for row in rows if row["images"])
    assert found[:8] == seen[:8]
    assert found[8:] == sorted(seen, key=lambda each: (-each[0], each[1]))[:8]
    assert outliers(rows[3:5]) == []


def by_hand(clip: Clip, prompts: Sequence[Sequence[str]]) -> list[list[float]]:
    """A zero-shot classifier in float64: a row of unit length for each label's prompts."""
    made = []
    for texts in prompts:
        with torch.no_grad():
            rows = clip.model.encode_text(clip.tokenizer(list(texts))).double().tolist()  # pyright: ignore
        lengths = [math.sqrt(sum(value * value for value in row)) for row in rows]
        mean = [sum(row[k] / length for row, length in zip(rows, lengths, strict=True)) for k in range(len(rows[0]))]
        made.append([value / math.sqrt(sum(each * each for each in mean)) for value in mean])
    return made


def hits(weights: list[list[float]], rows: Tensor, labels: list[int]) -> list[tuple[int, bool]]:
    """The label of each image that counts, and whether it is the best one, of equal ones the first."""
    found = []
    for row, label in zip(rows.double().tolist(), labels, strict=True):
        if label >= 0:
            scores = [sum(x * y for x, y in zip(row, each, strict=True)) for each in weights]
            found.append((label, scores.index(max(scores)) == label))
    return found


def test_another_name_scores_as_a_classifier_built_by_hand(clip: Clip) -> None:
    classes, sets = ("cat", "sea lion", "cat", "deer"), [load_templates("openai-7"), load_templates("single")]
    rows = unit(300, 32, 5) + by_class(clip, classes)[torch.arange(300) % 4] * 0.2
    rows, labels = torch.nn.functional.normalize(rows), [-1 if n % 50 == 7 else n % 4 for n in range(300)]
    rows[7] = torch.nan
    classifiers = [zero_shot_classifier(clip, classes, each, use_cache=False) for each in sets]
    names = {1: ["Sea Lion", "seal", "CAT", "eared seal"], 2: ["tabby"]}
    accuracies, variants = sensitivity(clip, classifiers, sets, rows, torch.tensor(labels), names)
    assert list(variants) == [1, 2]
    tried = {
        1: [("sea lion", 0), ("sea lion", 1), ("seal", 0), ("CAT", None), ("eared seal", 0)],
        2: [("cat", 0), ("cat", 1), ("tabby", 0)],
    }
    for place, expected in tried.items():
        assert [row["name"] for row in variants[place]] == [name for name, _ in expected]
        for row, (name, number) in zip(variants[place], expected, strict=True):
            if number is None:
                assert row["unscored"]
                assert "recall" not in row
                continue
            called = [name if at == place else own for at, own in enumerate(classes)]
            found = hits(by_hand(clip, [sets[number].prompts(each) for each in called]), rows, labels)
            mine = [good for label, good in found if label == place]
            interval = wilson(sum(mine), len(mine))
            assert row["templates"] == sets[number].name
            assert (row["recall"], row["low"], row["high"]) == (interval.estimate, interval.low, interval.high)
            assert row["accuracy"] == sum(good for _, good in found) / len(found)
            if name in classes:
                assert row["accuracy"] == accuracies[number]
    assert variants[2][0]["recall"] == 0  # the first of two equal names is answered
    assert variants[2][2]["recall"] > 0


def by_class(clip: Clip, classes: Sequence[str]) -> Tensor:
    """What the model makes of each class's bare name, so that features near it are often right."""
    return torch.tensor(by_hand(clip, [[f"a photo of a {name}."] for name in classes]))


def test_names_of_no_known_word_are_not_scored() -> None:
    small, templates = load_small("cifar10-clip"), load_templates("single")
    classifiers = [zero_shot_classifier(small, ("cat", "dog"), templates, use_cache=False)]
    rows = unit(6, classifiers[0].weights.shape[1], 0)
    names = {0: ["house cat", "Felis catus", "domestic cat"]}
    _, variants = sensitivity(small, classifiers, [templates], rows, torch.tensor([0, 1] * 3), names)
    found = [(row["name"], row["unknown_words"], "recall" in row) for row in variants[0]]
    assert found[0] == ("cat", [], True)
    assert found[2] == ("Felis catus", ["Felis catus"], False)
    assert found[3] == ("domestic cat", ["domestic"], True)


def test_wordnets_names_of_the_classes() -> None:
    ids = imagenet_wordnet_ids()
    assert wordnet_names(made_labelled(["x", "y"], 1, [ids[0], ids[2]])) == [
        ("tench", "Tinca tinca"),
        ("great white shark", "white shark", "man-eater", "man-eating shark", "Carcharodon carcharias"),
    ]
    assert [names[:2] for names in wordnet_names(made_labelled(["cat", "automobile"], 1))] == [
        ("domestic cat", "house cat"),
        ("car", "auto"),
    ]
    assert wordnet_names(made_labelled(["red", "green"], 1)) == [(), ()]
    assert all(wordnet_names(made_labelled([str(place) for place in range(1000)], 1, ids)))


def test_the_command_writes_a_page_and_names_what_it_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(Path("set"), dict.fromkeys(("airplane", "cat", "deer", "dog", "ship", "zebra"), 5))
    Path("set/cat/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    command = ["clip", "compare", "set", "--model", "cifar10-clip", "--supervised", "cifar10-clip-twin", "--json"]
    command += ["--templates", "single", "--templates", "openai-7", "--out", "seen"]
    assert run([*command, "--shifts", "grey, noise", "--shift-pictures", "10"]) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "bad.png: cannot be decoded" in err
    assert "Everything else is above." in err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["left_out"] == ["zebra"]  # the twin has no such class
    assert found["classes"] == ["airplane", "cat", "deer", "dog", "ship"]
    assert [each["name"] for each in found["templates"]] == ["single", "openai-7"]
    assert found["templates"][0]["accuracy"] == found["models"][0]["accuracy"] == found["overall"]["first"]
    assert found["unreadable"] == 1
    assert sum(row["images"] for row in found["per_class"]) == 25
    assert found["computed"] == [25, 25]
    page = Path("seen/compare.html").read_text()
    sides = [(each["superclass"], each[side]) for each in found["galleries"] for side in ("first", "second")]
    assert page.count('<li class="card">') == sum(len(numbers) for _, numbers in sides) > 0
    members = {row["superclass"]: row["classes"] for row in found["superclasses"]}
    for (superclass, numbers), (ahead, behind) in zip(sides, [(0, 1), (1, 0)] * 2, strict=True):
        cards = [found["answers"][str(number)] for number in numbers]
        assert {card["class"] for card in cards} <= set(members[superclass])
        gaps = [card["truth"][ahead] - card["truth"][behind] for card in cards]
        assert gaps == sorted(gaps, reverse=True)
        assert min(gaps, default=1) > 0
    assert [row["class"] for row in found["outliers"]] == ["airplane"]
    variants = found["outliers"][0]["variants"]
    assert [(row["name"], row["templates"]) for row in variants] == [
        *(("airplane", "single"), ("airplane", "openai-7"), ("aeroplane", "single"), ("plane", "single"))
    ]
    assert variants[0]["recall"] == found["per_class"][0]["first"]
    assert variants[1]["accuracy"] == found["templates"][1]["accuracy"]
    table = read_csv(Path("seen/names.csv"))
    assert [(row["name"], row["recall"]) for row in table] == [(row["name"], row["recall"]) for row in variants]
    assert Path("seen/scatter.png").is_file()
    assert Path("seen/categories.csv").read_text().count("\n") == 6
    assert [each["shift"] for each in found["shifts"]["kinds"]] == ["grey", "noise"]
    assert found["shifts"]["images"] == 10
    assert Path("seen/shifts.csv").read_text().count("\n") == 12
    rows = found["superclasses"]
    assert [(row["superclass"], row["classes"], row["images"]) for row in rows] == [
        ("vehicle", ["airplane", "ship"], 10),
        ("placental", ["cat", "deer", "dog"], 15),
    ]
    for row in rows:
        mine = [each for each in found["per_class"] if each["class"] in row["classes"]]
        assert row["only_first"] == sum(each["only_first"] for each in mine)
    monkeypatch.setattr("diffvit.clip.compare_page.to_png", lambda made: b"")  # drawn above
    monkeypatch.setattr(subject, "_SHOWN", 2)
    monkeypatch.setattr(subject, "_LEAST", 1)
    assert run([*command, "--shifts", "none"]) == 3
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["computed"] == [0, 0]
    for one, whole in zip(again["galleries"], found["galleries"], strict=True):
        assert (one["first"], one["second"]) == (whole["first"][:1], whole["second"][:1])
