"""The one door to the data: who is looked at in which order, what is said when nothing is there, and the splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar10_files import synthetic, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

import diffvit
from diffvit import registry
from diffvit.config import config_hash
from diffvit.data import cifar10, shapes, sources
from diffvit.data.images import Images
from diffvit.errors import ConfigError, EnvironmentFault, InputError
from diffvit.files import cache_folder

SETS = {"train": synthetic(5, 1), "test": synthetic(2, 2)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    monkeypatch.setattr(cifar10, "PER_CLASS", {"train": 5, "test": 2})


def put_cifar10(folder, *, lighter=False):
    for split, (pixels, labels) in SETS.items():
        write_parquet(folder, split, (pixels // 2 if lighter else pixels, labels))


def load(source, data_dir, **more):
    return sources.load(source, "test", data_dir=data_dir, image_size=32, **more)


def test_the_named_folder_goes_before_the_cache_and_its_subfolder_before_itself(tmp_path):
    put_cifar10(cache_folder() / "cifar10")
    from_cache = load("cifar10", None).fingerprint
    put_cifar10(tmp_path, lighter=True)
    from_folder = load("cifar10", tmp_path).fingerprint
    assert from_folder != from_cache
    put_cifar10(tmp_path / "cifar10")
    assert load("cifar10", tmp_path).fingerprint == from_cache
    assert load("auto", tmp_path).fingerprint == from_cache


def test_a_named_folder_without_cifar10_says_what_was_looked_for(tmp_path):
    put_cifar10(cache_folder() / "cifar10")
    with pytest.raises(InputError, match=r"no CIFAR-10 .*train-\*\.parquet.*diffvit data fetch cifar10") as caught:
        load("cifar10", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_auto_takes_cifar10_from_the_cache_else_shapes(tmp_path):
    for data_dir in (None, tmp_path):
        assert sources.resolve_auto(data_dir) == "shapes"
        assert load("auto", data_dir, shapes={"test": 20}).name.startswith("shapes")
    put_cifar10(cache_folder() / "cifar10")
    for data_dir in (None, tmp_path):
        assert sources.resolve_auto(data_dir) == "cifar10"
        assert load("auto", data_dir).name == cifar10.UNKNOWN


def test_cifar10_without_data_or_network_or_with_damaged_data(tmp_path):
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read as Parquet"):  # no falling back to shapes
        load("auto", tmp_path)
    said = []
    with pytest.raises(EnvironmentFault, match="not in the cache"):
        load("cifar10", None, announce=said.append)
    assert len(said) == 1


def test_cifar10_is_fetched_when_it_is_nowhere(monkeypatch):
    asked = []

    def fetch(name, **settings):
        asked.append(settings)
        put_cifar10(cache_folder() / name)
        return cache_folder() / name

    monkeypatch.setattr(sources, "fetch", fetch)
    assert sources.resolve_auto(None) == "cifar10"
    assert load("cifar10", None).name == cifar10.UNKNOWN
    assert len(asked) == 1
    assert asked[0]["timeout"] <= 5  # auto must not wait for a network that is not there
    assert asked[0]["deadline"] <= 60


def test_the_variable_names_cifar10s_place_for_every_caller(tmp_path, monkeypatch):
    put_cifar10(cache_folder() / "cifar10")
    from_cache = load("cifar10", None).fingerprint
    put_cifar10(tmp_path / "named" / "cifar10", lighter=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFVIT_DATA", "named")
    assert load("cifar10", None).fingerprint == load("auto", None).fingerprint != from_cache
    put_cifar10(tmp_path / "flag")
    assert load("cifar10", tmp_path / "flag").fingerprint == from_cache  # what is asked for goes first
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("cifar10", Path("~/flag")).fingerprint == from_cache
    monkeypatch.setenv("DIFFVIT_DATA", "nothing")
    for source in ("cifar10", "auto"):
        with pytest.raises(InputError, match="no such data folder"):
            load(source, None)
    for place, why in ((tmp_path / "nothing", "no such"), (None, "Give data_dir DIR")):  # the variable is not for it
        with pytest.raises(InputError, match=why):
            load("folder", place)


def test_training_in_python_follows_the_variable_and_evaluating_needs_it_no_more(tmp_path, monkeypatch):
    put_cifar10(tmp_path / "data" / "cifar10")
    tiny = diffvit.Config.model_validate(
        {
            **{"epochs": 1, "data": "cifar10", "validation_size": 10, "batch_size": 40, "threads": 1},
            **{"device": "cpu", "precision": "fp32"},
            "model": {"patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2},
        }
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFVIT_DATA", "data")
    run = diffvit.train(tiny, out=tmp_path / "run")
    assert run.config.data_dir == tmp_path / "data"
    assert config_hash(run.config) == config_hash(tiny)
    monkeypatch.delenv("DIFFVIT_DATA")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert diffvit.evaluate(run)["accuracy"] == run.result["test_accuracy"]
    # Where the recorded place is gone, as on another machine, CIFAR-10 is looked for as always.
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setenv("DIFFVIT_DATA", str(tmp_path / "moved"))
    assert diffvit.evaluate(run)["accuracy"] == run.result["test_accuracy"]
    # With auto it is found in the cache where the folder that is named has none, also when the run is evaluated.
    monkeypatch.delenv("DIFFVIT_DATA")
    put_cifar10(cache_folder() / "cifar10")
    auto = {"data": "auto", "data_dir": tmp_path / "elsewhere"}
    run = diffvit.train(tiny.model_copy(update=auto), out=tmp_path / "auto")
    assert run.result["data"] == cifar10.UNKNOWN
    assert diffvit.evaluate(run)["accuracy"] == run.result["test_accuracy"]


def test_other_sizes_are_resized(tmp_path):
    write_parquet(tmp_path, "test", SETS["test"], copied=[2])
    large = sources.load("cifar10", "test", data_dir=tmp_path, image_size=64)
    assert large.pixels.shape == (20, 3, 64, 64)
    assert large.labels.tolist() == load("cifar10", tmp_path).labels.tolist()
    assert large.exact.sum() == 19
    assert large.fingerprint != load("cifar10", tmp_path).fingerprint
    drawn = sources.load("shapes", "test", data_dir=None, image_size=16, shapes={"test": 30})
    plain = load("shapes", None, shapes={"test": 30})
    assert drawn.masks.shape == (30, 16, 16)
    assert abs(drawn.masks.float().mean() - plain.masks.float().mean()) < 0.02


def test_height_and_width_cut_pixels_and_masks_alike():
    whole, cut = (
        sources.load("shapes", "test", data_dir=None, image_size=size, shapes={"test": 20}) for size in (32, (16, 32))
    )
    assert torch.equal(cut.pixels, whole.pixels[:, :, 8:24])
    assert torch.equal(cut.masks, whole.masks[:, 8:24])
    assert cut.fingerprint != whole.fingerprint


def test_shapes_take_their_dials():
    dials = {"size": 32, "train": 30, "test": 20, "clutter": 0.0, "noise": 0.25, "seed": 3}
    images = load("shapes", None, shapes=dials)
    assert images.name == "shapes (clutter 0, noise 0.25)"
    assert images.fingerprint == shapes.generate("test", 20, clutter=0.0, noise=0.25, seed=3).fingerprint
    assert len(sources.load("shapes", "train", data_dir=None, image_size=32, shapes=dials)) == 30
    assert load("shapes", None, shapes=dials | {"decoys": 2}).name == "shapes (clutter 0, noise 0.25, decoys 2)"
    with pytest.raises(ConfigError, match="no split 'val'"):
        sources.load("shapes", "val", data_dir=None, image_size=32)


def test_a_source_more_is_an_entry_more(monkeypatch):
    monkeypatch.setitem(registry.SOURCES, "Mine", lambda split, **_: shapes.generate(split, 20, size=16))
    assert load("Mine", None).pixels.shape == (20, 3, 32, 32)
    few = shapes.generate("train", 10, size=16)
    monkeypatch.setitem(registry.SOURCES, "Mine", lambda split, **_: replace(few, validation=few))
    found = sources.load("Mine", "train", data_dir=None, image_size=(8, 24), channels=1)
    assert found.pixels.shape == found.validation.pixels.shape == (10, 1, 8, 24)
    with pytest.raises(ConfigError, match=r"folder, shapes, shapes-hard, Mine\). Did you mean 'Mine'\?"):
        load("Mime", None)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.integers(0, 60), st.integers(0, 3))
def test_validation_is_balanced_and_takes_every_image_once(labels, size, seed):
    names = torch.tensor(labels)
    counts = np.bincount(labels)
    train, validation = sources.validation_split(names, size, seed)
    assert sorted(train.tolist() + validation.tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    held = np.bincount(np.array(labels)[validation.numpy()], minlength=len(counts))[counts > 0]
    counts, each = counts[counts > 0], size // np.count_nonzero(counts)
    for place, (count, found) in enumerate(zip(counts, held, strict=True)):
        wanted = each + (place < size % len(counts))
        assert found == (wanted if wanted < count else count // 2)


def test_validation_is_fixed_whatever_the_random_state():
    labels = torch.arange(1000) % 10
    torch.manual_seed(0)
    first = sources.validation_split(labels, 100)[1]
    torch.manual_seed(1)
    np.random.default_rng(0).random()
    assert torch.equal(sources.validation_split(labels, 100)[1], first)
    assert not torch.equal(sources.validation_split(labels, 100, seed=1)[1], first)
    assert first[:8].tolist() == FIRST_HELD_OUT


# Written down once: results of different versions are comparable only while this does not change.
FIRST_HELD_OUT = [8, 13, 24, 32, 54, 57, 65, 70]


def test_validation_may_not_take_a_whole_class():
    labels = torch.tensor([0] * 50 + [1] * 5)
    images = Images(torch.zeros(55, 1, 2, 2, dtype=torch.uint8), labels, ["many", "few"], "few", "")
    with pytest.raises(InputError, match=r"leaves nothing to train on of class few \(it has 5 images, 5 wanted"):
        sources.check_validation_size(images, 10)
    sources.check_validation_size(images, 8)
    assert sources.usual_validation_size(labels) == 4  # a tenth, the same number of each class
    assert sources.usual_validation_size(torch.arange(30) % 10) == 10  # one at least
    assert sources.usual_validation_size(torch.arange(100_000) % 10) == 5_000
    train, validation = sources.validation_split(torch.tensor([0, 0, 1]), 0)
    assert (len(train), len(validation)) == (3, 0)
