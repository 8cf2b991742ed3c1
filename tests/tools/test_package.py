from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import diffvit
from diffvit import weights
from diffvit.config import parse
from diffvit.errors import InputError
from diffvit.training.evaluate import evaluate
from tools.package import main, package

SETTINGS: dict[str, Any] = {
    **{"data": "shapes", "epochs": 1, "batch_size": 50, "validation_size": 0, "device": "cpu", "precision": "bf16"},
    **{"shapes": {"size": 16, "train": 100, "test": 100}, "threads": 1},
    "model": {"image_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "attention": "differential"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one small epoch on the built-in shapes."""
    out = tmp_path_factory.mktemp("package") / "run"
    diffvit.train(parse(SETTINGS), out=out)
    return out


def test_the_packaged_model_evaluates_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    file = package(run, "small-diffvit", tmp_path)
    assert weights.packaged("small-diffvit", tmp_path) == file
    ours, stored = (evaluate(each, device="cpu") for each in (run, file))
    assert ours["precision"] == stored["precision"] == "bf16"
    for figure in ("accuracy", "loss", "predictions", "calibration_error"):
        assert stored[figure] == ours[figure]
    assert file.stat().st_size < 0.75 * (run / "model.safetensors").stat().st_size


def test_registry_and_card_come_from_the_runs_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text(json.dumps({"older": {"file": "older.safetensors", "sha256": "0"}}))
    file = package(run, "small-diffvit", tmp_path)
    entry = weights.registry(tmp_path)["small-diffvit"]
    assert list(weights.registry(tmp_path)) == ["older", "small-diffvit"]
    assert entry["sha256"] == weights.sha256_of(file)
    card = (tmp_path / entry["card"]).read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"| Test accuracy, these weights | {100 * entry['test_accuracy']:.2f}% (" in card
    for words in (entry["sha256"], result["data"], 'diffvit.load("small-diffvit")', "diffvit train --data shapes"):
        assert words in card
    assert str(run.parent) not in card
    assert str(tmp_path) not in card


def test_faults_are_one_line_with_the_exit_code(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "name"]) == 3
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(InputError, match="no such run"):
        package(tmp_path / "nowhere", "name", tmp_path)
