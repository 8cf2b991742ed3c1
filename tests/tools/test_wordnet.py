"""The committed lists of classes: their rule on little networks, and what the real WordNet gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.data.cifar10 import CLASSES
from tools import wordnet as subject
from tools.wordnet import FOLDER, SYNSETS, Superclass, WordNet, cifar10_map, read_nouns, superclasses

COMMITTED = json.loads((FOLDER / "cifar10_imagenet.json").read_text(encoding="utf-8"))


def test_the_committed_map_is_sensible() -> None:
    ids = imagenet_wordnet_ids()
    assert list(COMMITTED) == list(SYNSETS) == CLASSES
    assert [(entry["synset"], entry["name"]) for entry in COMMITTED.values()] == list(SYNSETS.values())
    members = [id for entry in COMMITTED.values() for id in entry["members"]]
    assert len(members) == len(set(members))
    # ImageNet's own order: dogs are 151 to 268, domestic cats 281 to 285, frogs 30 to 32, the sorrel is 339.
    places = {label: [ids.index(id) for id in entry["members"]] for label, entry in COMMITTED.items()}
    assert all(found == sorted(found) for found in places.values())
    assert {label: len(found) for label, found in places.items()} == {
        **{"airplane": 1, "automobile": 10, "bird": 59, "cat": 5, "deer": 0},
        **{"dog": 118, "frog": 3, "horse": 1, "ship": 15, "truck": 7},
    }
    assert places["dog"] == list(range(151, 269))
    assert places["cat"] == list(range(281, 286))
    assert places["frog"] == [30, 31, 32]
    assert (places["horse"], places["airplane"]) == ([339], [404])
    assert "minivan" in COMMITTED["automobile"]["member_names"]
    assert {"schooner", "container ship", "liner", "pirate"} <= set(COMMITTED["ship"]["member_names"])


def test_the_committed_names_are_of_every_class_and_begin_with_wordnets_first() -> None:
    committed = json.loads((FOLDER / "wordnet_names.json").read_text(encoding="utf-8"))
    assert set(committed) == {"source", "licence", "names"}
    names = committed["names"]
    assert names.keys() == {*imagenet_wordnet_ids(), *(id for id, _ in SYNSETS.values())}
    firsts = dict(SYNSETS.values())
    for entry in COMMITTED.values():
        firsts |= dict(zip(entry["members"], entry["member_names"], strict=True))
    assert all(names[id][0] == name for id, name in firsts.items())
    assert all(len(set(each)) == len(each) for each in names.values())


def test_reading_wordnets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.noun"
    path.write_text(
        "  1 This software is  \n  2 \n"
        "00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is  \n"
        "00001930 05 n 03 house_cat 1 Felis_catus 0 b 0 002 @ 00001740 n 0000 @i 00001740 n 0000 | any | cat  \n"
    )
    with pytest.raises(ValueError, match="is not WordNet"):
        read_nouns(path)
    monkeypatch.setattr(subject, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = read_nouns(path)
    assert found.names == {"n00001740": "entity", "n00001930": "house cat"}
    assert found.parents == {"n00001740": (), "n00001930": ("n00001740",)}
    assert found.synonyms["n00001930"] == ("house cat", "Felis catus", "b")
    assert found.licence == "This software is"


def small() -> WordNet:
    """The ten nouns and some under them: a van under the truck, a minivan under both the van and the car."""
    names = dict(SYNSETS.values()) | {"root": "entity"}
    parents: dict[str, tuple[str, ...]] = {synset: ("root",) for synset, _ in SYNSETS.values()} | {"root": ()}
    car, truck = SYNSETS["automobile"][0], SYNSETS["truck"][0]
    for id, above in {
        "van": (truck,),
        "minivan": ("van", car),
        "puppy": ("root", SYNSETS["dog"][0]),
        "pebble": ("root",),
        "both": (car, truck),
    }.items():
        names[id], parents[id] = f"a {id}", above
    return WordNet(names, parents)


def test_the_rule_of_the_map_on_a_little_wordnet() -> None:
    dog = SYNSETS["dog"][0]
    found = cifar10_map(small(), ["minivan", "pebble", dog, "van", "unknown", "puppy"])
    members = {label: entry["members"] for label, entry in found.items() if entry["members"]}
    assert members == {"automobile": ["minivan"], "dog": [dog, "puppy"], "truck": ["van"]}
    assert found["dog"]["member_names"] == ["dog", "a puppy"]
    with pytest.raises(ValueError, match=r"both \(a both\) is as near to automobile as to truck"):
        cifar10_map(small(), ["both"])
    wrong = small()
    with pytest.raises(ValueError, match=r"another noun at n02084071 \('cat' vs 'dog'\)"):
        cifar10_map(WordNet({**wrong.names, "n02084071": "cat"}, wrong.parents), [])


def of_leaves(families: dict[str, list[str]], leaves: dict[str, int]) -> tuple[WordNet, list[str]]:
    """A WordNet of these families with so many leaves in each, and the leaves' ids, family by family."""
    nouns = dict(families)
    for family, count in leaves.items():
        nouns |= {f"{family} {number}": [family] for number in range(count)}
    ids = {noun: f"n{place:08}" for place, noun in enumerate(nouns)}
    parents = {ids[noun]: tuple(ids[each] for each in above) for noun, above in nouns.items()}
    names = {id: noun for noun, id in ids.items()}
    return WordNet(names, parents), [ids[noun] for noun in nouns if noun not in families]


