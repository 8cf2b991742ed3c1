"""Linear probes against scikit-learn, retrieval against loops, and ``diffvit clip evaluate --tasks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from class_folders import class_folders
from PIL import Image
from sklearn.linear_model import LogisticRegression
from small_clip import NAME, register, small_file
from torch import Tensor

from diffvit.cli.main import run
from diffvit.clip.labelled import Labelled, open_labelled
from diffvit.clip.load import Supervised, load_supervised, load_vit
from diffvit.clip.small.load import load_small
from diffvit.clip.tasks import STRENGTHS, feature_encoder, fitted, linear_probe, probabilities, retrieval
from diffvit.data import shapes
from diffvit.errors import InputError

Captured = pytest.CaptureFixture[str]


def blobs(count: int, seed: int, classes: int = 4, width: int = 12) -> tuple[Tensor, Tensor]:
    """Unit features around a centre for each class, which overlap."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.nn.functional.normalize(centres[labels] + 1.6 * torch.randn(count, width, generator=generator)), labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0, 10_000.0])
def test_a_fit_is_scikit_learns(strength: float) -> None:
    rows, labels = blobs(300, 1)
    test, truth = blobs(2000, 2)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(rows.double().numpy(), labels.numpy())
    weights = fitted(rows, labels, 4, strength)
    expected = np.column_stack([theirs.coef_, theirs.intercept_])
    # The intercepts are given up to a constant: scikit-learn's sum to zero from where it starts, so do ours.
    np.testing.assert_allclose(weights.numpy(), expected, atol=2e-3 * max(1.0, float(np.abs(expected).max())))
    np.testing.assert_allclose(probabilities(test, weights).numpy(), theirs.predict_proba(test.double()), atol=1e-3)
    mine = float((probabilities(test, weights).argmax(1) == truth).double().mean())
    assert mine == pytest.approx(theirs.score(test.double().numpy(), truth.numpy()), abs=0.002)
    warm = fitted(rows, labels, 4, strength, start=weights)
    torch.testing.assert_close(warm, weights, atol=1e-3, rtol=1e-3)


def recalls(similar: list[list[float]], owners: list[int], k: int) -> tuple[float, float]:
    """By loops over what is more similar."""
    found, images = [], []
    for row, own in zip(similar, owners, strict=True):
        found.append(sum(each >= row[own] for at, each in enumerate(row) if at != own) < k)
    for image in range(len(similar[0])):
        mine = [row[image] for row, own in zip(similar, owners, strict=True) if own == image]
        others = [row[image] for row, own in zip(similar, owners, strict=True) if own != image]
        images.append(sum(each >= max(mine) for each in others) < k)
    return sum(found) / len(found), sum(images) / len(images)


def test_retrieval_is_a_loops_and_what_is_always_the_same_finds_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator))
    owners = torch.randint(40, (100,), generator=generator).tolist() + list(range(40))
    texts = torch.nn.functional.normalize(images[owners] + 0.7 * torch.randn(140, 6, generator=generator))
    found = retrieval(images, texts, owners)
    similar = (texts.double() @ images.double().T).tolist()
    for k in (1, 5, 10):
        expected = recalls(similar, owners, k)
        assert (found[f"image_retrieval_recall@{k}"], found[f"text_retrieval_recall@{k}"]) == pytest.approx(expected)
    assert 0 < found["image_retrieval_recall@1"] < found["image_retrieval_recall@10"] < 1
    assert set(retrieval(images[:1].expand(40, -1), texts[:1].expand(140, -1), owners).values()) == {0.0}


def test_what_a_supervised_model_is_probed_on_is_what_its_head_reads(tmp_path: Path) -> None:
    ours = load_vit("shapes-vit", device="cpu")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50.tv_in1k", pretrained=False).state_dict(), tmp_path / "r.pth")
    theirs = load_supervised("tv-v1", tmp_path / "r.pth", device="cpu")
    for supervised in (ours, theirs):
        assert_features(supervised)


