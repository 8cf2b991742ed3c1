"""What a finished run leaves: the model, and its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch

from diffvit.config import Config, config_hash
from diffvit.data.images import Images
from diffvit.training.files import disk_faults, replace, to_json
from diffvit.training.material import Material
from diffvit.training.run_dir import RunDir

# Figures that only some runs have.
OTHER_FIGURES = ("zero_shot_accuracy", "unseen_names_accuracy")


def data_facts(material: Material) -> dict[str, Any]:
    """What environment.json says of the data; the test set's count comes when it is scored."""
    counts = {"train": len(material.train), "validation": len(material.validation or ()), "test": None}
    return {
        "data": {"name": material.train.name, "fingerprint": material.fingerprint, **counts},
        "classes": material.train.classes,
        "mean": material.mean,
        "std": material.std,
    }


def write_model(run: RunDir, model: Any, facts: Mapping[str, Any]) -> str:
    """model.safetensors: the weights to evaluate, with what is needed to use them; returns its SHA-256, 64 hex digits.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    meta = {
        "model": model.settings,
        **{name: facts[name] for name in ("classes", "mean", "std")},
        "data": facts["data"]["name"],
        "fingerprint": facts["data"]["fingerprint"],
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors, {"diffvit": to_json(meta, indent=None).decode().strip()})
    with disk_faults(run.path / "model.safetensors", run.kept):
        replace(run.path / "model.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def evaluation(
    run: RunDir, facts: Mapping[str, Any], result: Mapping[str, Any], test: Images, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of evaluation.json: what :func:`diffvit.training.evaluate.evaluate` would return."""
    return {
        **figures,
        "run": str(run.path),
        "split": "test",
        "data": test.name,
        "fingerprint": test.fingerprint,
        "classes": test.classes,
        **{name: result[name] for name in ("parameters", "flops_per_image", "device", "precision")},
        "hardware": facts["hardware"],
    }


def result(
    config: Config,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json.

    Args:
        config: of the run.
        facts: the content of environment.json, the seconds that loading the data and compiling took, and the model's
            ``parameters``, ``flops_per_image`` and ``model_sha256``, that of its file.
        rows: of metrics.jsonl.
        figures: of the test set, from :func:`diffvit.training.score.score`.
    """
    seconds = sum(row["seconds"] for row in rows)
    return {
        "test_accuracy": figures["accuracy"],
        "val_accuracy": rows[-1]["val_accuracy"],
        "test_loss": figures["loss"],
        "test_top5": figures["top5"],
        **{name: figures[name] for name in OTHER_FIGURES if name in figures},
        "parameters": facts["parameters"],
        "flops_per_image": facts["flops_per_image"],
        "train_seconds": seconds,
        "data_seconds": facts["data_seconds"],
        "compile_seconds": facts["compile_seconds"],
        "images_per_second": rows[-1]["images_seen"] / seconds,
        "epochs": config.epochs,
        "seed": config.seed,
        "data": facts["data"]["name"],
        "device": facts["device"],
        "precision": facts["precision"],
        "attention": config.model.attention,
        "config_hash": config_hash(config),
        "model_sha256": facts["model_sha256"],
    }
