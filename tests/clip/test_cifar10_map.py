"""The map from CIFAR-10 to ImageNet's classes: the committed one, its rule on a little WordNet, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_wordnet import nouns_file

from diffvit.clip.evaluation import cifar10_map as module
from diffvit.clip.evaluation import wordnet as wordnet_module
from diffvit.clip.evaluation.cifar10_map import BLOCK, FILE, SYNSETS, cifar10_map, imagenet_ids, main, table
from diffvit.clip.evaluation.wordnet import WordNet, read_wordnet
from diffvit.data.cifar10_rows import CLASSES
from diffvit.errors import InputError
from diffvit.reporting.generated import markers

START, END = markers(BLOCK)

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_committed_map_is_sensible() -> None:
    ids = imagenet_ids()
    assert list(COMMITTED) == list(SYNSETS)
    assert [(entry["synset"], entry["name"]) for entry in COMMITTED.values()] == list(SYNSETS.values())
    members = [id for entry in COMMITTED.values() for id in entry["members"]]
    assert len(members) == len(set(members))
    assert set(members) <= set(ids)
    for entry in COMMITTED.values():
        assert entry["members"] == sorted(entry["members"], key=ids.index)
        assert len(entry["members"]) == len(entry["member_names"])
    sizes = {label: len(entry["members"]) for label, entry in COMMITTED.items()}
    assert sizes == {
        **{"airplane": 1, "automobile": 10, "bird": 59, "cat": 5, "deer": 0},
        **{"dog": 118, "frog": 3, "horse": 1, "ship": 15, "truck": 7},
    }
    # ImageNet's own order: dogs are 151 to 268, domestic cats 281 to 285, frogs 30 to 32, the sorrel is 339.
    places = {label: [ids.index(id) for id in entry["members"]] for label, entry in COMMITTED.items()}
    assert places["dog"] == list(range(151, 269))
    assert places["cat"] == list(range(281, 286))
    assert places["frog"] == [30, 31, 32]
    assert (places["horse"], places["airplane"]) == ([339], [404])
    assert "minivan" in COMMITTED["automobile"]["member_names"]
    assert {"schooner", "container ship", "liner", "pirate"} <= set(COMMITTED["ship"]["member_names"])


def test_the_page_shows_it() -> None:
    page = (ROOT / "docs" / "clip.md").read_text(encoding="utf-8")
    assert f"{START}\n{table(COMMITTED)}\n{END}" in page
    assert "| dog | dog (n02084071) | 118 | Chihuahua, " in page
    assert "| deer | deer (n02430045) | 0 | none |" in page


def test_labels_are_in_cifar10s_order() -> None:
    assert list(SYNSETS) == CLASSES


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


def test_the_rule_on_a_little_wordnet() -> None:
    dog = SYNSETS["dog"][0]
    found = cifar10_map(small(), ["minivan", "pebble", dog, "van", "unknown", "puppy"])
    members = {label: entry["members"] for label, entry in found.items() if entry["members"]}
    assert members == {"automobile": ["minivan"], "dog": [dog, "puppy"], "truck": ["van"]}
    assert found["dog"]["member_names"] == ["dog", "a puppy"]


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"both \(a both\) is as near to automobile as to truck"):
        cifar10_map(small(), ["both"])
    wrong = small()
    renamed = WordNet({**wrong.names, "n02084071": "cat"}, wrong.parents)
    with pytest.raises(InputError, match=r"another noun at n02084071 \('cat' vs 'dog'\)"):
        cifar10_map(renamed, [])


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A WordNet whose offsets are its own, with the ten nouns under their names; the command's arguments."""
    nouns = {"entity": [], **{name: ["entity"] for _, name in SYNSETS.values()}, "puppy": ["dog"], "rock": ["entity"]}
    content, ids = nouns_file(nouns)
    (tmp_path / "data.noun").write_bytes(content)
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    monkeypatch.setattr(module, "SYNSETS", {label: (ids[name], name) for label, (_, name) in SYNSETS.items()})
    monkeypatch.setattr(module, "imagenet_ids", lambda: (ids["rock"], ids["puppy"]))
    (tmp_path / "page.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert len(read_wordnet(tmp_path / "data.noun").names) == len(nouns)
    return ["--file", str(tmp_path / "map.json"), "--page", str(tmp_path / "page.md")]


def test_the_command_writes_and_checks(at_hand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "map.json", tmp_path / "page.md"
    assert main([*at_hand, "--check"]) == 1
    assert capsys.readouterr().out.count("out of date: ") == 2
    assert not file.exists()
    assert main(at_hand) == 0
    assert capsys.readouterr().out.count("updated: ") == 2
    found = json.loads(file.read_text())
    assert {label: entry["member_names"] for label, entry in found.items() if entry["members"]} == {"dog": ["puppy"]}
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n| CIFAR-10 |")
    assert text.endswith(f"|\n{END}\nafter\n")
    assert main([*at_hand, "--check"]) == 0
    assert main(at_hand) == 0
    assert capsys.readouterr().out == ""
    file.write_text(file.read_text().replace("puppy", "poppy"))
    assert main([*at_hand, "--check"]) == 1
    assert capsys.readouterr().out == f"out of date: {file}: is not made from WordNet. Run: make docs\n"


def test_a_page_without_markers(at_hand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text(f"{END} {START}")
    assert main(at_hand) == 3
    assert "once each" in capsys.readouterr().err
    (tmp_path / "page.md").unlink()
    assert main(at_hand) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "map.json").exists()


def test_without_wordnet(
    at_hand: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.noun").unlink()
    monkeypatch.setattr(wordnet_module, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.delenv("WNHOME", raising=False)
    (tmp_path / "map.json").write_text("kept")
    assert main([*at_hand, "--check"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("not checked: map.json, because WordNet is not installed. Install it with apt-get")
    assert said.count("\n") == 1
    assert main(at_hand) == 4
    assert capsys.readouterr().err.startswith("error: map.json: is left as it is: WordNet is not installed. Install")
    assert (tmp_path / "map.json").read_text() == "kept"
