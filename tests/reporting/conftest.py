"""Run folders as training leaves them, made in a moment."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffvit import Report, compare
from diffvit.config import config_hash, parse, to_yaml

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MODEL = {"embed_dim": 32, "depth": 3, "num_heads": 4}


def _epoch(number: int, epochs: int, accuracy: float, validated: bool, differential: bool) -> dict[str, Any]:
    reached = accuracy * (1 - math.exp(-4 * number / epochs))
    return {
        "epoch": number,
        "step": number * 10,
        "images_seen": number * 1000,
        "train_loss": 2.2 - reached,
        "train_accuracy": reached,
        "val_loss": 2.1 - reached if validated else None,
        "val_accuracy": reached if validated else None,
        "lr": 1e-3 / number,
        "muon_lr": None,
        "gradient_norm": 1.25,
        "lambda": [0.2 + 0.1 * block + 0.01 * number for block in range(3)] if differential else [],
        "images_per_second": 480.5,
        "seconds": 2.0,
    }


def _evaluation(accuracy: float, count: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    labels = [index % 10 for index in range(count)]
    right = round(accuracy * count)
    order = draw.sample(range(count), count)
    predictions = list(labels)
    for index in order[right:]:
        predictions[index] = (labels[index] + 1 + draw.randrange(9)) % 10
    confusion = [[0] * 10 for _ in range(10)]
    for true, found in zip(labels, predictions, strict=True):
        confusion[true][found] += 1
    return {
        "loss": 0.6,
        "accuracy": right / count,
        "top5": 0.98,
        "per_class_accuracy": [row[index] / sum(row) for index, row in enumerate(confusion)],
        "confusion": confusion,
        "calibration_error": 0.034,
        "fingerprint": f"{count} images",
        "labels": labels,
        "predictions": predictions,
        "images": count,
    }


def write_run(
    folder: Path,
    *,
    attention: str = "softmax",
    seed: int = 0,
    epochs: int = 3,
    accuracy: float = 0.8,
    data: str = "CIFAR-10 (JPEG)",
    validated: bool = True,
    evaluated: bool = True,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A finished run with 200 test images."""
    folder.mkdir(parents=True)
    model = {"attention": attention, **MODEL}
    config = parse({"epochs": epochs, "seed": seed, "model": model, "augment": {"flip": True}, **(settings or {})})
    rows = [_epoch(number, epochs, accuracy, validated, attention == "differential") for number in range(1, epochs + 1)]
    figures = _evaluation(accuracy, 200, seed + (attention == "differential"))
    environment = {
        **{"diffvit": "0.1.0", "python": "3.11", "torch": "2.13.0", "hardware": "Some CPU | 9", "device": "cpu"},
        **{"cores": 2, "threads": 2, "precision": "bf16", "commit": "0123456789abcdef"},
        "data": {"name": data, "fingerprint": data.encode().hex(), "train": 900, "validation": 100, "test": 200},
        **{"classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    result = {
        **{"test_accuracy": figures["accuracy"], "val_accuracy": rows[-1]["val_accuracy"], "test_loss": 0.6},
        **{"test_top5": 0.98, "parameters": 811018, "flops_per_image": 115_000_000, "train_seconds": 5432.1},
        **{"images_per_second": 480.5, "epochs": epochs, "seed": seed, "data": data, "device": "cpu"},
        **{"precision": "bf16", "attention": attention, "config_hash": config_hash(config)},
    }
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluated:
        (folder / "evaluation.json").write_text(json.dumps(figures))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("a", attention="differential", ...)`` writes ``runs/a`` and gives its path."""

    def make(name: str, **options: Any) -> Path:
        return write_run(tmp_path / "runs" / name, **options)

    return make


@pytest.fixture(scope="session")
def pair_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A ViT and a Diff-ViT compared; to look at, not to change."""
    runs = tmp_path_factory.mktemp("pair") / "runs"
    pair = [write_run(runs / "a"), write_run(runs / "b", attention="differential", accuracy=0.82)]
    return compare(pair, out=runs.parent / "report")
