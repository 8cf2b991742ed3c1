"""WordNet's nouns from a little file whose truth was worked out by hand, damaged files, and groups of classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_wordnet import nouns_file

from diffvit.clip.evaluation import wordnet as module
from diffvit.clip.evaluation.wordnet import UNKNOWN, Superclass, WordNet, find_wordnet, read_wordnet, superclasses
from diffvit.errors import InputError

NOUNS = {
    "entity": [],
    "animal": ["entity"],
    "dog": ["animal", "pet"],
    "pet": ["animal"],
    "working dog": ["dog"],
    "husky": ["working dog", "pet"],
    "Balto": ["@i husky"],
    "thing": ["entity"],
}


def small(folder: Path) -> tuple[WordNet, dict[str, str]]:
    content, ids = nouns_file(NOUNS)
    (folder / "data.noun").write_bytes(content)
    return read_wordnet(folder / "data.noun"), ids


def test_names_parents_and_paths(tmp_path: Path) -> None:
    found, ids = small(tmp_path)
    assert found.names == {ids[noun]: noun for noun in NOUNS}
    assert found.parents[ids["entity"]] == ()
    assert found.parents[ids["husky"]] == (ids["working dog"], ids["pet"])
    assert found.parents[ids["Balto"]] == (ids["husky"],)
    nearest = ["husky", "working dog", "pet", "dog", "animal", "entity"]
    assert [found.names[id] for id in found.ancestors(ids["Balto"])] == nearest
    assert found.ancestors(ids["entity"]) == []
    tree = ["entity", "animal", "dog", "working dog", "husky", "Balto"]
    assert [found.names[id] for id in found.path(ids["Balto"])] == tree
    assert found.path(ids["entity"]) == [ids["entity"]]
    for ask in (found.ancestors, found.path):
        with pytest.raises(KeyError):
            ask("n99999999")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTALLED", tmp_path / "debian")
    for name in ("WNHOME", "WNSEARCHDIR"):
        monkeypatch.delenv(name, raising=False)
    assert find_wordnet() is None
    for folder in ("debian", "home/dict", "search"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "data.noun").touch()
    assert find_wordnet() == tmp_path / "debian" / "data.noun"
    monkeypatch.setenv("WNHOME", str(tmp_path / "home"))
    assert find_wordnet() == tmp_path / "home" / "dict" / "data.noun"
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "search"))
    assert find_wordnet() == tmp_path / "search" / "data.noun"
    (tmp_path / "search" / "data.noun").unlink()
    assert find_wordnet() == tmp_path / "home" / "dict" / "data.noun"


CONTENT = nouns_file(NOUNS)[0]
FIRST = CONTENT.count(b"\n  ") + 2  # the line of the first noun
IDS = nouns_file(NOUNS)[1]


def without_last_lines(count: int) -> bytes:
    return b"".join(CONTENT.splitlines(keepends=True)[:-count])


def circle() -> bytes:
    return nouns_file({"entity": [], "a": ["b"], "b": ["c"], "c": ["a"]})[0]


def endless() -> bytes:
    return nouns_file({"0": [], **{str(n): [str(n - 1)] for n in range(1, 300)}})[0]


DAMAGED: list[tuple[bytes, str]] = [
    (b"", "is not a file of WordNet: no licence at its top names a version"),
    (b"\x7fELF" + bytes(9000), "is not a file of WordNet"),
    (CONTENT[CONTENT.index(IDS["entity"][1:].encode()) :], "is not a file of WordNet"),
    (nouns_file(NOUNS, version="3.1")[0], "is of another version of WordNet ('3.1' vs '3.0')"),
    (nouns_file(NOUNS, version="2.\xe91")[0], "is of another version of WordNet"),
    (CONTENT[:-30], "is cut short: its last line has no end"),
    (without_last_lines(2), f"is not whole: others name what is missing (2, as {IDS['Balto']})"),
    (without_last_lines(len(NOUNS)), "is damaged: 0 nouns have no hypernym (vs one)"),
    (CONTENT.replace(b"\n", b"\r\n"), f"is damaged: not a noun in its place (line {FIRST})"),
    (CONTENT.replace(b" n 02 dog", b" v 02 dog"), f"is damaged: not a noun in its place (line {FIRST + 2})"),
    (CONTENT.replace(b" n 02 dog", b" n zz dog"), f"is damaged: not a noun in its place (line {FIRST + 2})"),
    (CONTENT.replace(b" n 02 dog", b" n ff dog"), f"is damaged: not a noun in its place (line {FIRST + 2})"),
    (CONTENT.replace(b"dog 0", b"d\xc3\xb6g 0", 1), f"is damaged: not a noun in its place (line {FIRST + 2})"),
    (CONTENT.replace(b" 02 animal", b" 02 an_animal"), f"is damaged: not a noun in its place (line {FIRST + 2})"),
    (CONTENT.replace(b" @i 0", b" @i \x1b"), f"is damaged: not a noun in its place (line {FIRST + 6})"),
    (CONTENT + b"\n", "is damaged: not a noun in its place"),
    (CONTENT + b"00000000 05 n 01 late 0 000 | late  \n", "is damaged: not a noun in its place"),
    (circle(), "is damaged: the hypernyms of "),
    (endless(), "is damaged: the hypernyms of "),
    (nouns_file({"a": [], "b": []})[0], "is damaged: 2 nouns have no hypernym (vs one)"),
]


@pytest.mark.parametrize(("content", "why"), DAMAGED, ids=range(len(DAMAGED)))
def test_files_that_are_not_it(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "data.noun"
    path.write_bytes(content)
    refused(path, why)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(CONTENT)
        file.truncate(70 * 2**20)


UNREADABLE: list[tuple[Callable[[Path], object], str]] = [
    (huge, "is too large for WordNet's nouns (over 64 MiB)"),
    (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
    (lambda path: None, "cannot be read (No such file or directory)"),
]


@pytest.mark.parametrize(("make", "why"), UNREADABLE)
def test_files_that_cannot_be_read(make: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    make(tmp_path / "data.noun")
    refused(tmp_path / "data.noun", why)


def refused(path: Path, why: str) -> None:
    with pytest.raises(InputError) as caught:
        read_wordnet(path)
    assert str(caught.value).startswith(f"{path}: {why}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("the package wordnet-base.")


def of_leaves(families: dict[str, list[str]], leaves: dict[str, int]) -> tuple[WordNet, list[str]]:
    """A WordNet of these families with so many leaves in each, and the leaves' ids, family by family."""
    nouns = dict(families)
    for family, count in leaves.items():
        nouns |= {f"{family} {number}": [family] for number in range(count)}
    ids = {noun: f"n{place:08}" for place, noun in enumerate(nouns)}
    parents = {ids[noun]: tuple(ids[each] for each in above) for noun, above in nouns.items()}
    names = {id: noun for noun, id in ids.items()}
    return WordNet(names, parents), [ids[noun] for noun in nouns if noun not in families]


