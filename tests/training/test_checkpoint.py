"""Checkpoints: whole or not there, and what is damaged is never used."""

import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffvit.errors import InputError
from diffvit.training import checkpoint
from tests.training.small import full

PROGRESS = {"step": 3, "sums": {"loss": 0.1 + 0.2, "correct": 7.0}}


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(3, 4, generator=generator), "count": torch.tensor(5.0)},
        "ema": {"weight": torch.randn(3, 4, generator=generator).bfloat16().mT},
    }


def newest(folder):
    warnings = []
    return checkpoint.newest(folder, warnings.append), warnings


def test_what_goes_in_comes_out(tmp_path):
    checkpoint.save(tmp_path, 3, tensors(), PROGRESS)
    found, warnings = newest(tmp_path)
    assert warnings == []
    assert (found.step, found.progress) == (3, PROGRESS)
    for group, named in tensors().items():
        loaded = found.tensors(group)
        assert loaded.keys() == named.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in named.items())
        assert all(loaded[name].dtype == tensor.dtype for name, tensor in named.items())
    assert found.tensors("nothing") == {}


def test_the_newest_two_are_kept_and_hold_no_pickle(tmp_path):
    assert newest(tmp_path) == newest(tmp_path / "missing") == (None, [])
    for step in (1, 2, 9, 10, 100):
        path = checkpoint.save(tmp_path, step, tensors(step), PROGRESS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


FILES = ["model.safetensors", "ema.safetensors", "progress.json", "manifest.json"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def nonsense(path):
    path.write_bytes(b"\x00\xff" * 40)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        *(cut, nonsense, os.unlink),
        lambda path: path.write_bytes(path.read_bytes() + b" x"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_damaged_one_is_skipped_with_a_line(tmp_path, name, damage):
    checkpoint.save(tmp_path, 1, tensors(), PROGRESS)
    path = checkpoint.save(tmp_path, 2, tensors(), PROGRESS)
    damage(path / name)
    if damage is cut and name == "manifest.json":  # cutting its last line break changes nothing it says
        cut(path / name)
    found, warnings = newest(tmp_path)
    assert found.step == 1
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert "\n" not in warnings[0]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_is_loaded(tmp_path, name, place, bit):
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    path = checkpoint.save(tmp_path / "checkpoints", 1, tensors(), PROGRESS)
    content = bytearray((path / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (path / name).write_bytes(content)
    try:
        found, _ = newest(tmp_path / "checkpoints")
    except InputError:
        return
    # Only the manifest's blanks and the names of files that then look foreign may change without harm.
    assert name == "manifest.json"
    assert found.progress == PROGRESS
    assert torch.equal(found.tensors("model")["weight"], tensors()["model"]["weight"])


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        [],
        {"format": 99, "step": 1, "files": {}},
        {"format": 1, "step": 2, "files": {}},
        {"format": 1, "step": 1, "files": {}},
        {"format": 1, "step": 1, "files": {"../../outside": {"bytes": 1, "sha256": ""}}},
        {"format": 1, "step": 1, "files": {"progress.json": {"bytes": 10**15, "sha256": "0"}}},
        {"format": 1, "step": 1, "files": {"progress.json": 3}},
    ],
    ids=str,
)
def test_a_foreign_manifest_is_refused(tmp_path, manifest):
    path = checkpoint.save(tmp_path, 1, tensors(), PROGRESS)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="none of its 1 checkpoints is intact"):  # nothing starts over silently
        newest(tmp_path)


def test_a_kill_inside_a_save_leaves_nothing_that_counts(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), PROGRESS)
    half = tmp_path / ".writing-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found, warnings = newest(tmp_path)
    assert (found.step, warnings) == (1, [])
    checkpoint.save(tmp_path, 2, tensors(), PROGRESS)
    assert not half.exists()


@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_the_older_ones_whole(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, tensors(), PROGRESS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real, calls = os.fsync, []

    def full_at_once(handle):
        calls.append(handle)
        if len(calls) == call:
            full()
        real(handle)

    monkeypatch.setattr(os, "fsync", full_at_once)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, tensors(1), PROGRESS)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_one_pushes_out_no_good_one_and_is_replaced_when_it_is_reached_again(tmp_path):
    for step in (1, 5):
        path = checkpoint.save(tmp_path, step, tensors(), PROGRESS)
    nonsense(path / "model.safetensors")
    checkpoint.save(tmp_path, 2, tensors(), PROGRESS)  # resumed from 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002", "step-00000005"]
    checkpoint.save(tmp_path, 5, tensors(), PROGRESS)
    found, warnings = newest(tmp_path)
    assert (found.step, warnings) == (5, [])
