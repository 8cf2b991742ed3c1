"""``diffvit clip evaluate`` from end to end against open_clip and timm alone, and its refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from class_folders import class_folders
from PIL import Image
from small_clip import NAME, open_clips_probabilities, random_everywhere, register, small_file

from diffvit.cli import show
from diffvit.cli.main import run
from diffvit.cli.show import Lines
from diffvit.clip import encode
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.labelled import cifar10_members

Captured = pytest.CaptureFixture[str]
BASE = ["clip", "evaluate", "--model", NAME, "--weights", "w.pt", "--templates", "single"]
PLAIN = {"cat": 6, "deer": 5, "sea_lion": 7}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register(tmp_path, monkeypatch)
    Path("w.pt").write_bytes(small_file())


def last(out: str) -> dict[str, Any]:
    return json.loads(out.splitlines()[-1])


def zero_shot(files: list[Path], names: list[str]) -> torch.Tensor:
    return open_clips_probabilities(files, names, [lambda c: f"a photo of a {c}."])


def counted(chances: torch.Tensor, labels: list[int]) -> tuple[int, int, list[list[bool]]]:
    """Right at first, right among five, and per class which were right, picture by picture."""
    first = five = 0
    per_class: list[list[bool]] = [[] for _ in range(chances.shape[1])]
    for row, label in zip(chances.tolist(), labels, strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        first, five = first + (order[0] == label), five + (label in order[:5])
        per_class[label].append(order[0] == label)
    return first, five, per_class


def test_the_accuracy_is_open_clips(capsys: Captured) -> None:
    class_folders(Path("set"), PLAIN)
    command = [*BASE, "set", "--json", "--out", "seen"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "labels     3 (3 computed now, the others cached)" in out
    found = last(out)
    files = [Path("set") / name / f"{number}.png" for name, count in PLAIN.items() for number in range(count)]
    labels = [label for label, count in enumerate(PLAIN.values()) for _ in range(count)]
    chances = zero_shot(files, ["cat", "deer", "sea lion"])
    first, _, per_class = counted(chances, labels)
    [model] = found["models"]
    assert 0 < first < 18
    assert (model["accuracy"], model["top5"]) == (first / 18, None)  # of three classes, five hold every answer
    assert "top-5" not in out
    assert model["mean_confidence"] == pytest.approx(float(chances.max(1).values.mean()), abs=1e-4)
    rows = model["per_class"]
    assert [row["class"] for row in rows] == ["cat", "deer", "sea lion"]
    assert [row["accuracy"] for row in rows] == [float(np.mean(mine)) for mine in per_class]
    assert (model["model"], model["weights"], model["dtype"]) == ("CLIP RN-small (openai)", "w.pt", "float32")
    assert (model["images"], model["computed"], found["unreadable"]) == (18, 18, 0)
    assert f"accuracy           {first / 18:.2%} (95% interval {model['low']:.2%} to {model['high']:.2%})" in out
    benchmark = "seen/benchmark_folder-set_openai_RN-small_en_zeroshot_classification.json"
    assert found["files"] == ["seen/evaluate.json", "seen/per_class.csv", benchmark]
    assert json.loads(Path("seen/evaluate.json").read_text())["models"] == found["models"]
    table = list(csv.DictReader(Path("seen/per_class.csv").read_text().splitlines()))
    assert [(row["class"], row["images"], float(row["accuracy"])) for row in table] == [
        (row["class"], str(row["images"]), row["accuracy"]) for row in rows
    ]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "pictures           18 (0 computed now, the others cached)" in out
    assert last(out)["models"][0]["per_class"] == rows


def test_both_models_on_the_classes_that_meet(capsys: Captured) -> None:
    counts = {"cat": 2, "deer": 1, "dog": 2}
    class_folders(Path("set"), counts, ".jpg")
    torch.manual_seed(0)
    resnet = random_everywhere(timm.create_model("resnet50.tv_in1k", pretrained=False))
    torch.save(resnet.state_dict(), "r.pth")
    Path("names.txt").write_text("a small cat\nRudolf\nhound\n")
    more = ["--supervised", "tv-v1", "--supervised-weights", "r.pth", "--labels-file", "names.txt", "--json"]
    assert run([*BASE, "set", *more]) == 0
    out = capsys.readouterr().out
    assert "note: left out: Rudolf (1): ImageNet has no class for it, and no model is asked" in out
    found = last(out)
    assert (found["classes"], found["left_out"], found["images"]) == (["a small cat", "hound"], ["Rudolf"], 4)
    files, labels = [Path(f"set/{name}/{n}.jpg") for name in ("cat", "dog") for n in range(2)], [0, 0, 1, 1]
    clip, supervised = found["models"]
    assert clip["accuracy"] == counted(zero_shot(files, ["a small cat", "hound"]), labels)[0] / 4
    config = timm.data.resolve_data_config({}, model=resnet, use_test_size=True)
    transform: Any = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        logits = resnet(torch.stack([transform(Image.open(file)) for file in files])).double()
    ids = imagenet_wordnet_ids()
    groups = [[ids.index(each) for each in cifar10_members()[name]] for name in ("cat", "dog")]
    chances = torch.stack([logits[:, group].exp().sum(1) for group in groups], dim=1)
    assert supervised["accuracy"] == counted(chances, labels)[0] / 4
    share = (chances / chances.sum(1, keepdim=True)).max(1).values.mean()
    assert supervised["mean_confidence"] == pytest.approx(float(share), abs=1e-4)
    assert supervised["model"] == "ResNet-50 (torchvision IMAGENET1K_V1 (published top-1 76.1))"
    assert supervised["preprocessing"] != clip["preprocessing"]


def test_imagenets_layout_its_twins_and_a_table_of_the_ends(capsys: Captured) -> None:
    ids = imagenet_wordnet_ids()
    class_folders(Path("val"), {ids[place]: 1 for place in [*range(20), 657, 744]})
    assert run([*BASE, "val", "--json"]) == 0
    out = capsys.readouterr().out
    assert "note: classes 20 and 21 have the same name, missile" in out
    assert "the worst and the best of 22 classes, by CLIP RN-small (openai)" in out
    assert "top-5" in out
    found = last(out)
    assert 0 <= found["models"][0]["top5"] <= 1
    assert found["wordnet_ids"] == [*ids[:20], ids[657], ids[744]]
    assert (found["same_names"], found["labels_computed"]) == ([[20, 21]], 22)
    assert found["models"][0]["per_class"][21]["accuracy"] == 0.0  # of equal names the first is answered


def test_a_killed_call_goes_on_and_numbers_are_listed_as_people_count(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(encode, "_PART", 32)
    class_folders(Path("set"), {"10": 40, "2": 40})

    def killed(lines: Lines, done: int, total: int) -> None:
        if lines.what.startswith("pictures") and done == 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", killed)
        assert run([*BASE, "set"]) == 130
    capsys.readouterr()
    assert run([*BASE, "set", "--json"]) == 0
    out = capsys.readouterr().out
    assert last(out)["models"][0]["computed"] == 16
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == ["2", "10"]
    assert last(out)["classes"] == ["10", "2"]  # labels stay as they are
    assert run([*BASE, "set", "--json", "--limit", "3"]) == 0
    assert last(capsys.readouterr().out)["images"] == 6


def test_corrupt_pictures_among_good_ones(capsys: Captured) -> None:
    class_folders(Path("set"), PLAIN)
    Path("set/cat/2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Path("set/deer/0.png").write_bytes(b"")
    assert run([*BASE, "set", "--json", "--out", "seen"]) == 3
    out, err = capsys.readouterr()
    assert err.startswith("error: set/cat/2.png: cannot be decoded as an image (")
    assert err.endswith("1 more could not be read either. Everything else is above.\n")
    assert err.count("\n") == 1
    found = last(out)
    assert "data       folder set, 18 pictures, 2 unreadable, 3 classes" in out
    assert [row["images"] for row in found["models"][0]["per_class"]] == [5, 4, 7]
    assert [each["image"] for each in found["failed"]] == ["set/cat/2.png", "set/deer/0.png"]
    assert Path("seen/evaluate.json").is_file()


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.5, 9.0])
    monkeypatch.setattr("diffvit.cli.show.time.monotonic", lambda: next(clock))
    lines = Lines("pictures")
    for done in (1, 2, 3, 4, 5):
        lines(done, 5)
    assert capsys.readouterr().err == "pictures: 2 of 5 (2 s)\npictures: 4 of 5 (4 s)\n"
    assert show.percent(None) == "-"


RESNET = ["dogs", "--supervised", "tv-v2", "--supervised-weights"]
WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "WHERE: needs a value."),
    (["gone"], 3, "gone: no such folder."),
    (["set", "--labels-file", "two.txt"], 2, "--labels-file: must name every class of folder set, in the folders' ord"),
    (["set", "--limit", "0"], 2, "--limit: must be at least 1 (found 0)."),
    (["set", "--split", "train"], 2, "--split: is for cifar10"),
    (["set", "--supervised-weights", "w.pt"], 2, "--supervised-weights: needs --supervised."),
    (["set", "--supervised", "tv-v2"], 2, "folder set: shares one class with ImageNet"),
    (["set", "--supervised", "cifar10-clip"], 3, "is a CLIP, not a classifier"),
    (["dogs", "--supervised", "tv-v3"], 2, "--supervised: no weights 'tv-v3' (have tv-v1, tv-v2"),
    ([*RESNET, "other.pt"], 3, "does not hold the weights of ResNet-50"),
    (["set", "--out", "two.txt"], 4, "two.txt: is no folder"),
    (["bad"], 3, "bad/a/x.png: cannot be decoded as an image ("),
    (["cifar10", "--data-dir", "gone"], 3, "gone: no such data folder."),
    (["set", "--compare", "--shifts", "edges,gray"], 2, "shift: no shift 'gray' (have edges, grey"),
    (["set", "--compare", "--shift-pictures", "0"], 2, "--shift-pictures: must be at least 1 (found 0)"),
    # Options that would have no effect
    (["somewhere", "--shifts", "grey"], 2, "--shifts"),
    (["somewhere", "--shift-pictures", "3"], 2, "--shift-pictures"),
    (["somewhere", "--budget", "5"], 2, "--budget"),
    (["somewhere", "--compare", "--v1-weights", "w.pt"], 2, "--v1-weights"),
    (["somewhere", "--published", "--compare"], 2, "--compare"),
    (["somewhere", "--published", "--supervised", "tv-v1"], 2, "--supervised"),
]


@pytest.mark.parametrize(("more", "code", "why"), WRONG)
def test_what_is_wrong_is_one_line_and_its_code(more: list[str], code: int, why: str, capsys: Captured) -> None:
    class_folders(Path("set"), {"cat": 1, "tench": 1, "zebra crossing": 1})
    class_folders(Path("dogs"), {"cat": 1, "dog": 1})
    Path("bad/a").mkdir(parents=True)
    Path("bad/a/x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Path("two.txt").write_text("x\ny\n")
    torch.save({"w": torch.zeros(3)}, "other.pt")
    command = [*BASE, *more]
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1
    assert not Path("clip-compare").exists()
