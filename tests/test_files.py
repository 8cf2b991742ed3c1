"""Files that are whole whatever happens."""

import errno
import json
import os

import pytest

from diffvit.errors import EnvironmentFault
from diffvit.files import disk_faults, replace, to_json


def test_replace_writes_and_leaves_nothing_else(tmp_path):
    replace(tmp_path / "a.json", b"one")
    replace(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault) as caught, disk_faults(path, "The old one is kept."):
        replace(path, b"new")
    assert str(caught.value) == f"{path}: cannot be written (no space left on device). The old one is kept."
    assert caught.value.exit_code == 4
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_json_has_no_nan():
    text = to_json({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": "ü"}}).decode()
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": "ü"}}
    assert "ü" in text
