"""Folders of images: any size in, one size out, decoded once, as large as the disk allows."""

import itertools
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cifar10_files import encode
from PIL import Image

from diffvit.data import folder as folder_source
from diffvit.data import images as images_module
from diffvit.data import sources
from diffvit.data.images import mapped
from diffvit.errors import EnvironmentFault, InputError
from diffvit.files import cache_folder


def plain(value, height=40, width=50):
    return encode(np.full((3, height, width), value, dtype=np.uint8))


@pytest.fixture
def tree(tmp_path):
    """Two classes; the grey value of an image is its place in the expected order."""
    root = tmp_path / "pets"
    files = ["cat/a.png", "cat/b.PNG", "cat/deep/er/c.png", "dog/1.png", "dog/2.jpg"]
    for value, name in enumerate(files):
        for split in ("train", "test"):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(plain(10 * value, 20 + value, 60 - value))
    return root


def load(tree, split="train", size=16):
    return sources.load("folder", split, data_dir=tree, image_size=size)


@pytest.mark.parametrize("size", [1, 16, 33])
def test_images_of_any_size_come_in_order_of_class_and_path(tree, size):
    for split in ("train", "test"):
        images = load(tree, split, size)
        assert images.pixels.shape == (5, 3, size, size)
        assert images.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
        assert images.labels.tolist() == [0, 0, 0, 1, 1]
        assert images.classes == ["cat", "dog"]
        assert images.name == "folder pets"


def test_images_are_decoded_once(tree, monkeypatch):
    first = load(tree)

    def never(file, size):
        raise AssertionError(f"{file} was read again")

    monkeypatch.setattr(folder_source, "_read_file", never)
    load(tree).pixels.fill_(77)  # does not reach the file
    again = load(tree)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.pixels, first.pixels)
    assert again.pixels.is_contiguous()


def test_a_changed_folder_is_decoded_again(tree):
    prints = {load(tree).fingerprint}
    changed = tree / "train" / "cat" / "a.png"
    changed.write_bytes(plain(200))
    prints.add(load(tree).fingerprint)
    os.utime(changed, ns=(1, 1))
    assert load(tree).pixels[0, 0, 0, 0] == 200  # a time of change alone makes no other content
    prints.add(load(tree).fingerprint)
    (tree / "train" / "dog" / "3.png").write_bytes(plain(7))
    prints.add(load(tree).fingerprint)
    prints.add(load(tree, size=8).fingerprint)
    assert len(prints) == 4


def test_earlier_copies_of_a_changed_folder_are_removed_once_nobody_reads_them(tree, tmp_path):
    def change(value):
        (tree / "train" / "cat" / "a.png").write_bytes(plain(value))

    def kept(suffix):
        return sorted(path.name for path in cache_folder().rglob(f"*{suffix}"))

    shutil.copytree(tree, tmp_path / "other")
    others = [load(tree, size=8), load(tmp_path / "other")]  # of another size, of another folder
    others = {*kept(".pixels")}
    assert len(others) == 2
    copies = []
    for value in (1, 200, 3):
        change(value)
        assert load(tree).pixels[0, 0, 0, 0] == value
        copies += {*kept(".pixels")} - others
        assert len(kept(".pixels")) == len(kept(".records")) == 3
    assert len({*copies}) == 3
    read = folder_source.read(tree, 16, lambda _: None)
    (cache_folder() / "folders" / f"{read.cache.stem[:17]}{'0' * 32}.pixels.part").write_bytes(b"of a killed pass")
    for value in (60, 61):
        change(value)
        load(tree)
        assert read.pixels[0, 0, 0, 0] == 3
        assert {*others, copies[-1]} < {*kept(".pixels")}
        assert len(kept(".pixels")) == len(kept(".records")) == 4
        assert kept(".part") == []
    del read
    change(62)
    load(tree)
    assert len(kept(".pixels")) == len(kept(".records")) == 3


@pytest.mark.parametrize("suffix", [".pixels", ".records"])
@pytest.mark.parametrize("damage", ["short", "long", "gone", "empty"])
def test_a_damaged_cache_is_made_again(tree, damage, suffix):
    first = load(tree)
    [kept] = cache_folder().rglob(f"*{suffix}")
    content = kept.read_bytes()
    kept.unlink()
    if damage != "gone":
        kept.write_bytes({"short": content[:-1], "long": content + b"x", "empty": b""}[damage])
    again = load(tree)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.pixels, first.pixels)


BAD = {"a.png": b"", "b.jpg": b"text", "c.png": plain(3)[:60], "d.png": None}


def test_every_bad_file_is_reported_together_or_skipped(tree):
    first = load(tree)
    for name, content in BAD.items():
        path = tree / "train" / "dog" / name
        path.symlink_to(tree / "nowhere.png") if content is None else path.write_bytes(content)
    said = []
    with pytest.raises(InputError, match=r"4 of 14 files cannot be read.*bad_files skip") as caught:
        sources.load("folder", "train", data_dir=tree, image_size=16, announce=said.append)
    assert all(any(f"dog/{name}" in line for line in said) for name in BAD)
    assert all(line.count("cannot be read") < 2 for line in (*said, str(caught.value).partition("read: ")[2]))
    images = sources.load("folder", "train", data_dir=tree, image_size=16, bad_files="skip")
    assert [path for path, _ in images.skipped] == [f"train/dog/{name}" for name in BAD]
    assert torch.equal(images.pixels, first.pixels)
    assert images.fingerprint == first.fingerprint


