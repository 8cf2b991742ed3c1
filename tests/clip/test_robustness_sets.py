"""Sets of natural distribution shift: layouts; accuracies against float64 loops over logits of open_clip and timm."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import timm.data
import torch
from class_folders import class_folders, picture
from PIL import Image, ImageOps
from small_clip import NAME, openai_state, register, small_file, small_model

from diffvit.cli.main import run
from diffvit.clip import published
from diffvit.clip import robustness as subject
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import Labelled, imagenet_groups, objectnet, open_labelled, subsets
from diffvit.clip.robustness import SETS, find_sets, robustness_picture
from diffvit.data.images import decode
from diffvit.errors import InputError
from diffvit.reporting.stats import wilson

Captured = pytest.CaptureFixture[str]
A, R = (sorted(subsets()[name]) for name in ("imagenet-a", "imagenet-r"))
OBJECTS = {entry["folder"]: entry["ids"] for entry in objectnet().values()}


def empty(root: Path, folders: list[str], file: str = "0.png") -> Path:
    """A file in each folder that is no picture: it is not opened."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / file).write_bytes(b"x")
    return root


def bordered(root: Path, *, of: Path | None = None) -> Path:
    """ObjectNet's layout: all mapped objects with a picture in a red border, and one object that ImageNet lacks."""
    for number, (folder, ids) in enumerate(OBJECTS.items()):
        inner = picture(root / folder / "0.png", 1000 + number) if of is None else of / ids[-1] / "0.png"
        (root / folder).mkdir(parents=True, exist_ok=True)
        ImageOps.expand(Image.open(inner), 2, (255, 0, 0)).save(root / folder / "0.png")
    picture(root / "squeegee" / "0.png", 1)
    return root


def test_the_lists_of_classes() -> None:
    order = imagenet_wordnet_ids()
    for name in subsets():
        timms = Path(timm.data.__file__).parent / "_info" / f"{name.replace('-', '_')}_synsets.txt"
        assert subsets()[name] == set(timms.read_text().split())
        assert len(subsets()[name]) == published.table()["sets"][name]["classes"] == 200
    mapped = [wordnet_id for ids in OBJECTS.values() for wordnet_id in ids]
    assert len(OBJECTS) == published.table()["sets"]["objectnet"]["classes"] == 113
    assert len(mapped) == len(set(mapped)) == 125
    assert set(mapped) <= set(order)
    places = {folder: [order.index(each) for each in OBJECTS[folder]] for folder in ("backpack", "chair", "wok")}
    assert places == {"backpack": [414], "chair": [423, 559, 765], "wok": [909]}


def test_imagenet_v2s_folders_are_places_among_imagenets_classes(tmp_path: Path) -> None:
    found = open_labelled(empty(tmp_path / "v2", [str(place) for place in range(1000)]))
    assert found.wordnet_ids == imagenet_wordnet_ids()
    assert found.classes == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert found.labels == tuple(range(1000))
    assert found.places[999] == "999/0.png"
    assert imagenet_groups(found)[1] == [[place] for place in range(1000)]
    assert (published.part_of(found), published.set_of(found)) == ("imagenet-v2", None)
    ordinary = open_labelled(empty(tmp_path / "digits", [str(digit) for digit in range(10)]))
    assert (ordinary.classes[3], ordinary.wordnet_ids, published.part_of(ordinary)) == ("3", None, None)


def test_objectnets_objects_that_imagenet_has_without_their_border(tmp_path: Path) -> None:
    found = open_labelled(bordered(tmp_path / "images"))
    assert (len(found), len(found.classes), found.wordnet_ids) == (113, 113, None)
    assert found.classes[:2] == ("alarm clock", "backpack")
    order = imagenet_wordnet_ids()
    assert imagenet_groups(found)[1] == [[order.index(each) for each in OBJECTS[name]] for name in sorted(OBJECTS)]
    whole = decode(tmp_path / "images" / found.places[5], name="5")
    assert (whole[0, :2] == 255).all()
    assert np.array_equal(found.read(5), whole[:, 2:-2, 2:-2])
    assert (published.part_of(found), published.set_of(found)) == ("objectnet", None)
    (tmp_path / "images" / "wok").rename(tmp_path / "images" / "pan")
    ordinary = open_labelled(tmp_path / "images")
    assert (len(ordinary.classes), published.part_of(ordinary)) == (114, None)
    assert ordinary.stamps[5] != found.stamps[5]  # of other pixels
    assert np.array_equal(ordinary.read(5), whole)


