"""Training on images given in Python: the same run as from a source, and what its folder can do without them."""

import os
import signal
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import diffvit
from diffvit.cli.main import run as command
from diffvit.data import shapes
from diffvit.errors import ConfigError, InputError, Interrupted
from diffvit.registry import SOURCES
from diffvit.reporting.render import run_report
from tests.training.small import Recorder, small

TRAIN, TEST = (shapes.generate(split, count, size=16) for split, count in (("train", 60), ("test", 20)))
GIVEN = {"data": (TRAIN.pixels, TRAIN.labels), "test": (TEST.pixels, TEST.labels), "classes": TRAIN.classes}


def config(**changes):
    """A young config: what the data decides is not given."""
    chosen = small({"epochs": 2, "validation_size": 10}, changes)
    model = chosen.model.model_dump(include={"image_size", "patch_size", "embed_dim", "depth", "num_heads"})
    kept = {"epochs", "batch_size", "threads", "precision", "device", "sampling", "class_weights"}
    return diffvit.Config(**chosen.model_dump(include=kept), model=model)


@pytest.fixture(autouse=True)
def _every_step_is_shown(monkeypatch):
    monkeypatch.setattr("diffvit.training.loop._SHOWN_EVERY", 0.0)


def weights(run):
    return (run.path / "model.safetensors").read_bytes()


def test_it_is_the_run_of_a_source_with_these_images(tmp_path, monkeypatch):
    run = diffvit.train(config(), **GIVEN, out=tmp_path / "given")
    assert (run.config.data, run.config.validation_size, run.environment["classes"]) == ("memory", 10, TRAIN.classes)
    monkeypatch.setitem(SOURCES, "own", lambda split, **_: {"train": TRAIN, "test": TEST}[split])
    own = diffvit.train(run.config.model_copy(update={"data": "own"}), out=tmp_path / "own")
    mine, theirs = (diffvit.load(each).state_dict() for each in (run, own))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name in ("test_accuracy", "test_loss", "val_accuracy", "test_macro_f1"):
        assert run.result[name] == own.result[name]
    assert "diffvit.train(config, data=...)" in run_report(run).read_text()
    found = diffvit.evaluate(run, TEST.pixels, TEST.labels, device="cpu")
    assert (found["accuracy"], found["loss"]) == (run.result["test_accuracy"], run.result["test_loss"])


