"""``diffvit clip train`` from end to end: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import diffvit
from diffvit.cli.main import run
from diffvit.clip.small.load import load_small
from diffvit.clip.small.task import ContrastiveTask, names_tried
from diffvit.clip.templates import load_templates
from diffvit.clip.zero_shot import classify, zero_shot_classifier
from diffvit.config import ClipConfig, Config, parse
from diffvit.data import sources
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Interrupted
from diffvit.hub.files import read_header
from diffvit.training.load import metadata_of
from diffvit.training.loop import train
from diffvit.training.progress import Progress
from diffvit.training.run_dir import RunDir
from diffvit.training.task import fresh_model, load_data

Captured = pytest.CaptureFixture[str]
SETTINGS: dict[str, Any] = {
    "objective": "contrastive",
    "data": "shapes",
    "shapes": {"train": 900, "test": 200, "size": 16, "clutter": 0.0, "noise": 0.0},
    "validation_size": 100,
    "epochs": 4,
    "batch_size": 40,
    "threads": 1,
    "precision": "fp32",
    "joint_dim": 24,
    "model": {"image_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "pool": "mean"},
    "text": {"embed_dim": 32, "depth": 1, "num_heads": 2, "context_length": 16},
    "optimizer": {"name": "muon", "lr": 0.01, "muon_lr": 0.04},
}


def settings(**more: Any) -> dict[str, Any]:
    classes = sources.load("shapes", "test", data_dir=None, image_size=16, shapes={"test": 1, "size": 16}).classes
    words = {
        "evaluated_with": "single",
        "templates": ["a {}", "the {} here", "a photo of a {}."],
        "names": {classes[0]: [classes[0], "round thing"]},
        "unseen": {label: [f"big {label}", "xylophone"] for label in classes},
    }
    return {**SETTINGS, "captions": words, **more}


def clip_config(**more: Any) -> ClipConfig:
    config = parse(settings(**more))
    assert isinstance(config, ClipConfig)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("clip")
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(settings()))
    assert run(["clip", "train", str(file), "--out", str(folder / "run"), "--quiet"]) == 0
    return RunDir.open(folder / "run")


def test_it_learns_to_classify_by_names(finished: RunDir) -> None:
    result = finished.result
    classes = len(finished.environment["classes"])
    assert result["zero_shot_accuracy"] == result["test_accuracy"] > 3 / classes
    assert result["val_accuracy"] > 3 / classes
    assert result["unseen_names_accuracy"] > 1.5 / classes
    assert [row["epoch"] for row in finished.metrics] == [1, 2, 3, 4]
    assert finished.metrics[-1]["train_accuracy"] > finished.metrics[0]["train_accuracy"]
    assert isinstance(finished.config, ClipConfig)
    assert finished.config == clip_config()
    assert (finished.path / "report.html").read_text().count("CLIP (ViT)") > 0


def test_the_loaded_model_gives_the_runs_figures_and_tries_each_name_in_its_classs_place(finished: RunDir) -> None:
    clip = load_small(finished.path)
    assert clip.name == "run"
    assert str(clip.pretrained).startswith("shapes")
    images = sources.load("shapes", "test", data_dir=None, image_size=16, shapes=SETTINGS["shapes"])
    templates, words = load_templates("single"), clip_config().captions
    classifier = zero_shot_classifier(clip, images.classes, templates, use_cache=False)
    chances = classify(clip, classifier, clip.preprocessing.normalised(images.pixels))
    accuracy = float((chances.argmax(1) == images.labels).double().mean())
    assert accuracy == pytest.approx(finished.result["zero_shot_accuracy"], abs=0.0051)  # one image may tie
    model: Any = clip.model
    with torch.no_grad():
        features = model.encode_image(clip.preprocessing.normalised(images.pixels), normalize=True)
    found = names_tried(clip, features, images, words, templates)
    kept = json.loads((finished.path / "evaluation.json").read_text())
    assert [each["name"] for each in kept["names"]] == [each["name"] for each in found["names"]]
    for each in found["names"]:
        place = images.classes.index(each["class"])
        labels = [each["name"] if label == each["class"] else label for label in images.classes]
        rows = zero_shot_classifier(clip, labels, templates, use_cache=False).weights.double()
        hits = [
            max(range(len(labels)), key=lambda c: float(features[i].double() @ rows[c])) == place
            for i in range(len(images.labels))
            if int(images.labels[i]) == place
        ]
        assert each["recall"] == pytest.approx(sum(hits) / len(hits), abs=1.01 / len(hits))
    by_name = {each["name"]: each for each in found["names"]}
    assert by_name["round thing"]["seen"]
    assert by_name["round thing"]["known_tokens"] == 1.0
    assert by_name["xylophone"]["known_tokens"] == 0.0
    assert not by_name["xylophone"]["seen"]


def test_the_image_tower_starts_as_its_twin_does() -> None:
    config = clip_config(whiten=True)
    data = load_data(config, lambda _: None)
    twin_values = {key: value for key, value in settings(whiten=True).items() if key in Config.model_fields}
    twin = parse(twin_values)
    start, other = ContrastiveTask().model(config, data).visual.state_dict(), fresh_model(twin, data).state_dict()
    same = [name for name in other if not name.startswith("head.")]
    assert all(torch.equal(start[name], other[name]) for name in same)
    assert start["head.weight"].shape == (24, 32)


class StopAt(Progress):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, values: Any) -> None:
        if values["step"] == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_going_on_gives_the_same_weights(finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffvit.training.loop._SHOWN_EVERY", 0.0)
    monkeypatch.setattr("diffvit.reporting.render.run_report", lambda run: run.path)  # drawn above
    with pytest.raises(Interrupted, match="resume with: diffvit clip train --resume"):
        train(clip_config(), out=tmp_path / "r", task=ContrastiveTask(), progress=StopAt(25))
    assert run(["clip", "train", "--resume", str(tmp_path / "r"), "--quiet"]) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (finished.path, tmp_path / "r"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_memory_says_what_helps_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContrastiveTask, "model", lambda *_: torch.empty(2**50))
    with pytest.raises(EnvironmentFault, match=r"smaller batch_size\.$"):
        train(clip_config(), out=tmp_path / "m", task=ContrastiveTask())


def test_a_clip_is_no_classifier_and_no_run_of_one(
    finished: RunDir, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is a CLIP, not a classifier"):
        diffvit.load(finished.path)
    assert run(["train", "--resume", str(finished.path)]) == 2
    assert "the run trains a CLIP. Resume it with: diffvit clip train --resume" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings()))
    assert run(["train", str(tmp_path / "c.yaml")]) == 2
    assert "c.yaml: is the config of a CLIP. Train it with: diffvit clip train" in capsys.readouterr().err
    with pytest.raises(InputError, match="is not a CLIP: it has no text tower"):
        load_small("cifar10-vit")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accumulate": 2}, "accumulate 2 would split the batch"),
        ({"model": {"head": "mlp"}}, "model.head 'mlp' vs 'linear'"),
        ({"text": {"num_heads": 3}}, "num_heads 3 does not divide embed_dim 128"),
        ({"text": {"context_length": 2}}, "context_length 2 has no room"),
        ({"captions": {"templates": ["a cat"]}}, r"'a cat' has no \{\}"),
        ({"captions": {"templates": []}}, "must have at least one"),
        ({"captions": {"names": {"cat": []}}}, "class cat has none"),
        (
            {"captions": {"names": {"cat": ["cat", "puss"]}, "unseen": {"cat": ["puss"]}}},
            "'puss' of class cat is among",
        ),
        ({"joint": 3}, "joint: unknown key"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"objective": "contrastive", **change})


def test_a_file_that_lies(finished: RunDir, tmp_path: Path) -> None:
    tensors = load_file(finished.path / "model.safetensors")
    meta = metadata_of(finished.path, read_header(finished.path / "model.safetensors"))
    for change, said in (
        ({"vocabulary": 10**9}, "its sizes do not go together"),
        ({"vocabulary": 3}, "text.token_embedding.tokens has the wrong size"),
        ({"visual": {"embed_dim": 33}}, "describes an impossible model"),
        ({"visual": None}, "describes an impossible model"),
    ):
        wrong = {**meta, "model": {**meta["model"], **change}}
        save_file(tensors, tmp_path / "m.safetensors", {"diffvit": json.dumps(wrong)})
        with pytest.raises(InputError, match=said):
            load_small(tmp_path / "m.safetensors")


def test_templates_that_nobody_has_are_refused_before_the_first_step(tmp_path: Path) -> None:
    words = {**settings()["captions"], "evaluated_with": "openai-81"}
    with pytest.raises(ConfigError, match="openai-81"):
        train(clip_config(captions=words, validation_size=0), out=tmp_path / "run", task=ContrastiveTask())
    assert not (tmp_path / "run").exists()
