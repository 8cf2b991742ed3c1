"""Probabilities and answers against naive float64 loops, with ties and twins; the figures of a set by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clip import small_clip

from diffvit.clip import predictions as subject
from diffvit.clip.load import Clip
from diffvit.clip.predictions import predictions_of, summary, supervised_probabilities, zero_shot_probabilities
from diffvit.clip.templates import Templates, twins
from diffvit.clip.zero_shot import Classifier
from diffvit.errors import ConfigError
from diffvit.reporting.stats import wilson
from diffvit.training.score import metrics_of


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
    return Classifier(weights, labels, Templates("one", ("{}",)), "", 0, twins(labels))


def test_zero_shot_probabilities_are_a_loops(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_PIECE", 3)
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
    with pytest.raises(ConfigError, match=r"classifier: was made with another model \(31 vs 32 features\)"):
        zero_shot_probabilities(clip, classifier_of(weights[:, 1:], ("a", "b", "c", "b", "d")), rows)


def test_supervised_probabilities_are_a_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_PIECE", 3)
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
    for wrong in ([[1], [1, 2]], [[1, 1]], [[1], []]):
        with pytest.raises(ValueError, match="groups must not"):
            supervised_probabilities(logits, wrong)


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
        patch.setattr(subject, "_PIECE", 4)
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


def test_of_twins_the_first_is_answered() -> None:
    chances = torch.tensor([[0.1, 0.4, 0.1, 0.4]] * 2)
    found = predictions_of(chances, torch.tensor([1, 3]), torch.tensor([True, True]))
    assert found.top.tolist() == [[1, 3, 0, 2]] * 2
    assert found.rank.tolist() == [0, 1]


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
    figures = summary(found, list("abcdefgh"))
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
    assert [row["accuracy"] for row in figures["per_class"]] == theirs["per_class_accuracy"]
    mine = [hit for hit, name in zip(right, names, strict=True) if name == 2]
    third = figures["per_class"][2]
    assert (third["class"], third["images"], third["accuracy"]) == ("c", len(mine), np.mean(mine))
    assert third["low"] < third["accuracy"] < third["high"]


def test_a_class_without_pictures_has_no_accuracy() -> None:
    found = summary(predictions_of(torch.eye(2)[[0]], torch.tensor([0]), torch.tensor([True])), ["a", "b"])
    assert found["per_class"][1] == {"class": "b", "images": 0, "accuracy": None, "low": None, "high": None}