FAMILIES = {"entity": [], "object": ["entity"], **{name: ["object"] for name in ("animal", "tool", "stray")}}
FAMILIES |= {**{name: ["animal"] for name in ("bird", "fish", "game")}, "owl": ["bird"], "grouse": ["game", "bird"]}


def told(groups: tuple[Superclass, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(group.name, group.members) for group in groups]


def test_groups_by_hand() -> None:
    wordnet, ids = of_leaves(FAMILIES, {"owl": 3, "fish": 2, "tool": 4, "stray": 1})
    # The owls are all the birds there are, so their group is the deepest noun, and the root is not the object.
    assert told(superclasses(wordnet, ids, largest=4)) == [
        ("owl", (0, 1, 2)),
        ("fish", (3, 4)),
        ("tool", (5, 6, 7, 8)),
        ("other object", (9,)),
    ]
    assert told(superclasses(wordnet, ids, largest=5)) == [
        ("animal", (0, 1, 2, 3, 4)),
        ("tool", (5, 6, 7, 8)),
        ("other object", (9,)),
    ]
    assert told(superclasses(wordnet, ids)) == [("object", tuple(range(10)))]
    mixed = [ids[9], ids[4], ids[0], ids[1], ids[0]]  # one class twice
    assert told(superclasses(wordnet, mixed, largest=3)) == [("other object", (0, 1)), ("owl", (2, 3, 4))]
    assert superclasses(wordnet, []) == ()
    assert told(superclasses(wordnet, [ids[0]])) == [("owl 0", (0,))]


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, tuple[str, ...]], list[str]]:
    """Any network with one root, and any classes of it, some twice."""
    count = draw(st.integers(1, 40))
    parents: dict[str, tuple[str, ...]] = {"0": ()}
    for place in range(1, count):
        above = draw(st.lists(st.integers(0, place - 1), min_size=1, max_size=3, unique=True))
        parents[str(place)] = tuple(map(str, above))
    names = {id: draw(st.sampled_from(["dog", "bird", "tool", "food", "other dog"])) for id in parents}
    ids = draw(st.lists(st.integers(0, count - 1).map(str), max_size=60))
    return names, parents, ids


@given(found=networks(), largest=st.none() | st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_every_class_is_in_exactly_one_group(
    found: tuple[dict[str, str], dict[str, tuple[str, ...]], list[str]], largest: int | None
) -> None:
    names, parents, ids = found
    wordnet = WordNet(names, parents)
    groups = superclasses(wordnet, ids, largest=largest)
    assert sorted(place for group in groups for place in group.members) == list(range(len(ids)))
    assert [group.members for group in groups] == sorted(tuple(sorted(group.members)) for group in groups)
    assert len({group.name for group in groups}) == len(groups)
    assert groups == superclasses(wordnet, ids, largest=largest)
    for group in groups:
        for place in group.members:
            assert group.id == ids[place] or group.id in wordnet.ancestors(ids[place])