def test_a_class_of_which_nothing_can_be_read_is_refused(tree):
    for path in (tree / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no training image of class dog"):
        sources.load("folder", "train", data_dir=tree, image_size=16, bad_files="skip")


def test_training_images_do_not_stand_in_for_test_images_that_cannot_be_read(tree):
    shutil.copytree(tree / "train", tree / "val")
    for path in (tree / "test").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no test image can be read"):
        sources.load("folder", "test", data_dir=tree, image_size=16, bad_files="skip")
    images = sources.load("folder", "train", data_dir=tree, image_size=16, bad_files="skip")
    assert (len(images), len(images.validation), images.own_test) == (5, 5, True)


def test_a_pass_that_was_killed_goes_on_where_it_stopped(tree, monkeypatch):
    first, read_file = load(tree), folder_source._read_file
    shutil.rmtree(cache_folder() / "folders")
    monkeypatch.setattr(folder_source, "_AT_A_TIME", 3)
    done = []

    def killed(file, size):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(file)
        return read_file(file, size)

    with monkeypatch.context() as patched:
        patched.setattr(folder_source, "_read_file", killed)
        patched.setattr(folder_source.os, "cpu_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            load(tree)
    with next(cache_folder().rglob("*.pixels.part")).open("ab") as part:
        part.write(b"half an image")
    again = []
    monkeypatch.setattr(folder_source, "_read_file", lambda file, size: again.append(file) or read_file(file, size))
    assert torch.equal(load(tree).pixels, first.pixels)
    assert {*done[:6]}.isdisjoint(again)
    assert len(again) == 4
    assert not list(cache_folder().rglob("*.part"))


def test_a_folder_without_test_images_gives_a_share_of_each_class_whatever_the_names(tree, tmp_path):
    rng, flat, renamed = np.random.default_rng(0), tmp_path / "flat", tmp_path / "renamed"
    pictures = [(label, encode(rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))) for label in "aaaaaaaaaabbbbbc"]
    for number, (label, content) in enumerate([*pictures, pictures[0]]):
        for root, name in ((flat, f"{number}.png"), (renamed, f"{99 - number}.png")):
            (root / label).mkdir(parents=True, exist_ok=True)
            (root / label / name).write_bytes(content)
    found = {root: [load(root, split) for split in ("train", "test")] for root in (flat, renamed)}
    train, test = found[flat]
    assert train.labels.bincount().tolist() == [9, 4, 1]
    assert test.labels.bincount(minlength=3).tolist() == [2, 1, 0]
    rows = [{bytes(image.numpy().tobytes()) for image in split.pixels} for split in (train, test)]
    assert rows[0].isdisjoint(rows[1])  # equal pictures lie on one side
    assert rows == [{bytes(image.numpy().tobytes()) for image in split.pixels} for split in found[renamed]]
    larger = sources.load("folder", "test", data_dir=flat, image_size=16, test_size=0.5)
    assert rows[1] < {bytes(image.numpy().tobytes()) for image in larger.pixels}


def test_grey_stays_grey_unless_asked_otherwise(tmp_path):
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for split, label in itertools.product(("train", "test"), "ab"):
        (tmp_path / split / label).mkdir(parents=True)
        Image.fromarray(levels + ord(label)).save(tmp_path / split / label / "1.png")
    grey = sources.load("folder", "train", data_dir=tmp_path, image_size=8)
    assert torch.equal(grey.pixels[0, 0], torch.from_numpy(levels + ord("a")))
    assert grey.pixels.shape == (2, 1, 8, 8)
    colour = sources.load("folder", "train", data_dir=tmp_path, image_size=8, channels=3)
    assert torch.equal(colour.pixels, grey.pixels.expand(2, 3, 8, 8))
    assert colour.fingerprint != grey.fingerprint
    (tmp_path / "test" / "a" / "2.png").write_bytes(plain(3))
    assert load(tmp_path).pixels.shape[1] == 3
    assert torch.equal(sources.load("folder", "train", data_dir=tmp_path, image_size=8, channels=1).pixels, grey.pixels)


def test_own_validation_images_and_the_same_picture_twice(tree):
    shutil.copytree(tree / "test", tree / "valid")
    (tree / "valid" / "cat" / "a.png").write_bytes(plain(77))
    shutil.copy(tree / "train" / "cat" / "a.png", tree / "test" / "dog" / "3.png")
    said = []
    images = sources.load("folder", "train", data_dir=tree, image_size=16, announce=said.append)
    assert images.validation.pixels[:, 0, 0, 0].tolist() == [77, 10, 20, 30, 40]
    twice = [line for line in said if "the same picture" in line]
    assert len(twice) == 10  # four of validation, five of test, and the copy under another class
    assert any("train/cat/a.png" in line and "test/dog/3.png" in line for line in twice)


def test_a_cache_without_room_or_that_cannot_be_written(tree, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(folder_source.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(EnvironmentFault, match="no room"):
            load(tree)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        load(tree)


def test_a_large_choice_is_the_same_choice_in_a_file(tree, monkeypatch):
    images = load(tree)
    small = images.select([4, 0, 0, 2])
    monkeypatch.setattr(images_module, "MAX_IN_MEMORY", 10)
    large = images.select([4, 0, 0, 2])
    assert torch.equal(large.pixels, small.pixels)
    assert large.fingerprint == small.fingerprint
    left = {path.suffix for path in cache_folder().rglob("*.*")}
    assert left == {".pixels", ".records", ".sha256", ".lock"}  # no file is left behind


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    path, rows = tmp_path / "large", 2**22
    with path.open("wb") as file:
        file.truncate(rows * 3 * 64 * 64)  # 48 GiB of nothing: a sparse file
        file.seek(0)
        file.write(b"\x07")
    with path.open("rb") as file:
        pixels = mapped(file, (rows, 3, 64, 64))
    assert pixels[0, 0, 0, :2].tolist() == [7, 0]
    assert pixels[-1].sum() == 0
