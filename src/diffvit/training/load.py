"""Trained models as files: writing ``model.safetensors``, and loading one from a run folder, a file or a packaged name.

Everything in a file is checked before it is believed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from diffvit import weights
from diffvit.config import ModelConfig, validate
from diffvit.data.memory import Preprocess
from diffvit.errors import ConfigError, InputError, Size, checked_size, suggestion
from diffvit.files import disk_faults, replace, sha256_of, to_json
from diffvit.hub.files import OWN_HINT, NoInit, check_finite, check_weights, read_header, read_safetensors
from diffvit.kernels import accelerate
from diffvit.models.vit import VisionTransformer
from diffvit.training.environment import resolve_device, resolve_precision
from diffvit.training.run_dir import RunDir

MODEL_FILE = "model.safetensors"
METADATA_KEY = "diffvit"
_LARGEST = torch.finfo(torch.float32).max
Reference = RunDir | Path | str  # what a user calls a model by
Meta = dict[str, Any]


def load(reference: Reference, *, device: torch.device | str = "cpu") -> VisionTransformer:
    """A trained model in evaluation mode, float32, on ``device`` (``"auto"`` takes CUDA where there is one).

    Its ``classes`` are the names of its outputs (list of str), and ``preprocess`` turns a path, a Pillow picture, an
    array or a tensor into its input, (chans, size, size) on the CPU: see :class:`diffvit.data.memory.Preprocess`.
    ``reference`` is a run folder (``runs/NAME``), a ``.safetensors`` file, or a packaged name (``cifar10-vit``).
    InputError for no such model, no weights file of diffvit, a damaged one, or missing, unexpected, misshapen or
    non-finite weights.
    """
    return load_with_meta(reference, device=device)[0]


def load_with_meta(reference: Reference, *, device: torch.device | str = "cpu") -> tuple[VisionTransformer, Meta]:
    """As :func:`load`, with what the file says of itself.

    That is a dict with ``classes``, ``mean``, ``std`` (per channel, 0..1), ``data``, ``fingerprint``, ``config``
    (nested plain values, or None where unknown) and ``file``.
    """
    path = locate(reference)
    header = read_header(path)
    settings, meta = _metadata(path, header)
    _check_shapes(path, header, settings)
    state = read_safetensors(path, OWN_HINT)
    check_finite(str(path), state, "Train it again or take another file.")
    model = _build(settings)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.classes = list(meta["classes"])
    model.preprocess = Preprocess(settings["image_size"], tuple(meta["mean"]), tuple(meta["std"]))
    beside = path.name == MODEL_FILE and (path.parent / "config.yaml").is_file()
    own = RunDir(path.parent).settings if beside else meta.get("config")
    return model.to(device).eval(), {**meta, "config": own, "file": path}


def at_size(model: VisionTransformer, size: Size | None) -> VisionTransformer:
    """A model that :func:`load` gave, or for another ``size`` than its own a copy that takes this one.

    See :meth:`diffvit.VisionTransformer.set_input_size`. ConfigError where the patch does not divide the size.
    """
    size = None if size is None else checked_size("size", size)
    if size in (None, model.settings["image_size"]):
        return model
    model = copy.deepcopy(model)
    model.set_input_size(size)
    model.preprocess = changed(model.preprocess, image_size=size)
    return model


def ready(
    model: Reference | nn.Module, device: str, precision: str, size: Size | None = None
) -> tuple[Any, Meta, dict[str, Any]]:
    """A model to score with, loaded and accelerated; its metadata; and the arguments of ``logits_of``.

    One that :func:`load` gave is taken as it is and where it is; it has no metadata, and ``auto`` precision is fp32.
    ``size`` is :func:`at_size`'s. ConfigError for any other module.
    """
    meta: Meta = {}
    if not isinstance(model, nn.Module):
        device = resolve_device(device)
        module, meta = load_with_meta(model, device=device)
        module = at_size(module, size)
        accelerate(module)
        where: dict[str, Any] = {"device": device, "precision": precision_of(meta, precision, device)}
    elif isinstance(getattr(model, "preprocess", None), Preprocess):
        module, place = at_size(model, size), next(model.parameters()).device  # pyright: ignore[reportArgumentType]
        where = {"device": place, "precision": "fp32" if precision == "auto" else precision}
    else:
        hint = "Take what diffvit.load gives, or a run folder."
        raise ConfigError("model", "does not know its classes and its images' normalisation", hint)
    preprocess: Any = module.preprocess
    return module, meta, {**where, "mean": preprocess.mean, "std": preprocess.std}


def precision_of(meta: Meta, asked: str, device: str) -> str:
    """What was asked for; for ``auto`` what the run recorded, so that its figures can be repeated anywhere."""
    recorded, path = meta.get("precision"), Path(meta["file"]).parent
    if recorded is None and (path / "environment.json").is_file():
        recorded = RunDir(path).environment.get("precision")
    return resolve_precision(recorded if asked == "auto" and recorded in ("fp32", "bf16") else asked, device)


def locate(reference: Reference) -> Path:
    """The weights file a reference means; a packaged one and a finished run's are checked against their SHA-256.

    InputError where nothing is there, or a damaged file.
    """
    place: Path | str = reference if isinstance(reference, Path | str) else reference.path
    path = Path(place)
    if path.is_dir() and not (path / MODEL_FILE).is_file():
        why, hint = f"has no {MODEL_FILE}: the run did not finish", f"Finish it with: {RunDir(path).resume_command}"
        if RunDir(path).finished:
            why, hint = f"has lost its {MODEL_FILE}", "Restore that file, or train again into another folder."
        if not RunDir(path).is_run:
            why, hint = f"is not a run folder (it has no config.yaml, no {MODEL_FILE})", OWN_HINT
        raise InputError(str(path), why, hint)
    if path.exists():
        return _intact(path / MODEL_FILE if path.is_dir() else path)
    file = weights.packaged(str(place))
    if file is None:
        names = weights.names()
        have = f"packaged: {', '.join(names)}" if names else "none is packaged"
        raise InputError(str(place), f"no such run, file or packaged model ({have})", suggestion(str(place), names))
    return file


def _intact(file: Path) -> Path:
    """The file, its SHA-256 checked where its run's result.json lies beside it and names one."""
    run = RunDir(file.parent)
    expected = run.result.get("model_sha256") if file.name == MODEL_FILE and run.finished else None
    if expected is not None and (found := sha256_of(file)) != expected:
        why = f"is damaged, or not the one its run wrote (SHA-256 {found[:12]}... vs {str(expected)[:12]}...)"
        raise InputError(str(file), why, "Take a copy of it, or train again into another folder.")
    return file


