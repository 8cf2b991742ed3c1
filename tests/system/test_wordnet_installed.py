"""With the real WordNet: the committed map is the one it gives, and ImageNet's classes fall into readable groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffvit.clip.evaluation.cifar10_map import imagenet_ids, main
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.rollup import groups_of
from diffvit.clip.evaluation.wordnet import find_wordnet, read_wordnet, superclasses
from diffvit.data.cifar10_rows import CLASSES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed() -> Path:
    found = find_wordnet()
    if found is None:
        pytest.fail("WordNet is not installed: apt-get install wordnet-base", pytrace=False)
    return found


@pytest.mark.system
def test_the_committed_map_is_up_to_date(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--page", str(ROOT / "docs" / "clip.md")]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.system
def test_imagenets_classes_fall_into_readable_groups(installed: Path) -> None:
    wordnet, ids = read_wordnet(installed), imagenet_ids()
    assert len(wordnet.names) == 82_115
    assert wordnet.names["n02084071"] == "dog"
    groups = superclasses(wordnet, ids)
    assert sorted(place for group in groups for place in group.members) == list(range(1000))
    assert 15 <= len(groups) <= 40
    named = {group.name: group for group in groups}
    assert len(named) == len(groups)
    assert named["dog"].members == tuple(range(151, 269))
    assert named["bird"].members == (*range(7, 25), *range(80, 101), *range(127, 147))
    assert {"fish", "reptile", "primate", "vehicle", "musical instrument", "clothing", "furniture"} <= named.keys()
    assert max(len(group.members) for group in groups) == 118
    assert min(len(group.members) for group in groups) >= 8


@pytest.mark.system
def test_cifar10s_classes_fall_into_vehicles_mammals_and_others(installed: Path) -> None:
    labelled = Labelled("named", tuple(CLASSES), None, (), (), (), read=lambda number: np.empty((3, 1, 1), np.uint8))
    groups, why_not = groups_of(labelled)
    assert why_not == ""
    assert {group.name: [labelled.classes[place] for place in group.members] for group in groups} == {
        "vehicle": ["airplane", "automobile", "ship", "truck"],
        "placental": ["cat", "deer", "dog", "horse"],
        "other vertebrate": ["bird", "frog"],
    }