def images(ids: tuple[str, ...], count: int, place: str = "{}/{}.JPEG") -> Labelled:
    labels = tuple(number % len(ids) for number in range(count))
    places = tuple(place.format(ids[label], number) for number, label in enumerate(labels))
    return Labelled("a set", ids, ids, labels, places, places, lambda _: pytest.fail("no image is read"))


def test_whole_sets_and_parts_of_sets() -> None:
    order = imagenet_wordnet_ids()
    for ids, count, place, part, whole in (
        (tuple(A), 7_500, "{}/{}.jpg", "imagenet-a", "imagenet-a"),
        (tuple(A), 7_499, "{}/{}.jpg", "imagenet-a", None),
        (tuple(A[1:]), 7_500, "{}/{}.jpg", None, None),
        (tuple(R), 30_000, "{}/{}.jpg", "imagenet-r", "imagenet-r"),
        (tuple(R), 7_500, "{}/{}.jpg", "imagenet-r", None),
        (order[:200], 7_500, "{}/{}.jpg", None, None),
        (order, 50_889, "{}/sketch_{}.JPEG", "imagenet-sketch", "imagenet-sketch"),
        (order, 10_000, "{}/sketch_{}.JPEG", "imagenet-sketch", None),
        (order, 10_000, "{}/{}.jpeg", "imagenet-v2", "imagenet-v2"),
        (order, 9_999, "{}/{}.jpeg", None, None),
        (order, 7_500, "{}/{}.jpeg", None, None),
        (order, 50_000, "{}/ILSVRC2012_val_{:08}.JPEG", "imagenet", "imagenet"),
        (order, 10_000, "{}/ILSVRC2012_val_{:08}.JPEG", None, None),
    ):
        found = images(ids, count, place)
        assert (published.part_of(found), published.set_of(found)) == (part, whole), (count, place)


def test_published_points() -> None:
    for name in SETS:
        found = {point["model"]: point for point in published.points(name)}
        clip = found["RN50/openai"]
        assert (clip["imagenet"], clip["zero_shot"]) == (0.5982, True)
        assert clip["matched"] is (name in ("imagenet-v2", "imagenet-sketch"))
        supervised = [point for point in found.values() if not point["zero_shot"]]
        assert all(point["matched"] and point["accuracy"] < point["imagenet"] for point in supervised)
    known = {point["model"]: point for point in published.points("imagenet-a")}["resnet50.tv2_in1k"]
    assert (known["accuracy"], known["imagenet"]) == (0.1464, 0.9466)
    of = published.expected("tv-v2", "imagenet-a")
    assert of is not None
    assert of["accuracy"] == 0.1464


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-A, ObjectNet and a folder that is no set, their classes of ImageNet, and small models' weights."""
    root = tmp_path_factory.mktemp("world")
    (root / "w.pt").write_bytes(small_file())
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), root / "r.pth")
    mapped = {wordnet_id for ids in OBJECTS.values() for wordnet_id in ids}
    class_folders(root / "val", dict.fromkeys(sorted({*A, *mapped}), 1))
    for number, wordnet_id in enumerate(A):
        picture(root / "sets" / "adversarial" / wordnet_id / "0.png", 2000 + number)
    bordered(root / "sets" / "objectnet-1.0" / "images", of=root / "val")
    empty(root / "sets" / "others", R[:7])
    empty(root / "sets" / "train", R)
    return root


@pytest.fixture
def _there(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which the world's files lie."""
    monkeypatch.chdir(tmp_path)
    register(tmp_path, monkeypatch)
    for file in world.iterdir():
        Path(file.name).symlink_to(file)


SMALL = ["clip", "evaluate", "--model", NAME, "--weights", "w.pt", "--templates", "single"]
COMMAND = [*SMALL, "--supervised", "timm:test_resnet", "--supervised-weights", "r.pth", "--json"]


def logits(files: list[Path], names: list[str]) -> tuple[list[list[float]], list[list[float]]]:
    """In float64: CLIP's for these names, by open_clip alone, and the classifier's, by timm alone."""
    clip: Any = small_model()
    clip.load_state_dict({name: tensor.float() for name, tensor in openai_state(clip, {}).items()})
    transform: Any = open_clip.image_transform(64, is_train=False)
    rows: Any = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, names, [lambda c: f"a photo of a {c}."])
    resnet: Any = timm.create_model("test_resnet", pretrained=False)
    resnet.load_state_dict(torch.load("r.pth"))
    config = timm.data.resolve_data_config({}, model=resnet, use_test_size=True)
    own: Any = timm.data.create_transform(**config, is_training=False)
    pictures = [Image.open(file) for file in files]
    with torch.no_grad():
        features = clip.double().encode_image(torch.stack([transform(each) for each in pictures]).double(), True)
        second = resnet.double().eval()(torch.stack([own(each) for each in pictures]).double())
    return (features @ rows.double()).tolist(), second.tolist()