def metadata_of(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """What a weights file of ours says of itself, ``model`` (its settings) among it.

    InputError where it says nothing, or that its settings do not give the model that was trained.
    """
    try:
        meta = dict(json.loads(header["__metadata__"][METADATA_KEY]))
        meta["model"], meta["data"] = dict(meta["model"]), str(meta.get("data", "unknown"))
        own = dict(meta.get("own_modules", {}))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(str(path), "has no model metadata: diffvit did not write it", OWN_HINT) from None
    for name, kind in own.items():
        more = f", and {len(own) - 1} more" if len(own) > 1 else ""
        why = f"cannot be rebuilt: {name or 'the model'} is {kind}, which its settings do not describe{more}"
        raise InputError(str(path), why, "Build the model in Python, and load the file's tensors into it.")
    return meta


def _metadata(path: Path, header: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model settings and the rest of the metadata, validated."""
    meta = metadata_of(path, header)
    settings = meta.pop("model")
    if settings.get("kind") == "clip":
        hint = f"Use it with: diffvit clip classify IMAGE --model {path} --labels A,B"
        raise InputError(str(path), "is a CLIP, not a classifier", hint)
    try:
        config = validate(ModelConfig, settings, lambda key, _: ".".join(key) or "its settings")
    except ConfigError as error:
        raise InputError(str(path), f"describes an impossible model: {error.what}: {error.why}") from None
    for key, expected in (("classes", config.num_classes), ("mean", config.in_chans), ("std", config.in_chans)):
        found = meta.get(key)
        count = len(found) if isinstance(found, list) else "none"
        if count != expected:
            raise InputError(str(path), f"its metadata {key} does not fit its model ({count} vs {expected})")
    numbers = meta["mean"] + meta["std"]
    if not all(isinstance(x, int | float) and abs(x) <= _LARGEST for x in numbers) or min(meta["std"]) <= 0:
        raise InputError(str(path), "its metadata mean and std are not positive finite numbers")
    return config.model_dump(exclude={"preset"}), meta


def _check_shapes(path: Path, header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Names and shapes in the header against those of the model that its settings describe; allocates nothing."""
    found = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    # Counting blocks first keeps a file that claims a million of them from building a million.
    blocks = {name.split(".")[1] for name in found if name.startswith("blocks.") and name.count(".") > 1}
    if len(blocks) != settings["depth"]:
        why = f"its weights do not fit its settings ({len(blocks)} blocks vs {settings['depth']})"
        raise InputError(str(path), why)
    try:
        with torch.device("meta"), NoInit():
            expected = {name: tuple(tensor.shape) for name, tensor in _build(settings).state_dict().items()}
    except (ConfigError, RuntimeError, ValueError) as error:
        why = f"describes an impossible model: {' '.join(str(error).split())[:120]}"
        raise InputError(str(path), why) from None
    check_weights(str(path), found, expected, why="its weights do not fit its settings: ")


def _build(settings: Mapping[str, Any]) -> VisionTransformer:
    """The model with throw-away weights; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(**{**settings, "init": "trunc-normal"})
    model.settings["init"] = settings["init"]
    return model


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
    own = {name: module for name, module in model.named_modules() if _signature(module) != usual.get(name)}
    return {name: qualified_name(module) for name, module in own.items()}


def qualified_name(thing: object) -> str:
    """``module.Class`` of an object."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _signature(module: nn.Module) -> tuple[object, ...]:
    """What a module computes depends on, but for its tensors and the modules in it."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return type(module), vars(module).keys(), plain, hooks


def save_model(run: RunDir, model: Any, facts: Mapping[str, Any]) -> str:
    """Write model.safetensors, the weights with what is needed to use them; returns its SHA-256, 64 hex digits."""
    meta = {
        "model": model.settings,
        **{name: facts[name] for name in ("classes", "mean", "std")},
        "data": facts["data"]["name"],
        "fingerprint": facts["data"]["fingerprint"],
    }
    if facts["own_modules"]:
        meta["own_modules"] = facts["own_modules"]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors, {METADATA_KEY: to_json(meta, indent=None).decode().strip()})
    with disk_faults(run.path / MODEL_FILE, run.kept):
        replace(run.path / MODEL_FILE, content)
    return hashlib.sha256(content).hexdigest()