FAMILIES = {
    "entity": [],
    "object": ["entity"],
    "animal": ["object"],
    "bird": ["animal"],
    "owl": ["bird"],
    "fish": ["animal"],
    "tool": ["object"],
    "stray": ["object"],
    "game": ["animal"],
    "grouse": ["game", "bird"],
}


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
    mixed = [ids[9], "n77777777", ids[4], ids[0], "what", ids[1], ids[0]]
    assert told(superclasses(wordnet, mixed, largest=3)) == [
        ("other object", (0, 2)),
        ("not in WordNet", (1, 4)),
        ("owl", (3, 5, 6)),
    ]
    assert told(superclasses(wordnet, mixed, largest=2)) == [
        ("other object", (0,)),
        ("not in WordNet", (1, 4)),
        ("other animal", (2, 5)),
        ("owl 0", (3, 6)),  # the same class twice
    ]
    assert superclasses(wordnet, []) == ()
    assert told(superclasses(wordnet, ["x"])) == [(UNKNOWN, (0,))]
    assert told(superclasses(wordnet, [ids[0]])) == [("owl 0", (0,))]


def test_one_left_over_goes_where_another_hypernym_leads() -> None:
    wordnet, ids = of_leaves(FAMILIES, {"bird": 3, "fish": 4, "grouse": 1})
    tree = ["entity", "object", "animal", "game", "grouse", "grouse 0"]
    assert [wordnet.names[id] for id in wordnet.path(ids[7])] == tree
    assert told(superclasses(wordnet, ids, largest=5)) == [("bird", (0, 1, 2, 7)), ("fish", (3, 4, 5, 6))]


def test_two_nouns_of_one_name_are_told_apart() -> None:
    names = {"r": "thing", "a": "solid", "b": "fluid", "c": "food", "d": "food"}
    parents: dict[str, tuple[str, ...]] = {"r": (), "a": ("r",), "b": ("r",), "c": ("a",), "d": ("b",)}
    for leaf in "1234":
        names[leaf], parents[leaf] = leaf, (("c",) if leaf < "3" else ("d",))
    found = superclasses(WordNet(names, parents), list("1234"), largest=2)
    assert told(found) == [("food (solid)", (0, 1)), ("food (fluid)", (2, 3))]


def test_a_class_above_another_class_is_a_class() -> None:
    wordnet, leaves = of_leaves(FAMILIES, {"owl": 3, "fish": 3})
    above = {name: id for id, name in wordnet.names.items()}
    ids = [*leaves, above["bird"], above["animal"], above["owl"]]
    found = superclasses(wordnet, ids, largest=4)
    assert told(found) == [("owl", (0, 1, 2, 8)), ("fish", (3, 4, 5)), ("other animal", (6, 7))]


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, tuple[str, ...]], list[str]]:
    """Any network with one root, and any classes of it, some unknown, some twice."""
    count = draw(st.integers(1, 40))
    parents: dict[str, tuple[str, ...]] = {"0": ()}
    for place in range(1, count):
        above = draw(st.lists(st.integers(0, place - 1), min_size=1, max_size=3, unique=True))
        parents[str(place)] = tuple(map(str, above))
    names = {id: draw(st.sampled_from(["dog", "bird", "tool", "food", "other dog"])) for id in parents}
    ids = draw(st.lists(st.integers(0, count + 3).map(str), max_size=60))
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
            if group.id:
                assert group.id == ids[place] or group.id in wordnet.ancestors(ids[place])
            else:
                assert group.name == UNKNOWN
                assert ids[place] not in wordnet.names
