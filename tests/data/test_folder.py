"""Folders of images: any size in, one size out, decoded once, as large as the disk allows."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cifar10_files import encode

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


def test_what_is_no_image_and_hidden_files_are_left_out(tree):
    for name in ("train/cat/.DS_Store", "train/cat/Thumbs.db", "train/cat/readme.TXT", "train/notes.md"):
        (tree / name).write_text("x")
    (tree / "train" / ".git").mkdir()
    (tree / "train" / "cat" / "loop").symlink_to(tree / "train")
    assert len(load(tree)) == 5


def test_images_are_decoded_once(tree, monkeypatch):
    first = load(tree)

    def never(data, *, name):
        raise AssertionError(f"{name} was decoded again")

    monkeypatch.setattr(folder_source, "decode", never)
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


@pytest.mark.parametrize("damage", ["short", "long", "gone", "empty", "bytes"])
def test_a_damaged_cache_is_made_again(tree, damage):
    first = load(tree)
    [kept] = (cache_folder() / "folders").iterdir()
    content = kept.read_bytes()
    kept.unlink()
    if damage != "gone":
        kept.write_bytes(
            {"short": content[:-1], "long": content + b"x", "empty": b"", "bytes": content[:-64] + b"\xff" * 64}[damage]
        )
    again = load(tree)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.pixels, first.pixels)


def test_test_may_lack_a_class_be_called_val_but_has_no_class_of_its_own(tree):
    for path in (tree / "test" / "cat").rglob("*.*"):
        path.unlink()
    with pytest.raises(InputError, match="holds no images"):
        load(tree, "test")
    shutil.rmtree(tree / "test" / "cat")
    (tree / "test").rename(tree / "val")
    assert load(tree, "test").labels.tolist() == [1, 1]
    (tree / "val" / "cow").mkdir()
    with pytest.raises(InputError, match=r"cow: is a class that train/ does not have"):
        load(tree, "test")


@pytest.mark.parametrize("content", [b"", b"text", plain(3)[:60], None])
def test_an_unreadable_image_is_named(tree, content):
    if content is None:
        (tree / "train" / "dog" / "bad.png").symlink_to(tree / "nowhere.png")
    else:
        (tree / "train" / "dog" / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png"):
        load(tree)
    assert list(cache_folder().rglob("*.pixels")) == []
    assert list(cache_folder().rglob("*.part")) == []


def test_missing_folders(tmp_path, tree):
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nothing")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="no folders of classes"):
        load(tmp_path / "bare")
    with pytest.raises(InputError, match="--data-dir"):
        sources.load("folder", "train", data_dir=None, image_size=16)


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
    assert [path.suffix for path in cache_folder().rglob("*.*")] == [".pixels"]  # no file left behind


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    path, rows = tmp_path / "large", 2**22
    with path.open("wb") as file:
        file.truncate(rows * 3 * 64 * 64)  # 48 GiB of nothing: a sparse file
        file.seek(0)
        file.write(b"\x07")
    pixels = mapped(path, (rows, 3, 64, 64))
    assert pixels[0, 0, 0, :2].tolist() == [7, 0]
    assert pixels[-1].sum() == 0
