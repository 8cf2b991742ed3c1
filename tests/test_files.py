"""Files that are whole whatever happens."""

import json
import os

import pytest

from diffvit.errors import EnvironmentFault
from diffvit.files import disk_faults, replace, to_json
from tests.training.small import full


def test_a_full_disk_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    for content in (b"older", b"old"):
        replace(path, content)
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
