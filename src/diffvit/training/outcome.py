"""What a finished run leaves: the model, and its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import nn

from diffvit.config import Config, config_hash
from diffvit.data.images import Images
from diffvit.training.files import disk_faults, replace, to_json
from diffvit.training.material import Material
from diffvit.training.run_dir import RunDir

# What only some runs have: figures of a CLIP, and the footnote that some data asks for.
OTHER_FIGURES = ("zero_shot_accuracy", "unseen_names_accuracy", "data_note")


def data_facts(material: Material, test: Images) -> dict[str, Any]:
    """What environment.json says of the data; the test set's count comes when it is scored."""
    name = material.train.name
    if test.name != name:  # each split has the name of its own content
        name += f", tested on {test.name}"
    counts = {"train": len(material.train), "validation": len(material.validation or ()), "test": None}
    return {
        "data": {"name": name, "fingerprint": material.fingerprint, **counts},
        "classes": material.train.classes,
        "mean": material.mean,
        "std": material.std,
    }


def own_modules(model: Any) -> dict[str, str]:
    """The modules that the model's settings do not give again, with their classes; the model itself is called ``""``.

    Compared are the modules' classes, attributes and hooks with those of a model freshly made from the settings. Empty
    for a model of diffvit's as its constructor makes it: of such a one :func:`diffvit.load` can compute the same.
    """
    if not type(model).__module__.startswith("diffvit."):
        return {"": qualified_name(model)}
    settings = {name: value for name, value in model.settings.items() if name != "kind"}
    with torch.random.fork_rng(devices=[]):
        usual = {name: _signature(module) for name, module in type(model)(**settings).named_modules()}
    return {
        name: qualified_name(module) for name, module in model.named_modules() if _signature(module) != usual.get(name)
    }


def qualified_name(thing: object) -> str:
    """``module.Class`` of an object."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _signature(module: nn.Module) -> tuple[object, ...]:
    """What a module computes depends on, but for its tensors and the modules in it."""
    attributes = vars(module)
    plain = {name: value for name, value in attributes.items() if isinstance(value, bool | int | float | str)}
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return type(module), attributes.keys(), plain, hooks


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
    if facts["own_modules"]:
        meta["own_modules"] = facts["own_modules"]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors, {"diffvit": to_json(meta, indent=None).decode().strip()})
    with disk_faults(run.path / "model.safetensors", run.kept):
        replace(run.path / "model.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def evaluation(
    run: RunDir, facts: Mapping[str, Any], result: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of evaluation.json: what :func:`diffvit.training.evaluate.evaluate` would return."""
    return {
        **figures,
        "run": str(run.path),
        "split": "test",
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
        figures: of the test set, from :func:`diffvit.training.score.described`.
    """
    seconds = sum(row["seconds"] for row in rows)
    return {
        "test_accuracy": figures["accuracy"],
        "val_accuracy": rows[-1]["val_accuracy"],
        "test_loss": figures["loss"],
        "test_top5": figures["top5"],
        **({"test_accuracy_exact": figures["accuracy_exact"]} if "accuracy_exact" in figures else {}),
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
