"""A trained model on data it can be scored on, and on single image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffvit.config import Config, parse, to_dict
from diffvit.data import sources
from diffvit.data.images import Images, decode, resize
from diffvit.errors import ConfigError, InputError, did_you_mean
from diffvit.files import disk_faults, replace, to_json
from diffvit.kernels import accelerate
from diffvit.training.environment import hardware, resolve_device, resolve_precision
from diffvit.training.load import Meta, Reference, load_with_meta
from diffvit.training.run_dir import RunDir, config_faults
from diffvit.training.score import described, flops_per_image, logits_of, score

SPLITS = ("test", "validation", "train")
Wanted = tuple[str, str | None, Path | None]  # split, and where other than the run says: data source, its folder


def evaluate(
    run: Reference,
    *,
    split: str = "test",
    data: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Score a trained model; on its own data the figures are also written into the run folder.

    The file is ``evaluation.json`` for the test set and ``evaluation-SPLIT.json`` for the others. Returned are the
    figures of :func:`score` with ``run``, ``split``, ``data``, ``fingerprint``, ``classes``, ``parameters``,
    ``flops_per_image``, ``device``, ``hardware`` and ``precision``; on CIFAR-10 with some images from a JPEG copy also
    ``data_note``, and ``accuracy_exact`` on the other ``images_exact``.

    Args:
        run: a run folder, a weights file or a packaged name.
        split: ``test``, ``validation`` (the images its training set kept apart) or ``train`` (those it learnt from,
            not augmented).
        data: another data source than the model's own; its classes must be the model's.
        data_dir: where the data lies; by default where the run had it, for CIFAR-10 else where it is always looked
            for (:func:`diffvit.data.sources.load`).
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, or ``auto``: see :func:`precision_of`.

    Raises:
        ConfigError: no such split, or the model does not say which data it is for.
        InputError: the model or the data is missing or damaged, or they do not fit each other.
    """
    if split not in SPLITS:
        raise ConfigError("split", f"{split!r} vs {', '.join(SPLITS)}", did_you_mean(split, SPLITS))
    device = resolve_device(device)
    model, meta = load_with_meta(run, device=device)
    accelerate(model)
    config = config_of(run, meta)
    where = {"precision": precision_of(meta, precision, device), "device": device}
    images = images_of(run, model.settings["image_size"], meta, config, (split, data, data_dir))
    size = max(500, config.batch_size if config else 0)
    figures = score(model, images, mean=meta["mean"], std=meta["std"], batch_size=size, **where)
    facts = {
        "run": str(run.path if isinstance(run, RunDir) else run),
        "split": split,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_image": flops_per_image(model),
        "device": device,
        "hardware": hardware(device),
        "precision": where["precision"],
    }
    figures = {**facts, **described(images, figures)}
    folder = Path(facts["run"])
    if folder.is_dir() and data is None and images.name == meta["data"]:
        path = folder / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")
        with disk_faults(path):
            replace(path, to_json(figures, indent=None))
    return figures


def config_of(run: object, meta: Meta) -> Config | None:
    """The run's config from its model's metadata; None where it has none; InputError where it is damaged."""
    with config_faults():
        return None if meta["config"] is None else parse(meta["config"], str(run))


def precision_of(meta: Meta, asked: str, device: str) -> str:
    """What was asked for; for ``auto`` what the run recorded, so that its figures can be repeated anywhere."""
    recorded, path = meta.get("precision"), Path(meta["file"]).parent
    if recorded is None and (path / "environment.json").is_file():
        recorded = RunDir(path).environment.get("precision")
    return resolve_precision(recorded if asked == "auto" and recorded in ("fp32", "bf16") else asked, device)


def images_of(run: object, image_size: int, meta: Meta, config: Config | None, wanted: Wanted) -> Images:
    """The images to score on, their classes checked against the model's."""
    split, data, data_dir = wanted
    source = data or (config.data if config else "auto")
    if source == "auto" and data is None:
        # A run of data auto may have found CIFAR-10 elsewhere than in the folder that it names: cifar10 would not.
        known = {"CIFAR-10": "auto" if config else "cifar10", "shapes": "shapes" if config else ""}
        source = next((name for start, name in known.items() if str(meta["data"]).startswith(start)), "")
    if not source:
        raise ConfigError(str(run), f"does not say where its data ({meta['data']}) comes from", "Give --data.")
    size = config.validation_size if config else 0
    if split == "validation" and not size:
        why = "has no validation split: it was trained on every training image"
        raise InputError(str(run), why, "Take --split test or --split train.")
    if data_dir is None and config and data in (None, config.data):
        data_dir = sources.place_of(source, None) or config.data_dir  # the variable stands above a run's config.yaml
        if source != "folder" and data_dir and not data_dir.is_dir():
            data_dir = None  # as on another machine: CIFAR-10 is the same wherever it is found
    part, shapes = "test" if split == "test" else "train", to_dict(config.shapes) if config else None
    how = {"test_size": config.test_size, "bad_files": config.bad_files} if config else {}
    how |= {"image_size": image_size, "channels": len(meta["mean"]), "shapes": shapes}
    images = sources.load(source, part, data_dir=data_dir, **how)
    own = images.validation
    images = own if own is not None and split == "validation" else images
    if sorted(images.classes) != sorted(meta["classes"]):
        why = f"has other classes than the model ({_few(images.classes)} vs {_few(meta['classes'])})"
        raise InputError(images.name, why, "Take the data the model was trained on.")
    # Labels counted in the model's order of the classes.
    place = torch.tensor([meta["classes"].index(name) for name in images.classes])
    images = dataclasses.replace(images, labels=place[images.labels], classes=list(meta["classes"]))
    if split == "test" or own is not None:
        return images
    ours, held = sources.validation_split(images.labels, size)
    return images.select(held if split == "validation" else ours)


def _few(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def predict(
    run: Reference, paths: Sequence[Path | str], top: int = 5, *, device: str = "auto", precision: str = "auto"
) -> list[dict[str, Any]]:
    """What a trained model sees in image files: the centred square, scaled to the model's input.

    Per image ``{"image": path, "top": [[class name, probability], ...]}``, likeliest first. InputError where the model
    or an image is missing, damaged or over a limit.
    """
    device = resolve_device(device)
    model, meta = load_with_meta(run, device=device)
    accelerate(model)
    size = model.settings["image_size"]
    pixels = [torch.from_numpy(resize(decode(Path(path), name=str(path)), size)) for path in paths]
    if not pixels:
        return []
    where: dict[str, Any] = {"precision": precision_of(meta, precision, device), "device": device}
    logits = logits_of(model, torch.stack(pixels), mean=meta["mean"], std=meta["std"], **where)
    likeliest = logits.softmax(1).topk(min(max(top, 1), logits.shape[1]), dim=1)
    return [
        {"image": str(path), "top": [[meta["classes"][index], float(value)] for value, index in zip(*row, strict=True)]}
        for path, *row in zip(paths, likeliest.values, likeliest.indices.tolist(), strict=True)
    ]
