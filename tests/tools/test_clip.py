"""CLIP's generated documents: that the committed ones are up to date, and what they say of other figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffvit.files import read_csv, write_csv
from tools import clip
from tools.__main__ import main
from tools.clip import CLASSIFIER, COMPARISONS, KINDS, PAGE, PRECISION, PUBLISHED, SMALL, kind_of

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


def name(label: str, called: str, recall: float, *, seen: bool = False, known: float = 1.0) -> dict[str, Any]:
    return {"class": label, "name": called, "seen": seen, "known_tokens": known, "recall": recall}


TRIED = [
    name("cat", "cat", 0.8, seen=True),
    name("cat", "small cat", 0.79),
    name("cat", "tabby cat", 0.78, known=0.5),
    name("cat", "feline", 0.1, known=0.0),
    name("cat", "lynx", 0.1, known=0.0),
    name("dog", "dog", 0.6, seen=True),
    name("dog", "puppy", 0.7, seen=True),
    name("dog", "poodle", 0.5, known=0.0),
]
# Whether CLIP wins there, what the page names and what not: by more than the interval alone.
GROUPS = {"bird": (0.02, 0.01, 0.03), "fish": (0.01, -0.01, 0.03), "tool": (-0.03, -0.04, -0.02)}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkout with the files that the documents are made from."""
    for folder in (SMALL, PRECISION, CLASSIFIER):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in (PAGE, clip.MAP):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def put(root: Path, comparison: str) -> dict[str, Any]:
    """Some comparison's result, with groups of its own, in the place of one with published weights."""
    result = json.loads((ROOT / SMALL / "compare" / "compare.json").read_bytes())
    result["superclasses"] = [
        {**result["superclasses"][0], "superclass": group, "difference": difference, "low": low, "high": high}
        | {"decided": low > 0 or high < 0}
        for group, (difference, low, high) in GROUPS.items()
    ]
    (root / PUBLISHED / comparison).mkdir(parents=True)
    (root / PUBLISHED / comparison / "compare.json").write_text(json.dumps(result))
    return result


def test_a_names_kind_and_the_sentences_follow_from_the_names(here: Path, capsys: Captured) -> None:
    assert [KINDS.index(kind_of(row)) for row in TRIED] == [0, 1, 2, 3, 3, 0, 0, 3]
    write_csv(here / SMALL / "names.csv", TRIED)
    assert main(["--check", "clip"], here) == 1
    assert capsys.readouterr().out.count("out of date: ") == 2
    assert main(["clip"], here) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(PAGE), str(SMALL / "names.png")]
    text = (here / PAGE).read_text()
    for part in (
        "| in captions | 3 | 70.0% | 66.7% | dog: 60.0% |",
        "| new, of no known word | 3 | 23.3% | 73.3% | feline: 10.0% |",
        "within 10.0 points of its class's own name",  # puppy
        "2 of 3 such names lose more than half",
        "1 share their recall exactly",
    ):
        assert part in text
    assert main(["--check", "clip"], here) == 0


def test_with_some_figures_the_rest_is_named_as_missing(here: Path) -> None:
    result = put(here, "imagenet-tv-v1")
    text = clip.published(here / PUBLISHED)
    assert "**Not measured here: what has no figure below.**" in text
    assert text.count("| expected 80: ") == len(COMPARISONS) - 1
    assert "| expected -21.04 |" in text  # 59.82 - 80.86
    assert "–" not in text
    assert text.count("expected 59.82%") == 1  # of the comparison on ImageNet that is not there
    assert f"| torchvision V1 | {100 * result['overall']['first']:.2f}% |" in text
    (line,) = [line for line in text.splitlines() if "CLIP wins" in line]
    zero_shot, resnet = line.split("CLIP wins")[1].split("the ResNet-50")
    assert "bird (+2.0)" in zero_shot
    assert "tool (-3.0)" in resnet
    assert "fish" not in line


def test_the_classifiers_figures_are_those_of_its_csv_files(here: Path) -> None:
    text = clip.classifier(here / CLASSIFIER)
    for name in ("photos", "cifar10"):
        rows = [row for row in read_csv(here / CLASSIFIER / name / "categories.csv") if row["images"]]
        images = sum(row["images"] for row in rows)
        for side in ("first", "second"):
            right = sum(round(row[side] * row["images"]) for row in rows)
            assert f"| {100 * right / images:.2f}% (" in text
    cells = {name: read_csv(here / CLASSIFIER / name / "shifts.csv") for name in ("photos", "cifar10")}
    for kind in ("edges", "grey", "blur", "jpeg", "noise", "inversion"):
        lost = []
        for name, side in (("photos", "second"), ("cifar10", "second"), ("cifar10", "first")):
            none, *levels = [row[side] for row in cells[name] if row["shift"] in ("none", kind)]
            assert len(levels) == 5
            lost.append(f"{100 * (none - sum(levels) / 5):.1f}")
        assert f"| {kind} | {' | '.join(lost)} | " in text


MISSING = [SMALL / "names.csv", clip.MAP]
DAMAGED = [SMALL / "compare" / "compare.json", PAGE, PUBLISHED / "imagenet-tv-v1" / "compare.json"]


@pytest.mark.parametrize("file", [*MISSING, *DAMAGED], ids=str)
def test_what_is_missing_or_damaged_is_one_line(here: Path, capsys: Captured, file: Path) -> None:
    put(here, "imagenet-tv-v1")
    path = here / file
    path.unlink() if file in MISSING else path.write_text("{")
    assert main(["clip"], here) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert path.name in err
