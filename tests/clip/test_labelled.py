"""Labelled pictures from folders of every kind, from CIFAR-10, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from class_folders import class_folders, picture

from diffvit.clip import labelled as subject
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import Labelled, cifar10_members, imagenet_groups, open_labelled
from diffvit.data.cifar10 import CLASSES
from diffvit.data.images import Images, decode
from diffvit.errors import ConfigError, InputError


def test_a_folder_per_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"sea_lion": 2, "Bus": 1})
    picture(tmp_path / "sea_lion" / "deeper" / "x.bmp", 7)
    (tmp_path / "sea_lion" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "sea_lion" / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").write_text("x")
    found = open_labelled(tmp_path)
    assert (found.name, found.wordnet_ids) == (f"folder {tmp_path.name}", None)
    assert found.classes == ("Bus", "sea lion")
    assert found.places == ("Bus/0.png", "sea_lion/0.png", "sea_lion/1.png", "sea_lion/deeper/x.bmp")
    assert found.labels == (0, 1, 1, 1)
    for number, place in enumerate(found.places):
        assert np.array_equal(found.read(number), decode(tmp_path / place, name=place))


def test_a_stamp_tells_a_changed_file_and_another_folder(tmp_path: Path) -> None:
    one, two = (open_labelled(class_folders(tmp_path / name, {"a": 2})) for name in ("one", "two"))
    assert one.places == two.places
    assert not set(one.stamps) & set(two.stamps)
    picture(tmp_path / "one" / "a" / "1.png", 99)
    now = open_labelled(tmp_path / "one")
    assert [old == new for old, new in zip(one.stamps, now.stamps, strict=True)] == [True, False]


def test_imagenets_layout_has_its_names_and_its_twins(tmp_path: Path) -> None:
    ids = imagenet_wordnet_ids()
    assert (len(ids), ids[0], ids == tuple(sorted(ids))) == (1000, "n01440764", True)
    class_folders(tmp_path, {ids[place]: 1 for place in (0, 657, 744, 207)})
    found = open_labelled(tmp_path)
    assert found.wordnet_ids == (ids[0], ids[207], ids[657], ids[744])
    assert found.classes == ("tench", "Golden Retriever", "missile", "missile")
    assert found.classes == tuple(open_clip.IMAGENET_CLASSNAMES[place] for place in (0, 207, 657, 744))
    assert imagenet_groups(found) == ([0, 1, 2, 3], [[0], [207], [657], [744]])
    few = found.only([3, 0])
    assert (few.wordnet_ids, few.labels) == ((ids[744], ids[0]), (1, 0))
    assert imagenet_groups(few) == ([0, 1], [[744], [0]])


@pytest.mark.parametrize("other", ["n99999999", "tench"])
def test_one_folder_that_is_not_imagenets_makes_all_plain(tmp_path: Path, other: str) -> None:
    class_folders(tmp_path, {"n01440764": 1, other: 1})
    found = open_labelled(tmp_path)
    assert (found.classes, found.wordnet_ids) == (("n01440764", other), None)
    with pytest.raises(InputError, match=rf"none of ImageNet-1k's \({other}\)"):
        found.named()
    assert found.named(("tench", "cat")).classes == ("tench", "cat")
    assert open_labelled(class_folders(tmp_path / "plain", {"n1": 1, "tench": 1})).named().classes == ("n1", "tench")


def test_only_and_at_most(tmp_path: Path) -> None:
    found = open_labelled(class_folders(tmp_path, {"a": 7, "b": 2, "c": 3}))
    few = found.at_most(3)
    assert few.places == ("a/0.png", "a/2.png", "a/4.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png", "c/2.png")
    assert few.at_most(9).places == few.places
    some = found.only([2, 0]).at_most(2)
    assert (some.classes, some.labels) == (("c", "a"), (1, 1, 0, 0))
    assert some.places == ("a/0.png", "a/3.png", "c/0.png", "c/1.png")
    assert some.stamps[1] == found.stamps[3]
    assert np.array_equal(some.read(1), found.read(3))
    assert np.array_equal(some.read(2), found.read(9))


def test_cifar10_is_as_its_source_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = []

    def load(source: str, split: str, *, data_dir: Path | None, image_size: int) -> Images:
        asked.append((source, split, data_dir, image_size))
        return Images(pixels, torch.tensor([3, 4, 0, 3]), CLASSES, "CIFAR-10 (JPEG)", "")

    monkeypatch.setattr(subject.sources, "load", load)
    found = open_labelled("cifar10")
    open_labelled("cifar10", split="train", data_dir=tmp_path / "other")
    assert asked == [("cifar10", "test", None, 32), ("cifar10", "train", tmp_path / "other", 32)]
    assert (found.name, found.classes, found.labels) == ("CIFAR-10 (JPEG) test", tuple(CLASSES), (3, 4, 0, 3))
    assert found.places == ("test/00000", "test/00001", "test/00002", "test/00003")
    assert found.stamps[2] == hashlib.sha256(pixels[2].numpy().tobytes()).hexdigest()
    assert np.array_equal(found.read(2), pixels[2].numpy())
    places, groups = imagenet_groups(found)
    assert [CLASSES[place] for place in places] == [name for name in CLASSES if name != "deer"]
    assert all(groups)


REFUSED = {
    "no such folder": ("gone", "gone: no such folder. Give cifar10, or a folder with a folder per class."),
    "a file": ("file", "file: is not a folder. Give cifar10"),
    "no classes": ("flat", "flat: has no folders of classes. It must have"),
    "an empty class": ("empty", "empty/b: holds no images. Put some there"),
    "splits": ("splits", "splits: holds splits, not classes (train, val). Give splits/val."),
    "only a training split": ("half", "half: holds splits, not classes (train). Give half/train."),
    "the same name": ("same", "same/a_b: is the same class name as a b ('a b', with spaces for _). Rename one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_folder_of_classes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    picture(Path("flat/a.png"), 0)
    class_folders(Path("empty"), {"a": 1})
    Path("empty/b").mkdir()
    class_folders(Path("splits/train"), {"a": 1})
    class_folders(Path("splits/val"), {"a": 1})
    class_folders(Path("half/train"), {"a": 1})
    class_folders(Path("same"), {"a_b": 1, "a b": 1})
    class_folders(Path("train-as-a-class"), {"train": 1, "bus": 1})
    assert open_labelled("train-as-a-class").classes == ("bus", "train")
    where, line = REFUSED[case]
    with pytest.raises(InputError) as caught:
        open_labelled(where)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def a_set(*classes: str) -> Labelled:
    return Labelled("a set", classes, None, (), (), (), lambda _: np.zeros((3, 1, 1), np.uint8))


def test_members_of_cifar10_are_imagenets_and_apart() -> None:
    members = cifar10_members()
    assert list(members) == CLASSES
    assert {each for group in members.values() for each in group} <= set(imagenet_wordnet_ids())
    assert imagenet_groups(a_set("TENCH", "my dog", "goldfish", "missile")) == ([0, 2], [[0], [1]])
    places, groups = imagenet_groups(a_set("dog", "deer", "cat"))
    assert places == [0, 2]
    assert [len(group) for group in groups] == [len(members["dog"]), len(members["cat"])]


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (("x", "y"), r"a set: shares no class with ImageNet \(found x, y\). Allowed are folders named by WordNet ids"),
        (tuple("uvwxyz"), r"shares no class with ImageNet \(found u, v, w, x, y, ...\)"),
        (("x", "tench"), r"shares one class with ImageNet \(found x, tench\)"),
        (("Tench", "tench", "goldfish"), r"has two classes for one of ImageNet's \(Tench and tench\). Rename one"),
    ],
)
def test_label_spaces_that_do_not_meet(classes: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        imagenet_groups(a_set(*classes))