def test_the_folder_alone_is_refused_with_the_call_that_goes_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="resume=True"):
        diffvit.train(config(), **GIVEN, out=out, progress=Recorder(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert command(["train", "--resume", str(out), "--quiet"]) == 3
    assert "diffvit.train(config, data=..., out=..., resume=True)" in capsys.readouterr().err
    other = {**GIVEN, "data": (TRAIN.pixels.flip(0), TRAIN.labels.flip(0))}
    with pytest.raises(ConfigError, match="data fingerprint"):
        diffvit.train(config(), **other, out=out, resume=True)
    with monkeypatch.context() as patched:  # no other data is looked for
        patched.setattr("diffvit.data.sources.load", lambda *_, **__: pytest.fail("data was loaded"))
        with pytest.raises(InputError, match=r"was passed in Python and is in no folder.*data=\.\.\."):
            diffvit.train(config(), out=out, resume=True)
    run = diffvit.train(config(), **GIVEN, out=out, resume=True)
    assert weights(run) == weights(diffvit.train(config(), **GIVEN, out=tmp_path / "at-once"))
    assert command(["evaluate", str(out)]) == 3
    assert "diffvit.evaluate(run, images, labels)" in capsys.readouterr().err
    for data in (GIVEN, {}):  # a finished run is given back, but not for other images
        assert diffvit.train(config(), **data, out=out, resume=True).result == run.result
        with pytest.raises(ConfigError, match=r"the finished run began with other settings .*epochs 2 vs 3.*overwrite"):
            diffvit.train(config(epochs=3), **data, out=out, resume=True)
    with pytest.raises(ConfigError, match=r"is a finished run on other data.*fingerprint \w{12} vs \w{12}"):
        diffvit.train(config(), **other, out=out, resume=True)


class Samples(Dataset):
    """So many of the images over and over; ``bad`` are other samples by index, an exception raised."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 502

    def __getitem__(self, place):
        found = self.bad.get(place, (TRAIN.pixels[place % 60], TRAIN.labels[place % 60]))
        if isinstance(found, Exception):
            raise found
        return found


def unreadable(kind, place, folder):
    """A data set of 502 images, of which one is cut off."""
    encoded, labels = [], TRAIN.labels.repeat(9)[:502].sort().values.tolist()
    for number, label in enumerate(labels):
        file = folder / str(label) / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(TRAIN.pixels[number % 60].permute(1, 2, 0).numpy()).save(file)
        file.write_bytes(file.read_bytes()[: 30 if number == place else None])
        encoded.append({"bytes": file.read_bytes(), "path": None})
    if kind == "torchvision":
        return import_module("torchvision.datasets").ImageFolder(folder)
    given = import_module("datasets")
    features = given.Features({"image": given.Image(), "label": given.ClassLabel(names=TRAIN.classes)})
    return given.Dataset.from_dict({"image": encoded, "label": labels}, features=features)


@pytest.mark.parametrize("kind", ["torch", "torchvision", "datasets"])
def test_a_sample_that_cannot_be_read_is_named_before_anything_starts(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cases = [
        (place, {place: OSError("gone")}, "sample {} of the data: cannot be read .OSError: gone")
        for place in (500, 501)
    ]
    cases += [(500, {500: (torch.zeros(5, 8, 8), 1)}, "sample {} of the data: has another shape")]
    cases += [(501, {501: (TRAIN.pixels[0], -1)}, "label {}: is outside the classes .-1 vs")]
    if kind != "torch":
        cases = [(place, None, "sample {} of the data: cannot be read") for place in (500, 501)]
    for place, bad, said in cases:
        broken = Samples(bad) if bad else unreadable(kind, place, tmp_path / str(place))
        for sets, part in (({"data": broken}, ""), ({"data": Samples({}), "test": broken}, "test: ")):
            with pytest.raises(InputError, match=f"^{part}{said.format(place)}"):
                diffvit.train(config(), **sets, classes=TRAIN.classes, out=tmp_path / "run")
            assert not (tmp_path / "run").exists()


def test_balanced_sampling_and_weights_are_resumed_exactly(tmp_path):
    few = torch.cat([torch.nonzero(TRAIN.labels == label)[: 1 + 2 * label, 0] for label in range(4)])
    data = {"data": (TRAIN.pixels[few], TRAIN.labels[few]), "test": GIVEN["data"], "classes": TRAIN.classes}
    runs = []
    for name in ("uniform", "balanced"):
        chosen = config(sampling=name, batch_size=4).model_copy(update={"validation_size": 0})
        runs.append(diffvit.train(chosen, **data, out=tmp_path / name))
    assert weights(runs[0]) != weights(runs[1])
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        diffvit.train(chosen, **data, out=out, progress=Recorder(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert weights(diffvit.train(chosen, **data, out=out, resume=True)) == weights(runs[1])
    both = chosen.model_copy(update={"class_weights": "balanced"})
    weighted = diffvit.train(both, **data, out=tmp_path / "weighted")
    assert weights(weighted) != weights(runs[1])
    assert "class_weights: balanced" in (weighted.path / "config.yaml").read_text()
    assert "class_weights" not in (runs[1].path / "config.yaml").read_text()


def test_a_refused_start_leaves_no_folder_and_an_old_run_as_it_was(tmp_path):
    run = diffvit.train(config(), **GIVEN, out=tmp_path / "run")
    before = weights(run)
    with pytest.raises(InputError, match=r"already holds a run.*overwrite=True"):
        diffvit.train(config(), **GIVEN, out=run.path)
    one = (TRAIN.pixels, torch.zeros(60, dtype=torch.int64))
    for data in (one, (TRAIN.pixels.float(), TRAIN.labels), [*zip(TRAIN.pixels, TRAIN.labels, strict=True), None]):
        for out in (run.path, tmp_path / "new"):
            with pytest.raises(InputError):
                diffvit.train(config(), data=data, classes=TRAIN.classes, out=out, overwrite=True)
    assert weights(run) == before
    assert not (tmp_path / "new").exists()
    again = diffvit.train(config(epochs=1), **GIVEN, out=run.path, overwrite=True)
    assert (again.config.epochs, len(again.metrics)) == (1, 1)
    assert weights(again) != before
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        diffvit.train(config(), **GIVEN, out=tmp_path / "files", overwrite=True)


def test_what_the_data_decides_and_what_is_given_does_not_fit(tmp_path):
    grey = np.random.default_rng(0).random((40, 16, 16))
    run = diffvit.train(config(), data=(grey, np.arange(40) % 4), out=tmp_path / "grey")
    assert (run.config.model.in_chans, run.config.model.num_classes, run.config.validation_size) == (1, 4, 4)
    assert len(diffvit.predict(run, grey[:3])) == 3
    chosen = config().model_copy(update={"model": config().model.model_copy(update={"num_classes": 3})})
    with pytest.raises(ConfigError, match=r"num_classes.*3 vs 4 classes"):
        diffvit.train(chosen, data=(grey, np.arange(40) % 4), out=tmp_path / "no")
    with pytest.raises(ConfigError, match="test_size: has no effect: images given in Python has test images"):
        diffvit.train(config().model_copy(update={"test_size": 0.3}), **GIVEN, out=tmp_path / "no")