def right(found: list[list[float]], labels: list[int], groups: list[list[int]] | None = None) -> int:
    """How many rows are right among the groups of columns, by sums of exponentials; without groups among columns."""
    count = 0
    for row, label in zip(found, labels, strict=True):
        chances = row if groups is None else [sum(np.exp(row[place]) for place in group) for group in groups]
        count += max(range(len(chances)), key=lambda place: chances[place]) == label
    return count


@pytest.mark.usefixtures("_there")
def test_both_accuracies_are_among_a_sets_classes(capsys: Captured) -> None:
    assert run([*COMMAND, "val", "--robustness", "sets"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert [each["set"] for each in found["sets"]] == ["imagenet-a", "objectnet"]
    assert "200 of 7,500 images" in out
    assert "sets/others, 7 images of 7 classes" in out
    assert "sets/train" not in out
    order = imagenet_wordnet_ids()
    names = dict(zip(order, open_clip.IMAGENET_CLASSNAMES, strict=True))
    objects = sorted(OBJECTS)
    titles = {entry["folder"]: name for name, entry in objectnet().items()}
    inner = Path("inner")
    for folder in objects:  # without the border
        (inner / folder).mkdir(parents=True)
        ImageOps.crop(Image.open(f"sets/objectnet-1.0/images/{folder}/0.png"), 2).save(inner / folder / "0.png")
    wanted = {
        "imagenet-a": (Path("sets/adversarial"), A, {wordnet_id: [wordnet_id] for wordnet_id in A}, names),
        "objectnet": (inner, objects, OBJECTS, titles),
    }
    for each in found["sets"]:
        root, folders, ids, called = wanted[each["set"]]
        groups = [[order.index(one) for one in ids[folder]] for folder in folders]
        both = [
            ([root / folder / "0.png" for folder in folders], list(range(len(folders)))),
            tuple(zip(*((Path("val", one, "0.png"), n) for n, f in enumerate(folders) for one in ids[f]), strict=True)),
        ]
        clip, resnet = logits([*both[0][0], *both[1][0]], [called[folder] for folder in folders])
        counts, start = [], 0
        for files, labels in both:
            here = slice(start, start := start + len(files))
            counts.append([right(clip[here], labels), right(resnet[here], labels, groups)])
        for place, model in enumerate(each["models"]):
            for of, good, (files, _) in zip((model, model["imagenet"]), counts, both, strict=True):
                interval, among = wilson(good[place], len(files)), len(files)
                shown = (of["images"], of["accuracy"], of["low"], of["high"])
                assert shown == (among, interval.estimate, interval.low, interval.high)
        assert (each["points"], [model["published"] for model in each["models"]]) == ([], [None, None])
    assert any(model["accuracy"] for each in found["sets"] for model in each["models"])
    files = [Path(f"clip-robustness/robustness.{end}") for end in ("png", "csv", "json")]
    assert found["files"] == list(map(str, files))
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [(row["set"], float(row["imagenet_accuracy"])) for row in rows] == [
        (each["set"], model["imagenet"]["accuracy"]) for each in found["sets"] for model in each["models"]
    ]
    assert json.loads(files[2].read_bytes())["sets"] == found["sets"]


@pytest.mark.usefixtures("_there")
def test_a_whole_set_with_an_unreadable_picture_has_published_points(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(published.table()["sets"]["imagenet-a"], "images", 200)
    monkeypatch.setattr(subject, "set_of", lambda _: "imagenet")
    shutil.copytree("sets/adversarial", "some")
    Path(f"some/{A[0]}/0.png").write_bytes(b"")
    picture(Path(f"some/{A[1]}/1.png"), 1)
    assert run([*COMMAND, "val", "--robustness", "some", "--limit", "1"]) == 3
    out, err = capsys.readouterr()
    [found] = json.loads(out.splitlines()[-1])["sets"]
    assert (found["images"], found["unreadable"], found["models"][0]["images"]) == (200, 1, 199)
    assert found["models"][0]["imagenet"]["images"] == 200
    assert [line.partition(":")[0] for line in err.splitlines() if " of " not in line or "error" in line] == ["error"]
    assert found["points"] == published.points("imagenet-a")
    rows = list(csv.DictReader(Path("clip-robustness/robustness.csv").read_text().splitlines()))
    sources = [row["source"] for row in rows]
    assert (len(rows), sources.count("measured")) == (2 + len(found["points"]), 2)
    assert "part of" not in out


@pytest.mark.parametrize(
    ("more", "code", "why"),
    [
        (["val", "--robustness", "gone"], 3, "gone: no such folder"),
        (["val", "--robustness", "w.pt"], 3, "w.pt: is not a folder"),
        (["val", "--robustness", "sets/others"], 3, "sets/others: holds none of ImageNet-V2 (matched frequency), "),
        (["val", "--robustness", "nothing"], 3, "nothing: holds none of"),
        (["val", "--robustness", "twice"], 3, "twice/b: is ImageNet-R, and so is"),
        (["val", "--robustness", "hole"], 3, f"hole/{A[-1]}: holds no images"),
        (["few", "--robustness", "sets"], 3, "folder few: lacks 195 of the 200 classes of ImageNet-A"),
        (["nothing", "--robustness", "sets"], 3, "nothing: has no folders of classes"),
        (["names", "--robustness", "sets"], 3, "folder names: lacks 200 of the 200 classes of ImageNet-A"),
        (["val", "--robustness", "sets", "--compare"], 2, "--robustness: does not go with --compare"),
        (["val", "--robustness", "sets", "--tasks", "linear-probe"], 2, "--robustness: does not go with --tasks"),
        (["val", "--robustness", "sets", "--supervised", "cifar10-vit"], 2, "has other classes"),
    ],
)
@pytest.mark.usefixtures("_there")
def test_what_is_wrong_is_one_line_and_its_code(more: list[str], code: int, why: str, capsys: Captured) -> None:
    Path("nothing").mkdir()
    empty(Path("twice/a"), R)
    empty(Path("twice/b"), R)
    empty(Path("hole"), A[:-1])
    Path("hole", A[-1]).mkdir()
    empty(Path("few"), A[:5])
    empty(Path("names"), ["cat", "dog"])
    own = SMALL if "cifar10-vit" in more else COMMAND
    assert run([*own, *more]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1
    assert not Path("clip-robustness").exists()


def test_the_picture_has_a_panel_for_each_set_and_all_points() -> None:
    sets = []
    for name in SETS:
        known = published.table()["sets"][name]
        of: dict[str, Any] = {"low": 0.4, "accuracy": 0.5, "high": 0.6}
        models = [{"model": model, **of, "imagenet": of} for model in ("one $", "two")]
        row = {"set": name, "name": known["name"], "images": known["images"], "of": known["images"]}
        sets.append(row | {"models": models, "points": published.points(name)})
    made = robustness_picture(sets)
    assert [axes.get_visible() for axes in made.axes] == [True] * 5 + [False]
    for each, axes in zip(sets, made.axes, strict=False):
        assert len(axes.lines) == len(each["points"]) + 1 + 2  # points, the diagonal, a mark for each model
        assert axes.get_xlim() == axes.get_ylim()
    hollow = [line for line in made.axes[3].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == sum(not point["matched"] for point in sets[3]["points"]) == 9


def test_two_sets_in_one_place_and_a_set_itself(tmp_path: Path) -> None:
    imagenet = images(imagenet_wordnet_ids(), 1000)
    empty(tmp_path / "x", R)
    empty(tmp_path / "y" / "z", A)
    assert list(find_sets(tmp_path, imagenet)[0]) == ["imagenet-r", "imagenet-a"]
    assert list(find_sets(tmp_path / "x", imagenet)[0]) == ["imagenet-r"]
    with pytest.raises(InputError, match="holds none of"):
        find_sets(tmp_path / "x" / R[0], imagenet)
