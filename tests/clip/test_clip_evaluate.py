"""Two models beside each other: differences, intervals, superclasses, shifts, galleries; ``diffvit clip compare``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from diffvit.cli.main import run
from diffvit.clip.encode import Encoder
from diffvit.clip.evaluate import Model, gallery, predict, under_shifts
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import Labelled, superclasses
from diffvit.clip.predictions import Predictions, decided, paired, predictions_of
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.shifts import shifts
from diffvit.data.cifar10 import CLASSES
from diffvit.errors import InputError

Captured = pytest.CaptureFixture[str]
UNREADABLE = 7
SIDE = 8
LOOK = Preprocessing(SIDE, SIDE, "bilinear", False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


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
    count = only_first + only_second + both
    first = torch.arange(count) < only_first
    second = (torch.arange(count) >= only_first) & (torch.arange(count) < only_first + only_second)
    second |= torch.arange(count) >= only_first + only_second
    first |= torch.arange(count) >= only_first + only_second
    labels, readable = torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
    made = []
    for right in (first, second):
        chances = torch.stack([right.float(), 1 - right.float()], dim=1)
        made.append(predictions_of(chances, labels, readable))
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
    none = paired([made_predictions(0), made_predictions(1)], [5])
    rows = decided([none, six, nine, *[six] * 18])
    # Holm: the smallest of 20 values, 2 / 2**12, is below 0.05 / 20; the next, 2 / 2**6, is not below 0.05 / 19
    assert [row["decided"] for row in rows] == [False, False, True, *[False] * 18]
    assert all(row["low"] > 0 for row in rows[3:])


def test_a_model_beside_itself_differs_in_nothing() -> None:
    found = paired([made_predictions(0), made_predictions(0)])
    assert found["low"] < found["difference"] == 0 < found["high"]
    assert paired([made_predictions(0), made_predictions(1)], [5])["difference"] is None


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


def test_a_gallery_holds_what_one_gets_and_the_other_misses() -> None:
    one, two = made_predictions(0), made_predictions(1)
    chosen = gallery(one, two)
    assert chosen
    assert all(int(one.rank[n]) == 0 and int(two.rank[n]) > 0 and n != 7 for n in chosen)
    gaps = [float(one.truth[n] - two.truth[n]) for n in chosen]
    assert gaps == sorted(gaps, reverse=True)
    labels = [int(one.labels[n]) for n in chosen]
    assert max(labels.count(label) for label in labels) <= 2
    assert gallery(one, one) == []


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six classes of CIFAR-10 by name, five pictures each, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for label in ("airplane", "cat", "deer", "dog", "ship", "zebra"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng([len(label), number]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    (tmp_path / "set" / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return tmp_path / "set"


def test_the_command_writes_a_page_and_names_what_it_could_not_read(pictures: Path, capsys: Captured) -> None:
    command = ["clip", "compare", "set", "--model", "cifar10-clip", "--supervised", "cifar10-clip-twin"]
    command += ["--templates", "single", "--templates", "openai-7", "--out", "seen", "--json"]
    command += ["--shifts", "grey, noise", "--shift-pictures", "10"]
    assert run(command) == 3
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
    assert page.count('<div class="card">') == sum(map(len, found["galleries"]))
    assert "Left out, for the supervised model has no class for it: zebra." in page
    assert Path("seen/categories.csv").read_text().count("\n") == 6
    assert [each["shift"] for each in found["shifts"]["kinds"]] == ["grey", "noise"]
    assert found["shifts"]["images"] == 10
    assert Path("seen/shifts.csv").read_text().count("\n") == 12
    assert page.count("<li>") == 2 + 10  # a line for each kind, and words for each severity
    rows = found["superclasses"]
    assert [(row["superclass"], row["classes"]) for row in rows] == [
        ("vehicle", ["airplane", "ship"]),
        ("placental", ["cat", "deer", "dog"]),
    ]
    assert [row["images"] for row in rows] == [10, 15]
    for row in rows:
        mine = [each for each in found["per_class"] if each["class"] in row["classes"]]
        assert row["only_first"] == sum(each["only_first"] for each in mine)
    assert "<td>vehicle</td>" in page
    assert run(command) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["computed"] == [0, 0]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (["--supervised", "tv-v3"], 2, "resnet50: no weights 'tv-v3'"),
        (["--supervised", "cifar10-clip"], 3, "is a CLIP, not a classifier"),
        (["--model", "cifar10-vit"], 3, "is not a CLIP: it has no text tower"),
        (["--templates", "openai"], 2, "--templates: no such templates"),
        (["--limit", "0"], 2, "--limit: must be at least 1 (found 0)"),
        (["--shifts", "edges,gray"], 2, "shifts: no such kind: 'gray'"),
        (["--supervised", "tv-v2", "--supervised-weights", "evil.pt"], 3, "evil.pt: holds Python objects other"),
        (["--supervised", "tv-v2", "--supervised-weights", "other.pt"], 3, "does not hold the weights of ResNet-50"),
        (["--model", "RN50", "--weights", "evil.pt"], 3, "evil.pt: holds Python objects other"),
        (["--model", "RN50", "--weights", "other.pt"], 3, "does not hold the weights of RN50"),
        (["--shift-pictures", "0"], 2, "--shift-pictures: must be at least 1 (found 0)"),
    ],
)
def test_what_is_wrong_is_one_line(pictures: Path, capsys: Captured, change: list[str], code: int, said: str) -> None:
    torch.save({"w": Evil()}, "evil.pt")
    torch.save({"w": torch.zeros(3)}, "other.pt")
    if any(part.startswith("tv-") for part in change):
        shutil.rmtree(pictures / "zebra")  # beside CIFAR-10's classes, which ImageNet's ResNet-50 is asked for
    options = {"--model": "cifar10-clip", "--supervised": "cifar10-clip-twin"} | dict(
        zip(change[::2], change[1::2], strict=True)
    )
    assert run(["clip", "compare", "set", *(part for pair in options.items() for part in pair)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not Path("clip-compare").exists()
    assert not Path("evil-was-here").exists()