def assert_features(supervised: Supervised) -> None:
    encoder, model = feature_encoder(supervised), supervised.model
    side = supervised.preprocessing.size
    squares = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head: Any = model.get_classifier() if hasattr(model, "get_classifier") else model.head
    images = supervised.preprocessing.normalised(squares)
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        else:
            tokens = model.blocks(model.tokens(images))
            features = model.fc_norm(model.norm(tokens)[:, 0] if model.pool == "cls" else model.norm(tokens).mean(1))
        torch.testing.assert_close(head(features), model(images), atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(encoder.encode(squares), expected, atol=1e-5, rtol=1e-4)
    assert encoder.width == expected.shape[1]


def labelled_of(images: Any) -> Labelled:
    pixels = images.pixels.numpy()
    places = tuple(f"{images.fingerprint} {number}" for number in range(len(images)))
    labels = tuple(images.labels.tolist())
    return Labelled(images.name, tuple(images.classes), None, labels, places, places, pixels.__getitem__)


def untrained_resnet(name: str, **more: Any) -> Supervised:
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50.tv_in1k", pretrained=False).state_dict(), "resnet.pth")
    return load_supervised(name, Path("resnet.pth"), **more)


@pytest.mark.parametrize(
    ("name", "load", "count", "least"),
    [("shapes-vit", load_vit, 400, 0.9), ("cifar10-clip", load_small, 400, 0.25), ("tv-v1", untrained_resnet, 20, 0)],
)
def test_features_are_probed_as_scikit_learn_would(
    name: str, load: Any, count: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = (labelled_of(shapes.generate(split, count)) for split in ("train", "test"))
    model = load(name, device="cpu")
    found, faults = linear_probe(model, train, test)
    assert faults == []
    assert (found["images"], found["train_images"]) == (count, count)
    tried = {each["strength"]: each["accuracy"] for each in found["searched"]}
    place = STRENGTHS.index(found["strength"])
    assert len(tried) == 7
    assert tried[found["strength"]] == max(tried.values())
    assert set(STRENGTHS[max(place - 1, 0) : place + 2]) <= tried.keys()
    assert found["accuracy"] >= least
    encoder = feature_encoder(model)

    def features(of: Labelled) -> np.ndarray:
        squares = np.stack([encoder.preprocessing.square(of.read(number)) for number in range(len(of))])
        return torch.cat([encoder.encode(each) for each in torch.from_numpy(squares).split(1)]).double().numpy()

    theirs = LogisticRegression(C=found["strength"], tol=1e-10, max_iter=10_000).fit(features(train), train.labels)
    assert found["accuracy"] == pytest.approx(theirs.score(features(test), test.labels), abs=0.002)


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register(tmp_path, monkeypatch)
    Path("w.pt").write_bytes(small_file())
    class_folders(Path("train"), {"cat": 8, "deer": 8, "dog": 8})
    class_folders(Path("test"), {"cat": 4, "deer": 4, "dog": 4})


BASE = ["clip", "evaluate", "test", "--model", NAME, "--weights", "w.pt", "--templates", "single"]
CAPTIONS = "file,caption\ncat/0.png,a cat\ncat/0.png,one more cat\ndog/1.png,a dog\ndeer/2.png,a deer in a wood\n"


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_three_tasks_in_one_command_and_files_for_clip_benchmark(capsys: Captured) -> None:
    Path("captions.csv").write_text(CAPTIONS)
    tasks = ["--tasks", "zero-shot,linear-probe,retrieval", "--probe-train", "train", "--captions", "captions.csv"]
    assert run([*BASE, *tasks, "--out", "seen", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    (probe,), (recall,) = found["linear_probe"], found["retrieval"]
    assert (probe["images"], probe["train_images"], recall["images"], recall["captions"]) == (12, 24, 3, 4)
    assert f"{probe['accuracy']:.2%}" in out
    assert found["models"][0]["images"] == 12
    written = {}
    for file in Path("seen").glob("benchmark_*.json"):
        each = json.loads(file.read_bytes())
        assert (each["model"], each["pretrained"], each["language"]) == (NAME, "openai", "en")
        written[each["task"]] = each["metrics"]
    assert written["zeroshot_classification"]["acc1"] == found["models"][0]["accuracy"]
    assert written["linear_probe"]["lp_acc1"] == probe["accuracy"]
    assert written["linear_probe"].keys() == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}
    assert written["zeroshot_retrieval"] == {name: value for name, value in recall.items() if "_recall@" in name}


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_retrieval_needs_no_classes_and_names_what_it_cannot_read(capsys: Captured) -> None:
    Path("flat").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), (20, 200, 90) if name == "a" else (200, 20, 90)).save(f"flat/{name}.png")
    Path("flat/c.png").write_bytes(b"no picture")
    lines = [{"image": f"{name}.png", "text": f"picture {name}"} for name in "abc"]
    Path("captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["clip", "evaluate", "flat", *BASE[3:], "--tasks", "retrieval", "--captions", "captions.jsonl", "--json"]
    assert run(asked) == 3
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["retrieval"][0]
    assert (found["images"], found["captions"]) == (2, 2)
    assert "flat/c.png" in err


REFUSED = {
    "no such task": (["--tasks", "probe"], "", "--tasks: no task 'probe' (have zero-shot, linear-probe, retrieval)"),
    "no training pictures": (["--tasks", "linear-probe"], "", "--probe-train: must name the training pictures"),
    "no captions": (["--tasks", "retrieval"], "", "--captions: is for --tasks retrieval, which needs it"),
    "captions for nothing": (["--captions", "c.csv"], "", "--captions: is for --tasks retrieval, which needs it"),
    "training for nothing": (["--probe-train", "train"], "", "--probe-train: is for --tasks linear-probe"),
    "nothing to compare": (["--tasks", "linear-probe", "--compare"], "", "--tasks: without zero-shot leaves nothing"),
    "splits": (["--tasks", "linear-probe", "--probe-train", "."], "", "holds splits, not classes (test, train)"),
    "no columns": (["--tasks", "retrieval", "--captions", "c.csv"], "a,b\n1,2\n", "has no columns of path and caption"),
    "no picture": (
        ["--tasks", "retrieval", "--captions", "c.csv"],
        "path,text\nx.png,a\n",
        "row 1: names a missing",
    ),
    "no text": (["--tasks", "retrieval", "--captions", "c.csv"], "path,caption\ncat/0.png,\n", "row 1: has no caption"),
}


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_one_line(case: str, capsys: Captured) -> None:
    flags, table, line = REFUSED[case]
    Path("c.csv").write_text(table)
    assert run([*BASE, *flags]) in (2, 3)
    out, err = capsys.readouterr()
    assert line in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_a_probe_needs_the_same_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "one", {"cat": 1, "dog": 1})
    class_folders(tmp_path / "two", {"cat": 1, "cow": 1})
    vit = load_vit("shapes-vit", device="cpu")
    with pytest.raises(InputError, match=r"has other classes than folder two \(cow, dog\)"):
        linear_probe(vit, *(open_labelled(tmp_path / name) for name in ("one", "two")))


def test_captions_of_words_that_a_small_clip_never_read_are_named_or_refused(tmp_path: Path, capsys: Captured) -> None:
    class_folders(tmp_path, {"cat": 2})
    asked = ["clip", "evaluate", str(tmp_path), "--model", "cifar10-clip", "--tasks", "retrieval", "--json"]
    (tmp_path / "c.csv").write_text("path,caption\ncat/0.png,a photo of a cat\ncat/1.png,a photo of a toaster\n")
    assert run([*asked, "--captions", str(tmp_path / "c.csv")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["retrieval"][0]["unknown_words"] == ["toaster"]
    assert "have no meaning to it: toaster" in out + err
    (tmp_path / "c.csv").write_text("path,caption\ncat/0.png,toaster\n")
    assert run([*asked, "--captions", str(tmp_path / "c.csv")]) == 2
    assert "captions: hold no word that cifar10-clip was trained with (toaster)" in capsys.readouterr().err
