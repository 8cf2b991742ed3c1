from __future__ import annotations

import json
from pathlib import Path

import pytest

import diffvit
from diffvit import weights
from diffvit.clip.small.load import load_small
from diffvit.errors import InputError


def test_every_packaged_model_is_what_the_registry_says() -> None:
    files = {path.name for path in weights.FOLDER.glob("*.safetensors")}
    assert files == {entry["file"] for entry in weights.registry().values()}
    assert weights.names() == sorted(weights.registry())
    assert weights.packaged("no-such-model") is None
    for name, entry in weights.registry().items():
        path = weights.packaged(name)
        assert path is not None
        assert path.stat().st_size < 4_000_000
        assert entry["sha256"] in (weights.FOLDER / entry["card"]).read_text(encoding="utf-8")
        model = load_small(name).model if name == "cifar10-clip" else diffvit.load(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1234")
    entry = {"file": "a.safetensors", "sha256": weights.sha256_of(tmp_path / "a.safetensors")}
    (tmp_path / "registry.json").write_text(json.dumps({"a": entry}))
    assert weights.packaged("a", tmp_path) == tmp_path / "a.safetensors"
    (tmp_path / "a.safetensors").write_bytes(b"1235")
    with pytest.raises(InputError, match=r"a\.safetensors is damaged \(SHA-256"):
        weights.packaged("a", tmp_path)
