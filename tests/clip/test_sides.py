"""Two models' answers side by side: differences, intervals, superclasses, and what shifts do to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from compared import UNREADABLE, made_answers
from scipy.stats import binomtest
from small_wordnet import nouns_file
from torch import Tensor

from diffvit.clip.evaluation.answers import Answers, answers_of
from diffvit.clip.evaluation.encoders import Encoder
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.rollup import NO_IDS, NO_WORDNET, groups_of, rolled_up
from diffvit.clip.evaluation.shifted import under_shifts
from diffvit.clip.evaluation.shifts import shifts
from diffvit.clip.evaluation.sides import Side, answered, decided, paired
from diffvit.clip.preprocess import Preprocessing
from diffvit.errors import InputError

SIDE = 8
LOOK = Preprocessing(SIDE, SIDE, "bilinear", False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("places", [None, [0], [2], [0, 2]])
def test_the_difference_and_its_interval_are_those_of_a_loop(places: list[int] | None) -> None:
    one, two = made_answers(0), made_answers(1)
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


def right_and_wrong(only_first: int, only_second: int, both: int = 0) -> list[Answers]:
    """Two models on pictures of class 0: so many that only the one, only the other, or both get right."""
    count = only_first + only_second + both
    first = torch.arange(count) < only_first
    second = (torch.arange(count) >= only_first) & (torch.arange(count) < only_first + only_second)
    second |= torch.arange(count) >= only_first + only_second
    first |= torch.arange(count) >= only_first + only_second
    labels, readable = torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
    made = []
    for right in (first, second):
        chances = torch.stack([right.float(), 1 - right.float()], dim=1)
        made.append(answers_of(chances, labels, readable))
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
    six, nine = paired(right_and_wrong(6, 0, 44)), paired(right_and_wrong(0, 12, 38))
    none = paired([made_answers(0), made_answers(1)], [5])
    rows = decided([none, six, nine, *[six] * 18])
    # Holm: the smallest of 20 values, 2 / 2**12, is below 0.05 / 20; the next, 2 / 2**6, is not below 0.05 / 19
    assert [row["decided"] for row in rows] == [False, False, True, *[False] * 18]
    assert all(row["low"] > 0 for row in rows[3:])


def test_a_model_beside_itself_differs_in_nothing() -> None:
    found = paired([made_answers(0), made_answers(0)])
    assert found["low"] < found["difference"] == 0 < found["high"]
    assert paired([made_answers(0), made_answers(1)], [5])["difference"] is None


def test_a_few_pictures_do_not_decide_what_a_shift_does() -> None:
    sides = [looking_at(2, sign=1), looking_at(2, sign=-1)]
    labelled = made_labelled(["dark", "bright"], 2)
    found = under_shifts(sides, labelled.spread(1, [0]), shifts(["inversion", "grey"]))
    for kind in found["kinds"]:
        assert kind["low"] <= 0 <= kind["high"]
        assert kind["low"] < kind["high"]
        assert not kind["decided"]


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


def looking_at(classes: int, *, sign: float) -> Side:
    """A model that puts a picture's brightness, or darkness, into one of the classes."""

    def chances(rows: Tensor) -> Tensor:
        bright = (sign * rows[:, :1] + 1) / 2
        return torch.softmax(-20 * (bright - (torch.arange(classes) + 0.5) / classes).abs(), dim=1)

    def encode(squares: Tensor) -> Tensor:
        return LOOK.normalised(squares).mean((1, 2, 3))[:, None]

    return Side(Encoder(f"sign {sign}", LOOK, 1, f"made {sign}", encode), chances)


def test_what_one_side_cannot_read_counts_for_none_and_is_told_once() -> None:
    sides = [looking_at(2, sign=1), looking_at(2, sign=-1)]
    found = answered(sides, made_labelled(["dark", "bright"], 6))
    assert [fault.what for fault in found.faults] == ["picture 1"]
    for answers in found.answers:
        assert answers.readable.tolist() == [n != 1 for n in range(12)]
    one, two = (answers.rank[answers.readable] == 0 for answers in found.answers)
    assert bool((one ^ two).all())  # what one gets the other misses


def test_under_inversion_two_opposite_models_change_places() -> None:
    sides = [looking_at(2, sign=1), looking_at(2, sign=-1)]
    labelled = made_labelled(["dark", "bright"], 20)
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
    assert not grey["decided"]
    mean = (cells["inversion", 4]["difference"] + whole["difference"]) / 2
    assert inversion["difference"] == pytest.approx(mean)
    assert inversion["change"] == pytest.approx(mean - before["difference"])
    assert inversion["low"] <= inversion["change"] <= inversion["high"]
    assert inversion["low"] < inversion["high"]


def test_pictures_are_spread_over_classes_and_all_are_taken_where_there_are_few() -> None:
    labelled = made_labelled(["a", "b", "c"], 10)
    few = labelled.spread(6, range(30))
    assert few.labels == (0, 0, 1, 1, 2, 2)
    assert few.places == ("0", "5", "10", "15", "20", "25")
    assert labelled.spread(99, range(3, 30)).places == tuple(str(n) for n in range(3, 30))


NOUNS = {
    "thing": [],
    "animal": ["thing"],
    "dog": ["animal"],
    "cat": ["animal"],
    "tool": ["thing"],
    "saw": ["tool"],
}


def test_superclasses_gather_the_pictures_of_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, ids = nouns_file({**NOUNS, "axe": ["tool"]})
    (tmp_path / "data.noun").write_bytes(content)
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    names = ["dog", "saw", "cat", "axe"]
    labelled = made_labelled(names, 6, [ids[name] for name in names])
    sides = [looking_at(4, sign=1), looking_at(4, sign=-1)]
    groups, why_not = groups_of(labelled)
    assert why_not == ""
    found = answered(sides, labelled)
    rows = rolled_up(found.answers, groups, labelled.classes)
    assert [(row["superclass"], row["classes"]) for row in rows] == [
        ("animal", ["dog", "cat"]),
        ("tool", ["saw", "axe"]),
    ]
    assert [row["images"] for row in rows] == [11, 12]
    for row, members in zip(rows, ([0, 2], [1, 3]), strict=True):
        mine = [n for n in range(24) if n != 1 and labelled.labels[n] in members]
        first, second = (sum(int(answers.rank[n]) == 0 for n in mine) for answers in found.answers)
        assert row["difference"] == pytest.approx((first - second) / len(mine))


def test_without_ids_or_wordnet_there_are_no_superclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert groups_of(made_labelled(["red", "green"], 2)) == ((), NO_IDS)
    monkeypatch.setattr("diffvit.clip.evaluation.wordnet.INSTALLED", tmp_path)
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.delenv("WNHOME", raising=False)
    assert groups_of(made_labelled(["cat", "dog"], 2)) == ((), NO_WORDNET)
