"""A small CLIP from a run folder, a weights file or a packaged name; everything is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from diffvit import weights
from diffvit.clip.hub import simple_tokenizer
from diffvit.clip.load import Clip, fill
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.small.model import SmallClip
from diffvit.clip_settings import TextConfig
from diffvit.errors import ConfigError, InputError
from diffvit.hub.files import read_header, read_weights
from diffvit.settings import ModelConfig
from diffvit.training.load import MODEL_FILE, locate, metadata_of

_MOST_TOKENS = 49_408  # that the tokenizer has


def is_own(name: str) -> bool:
    """Whether this names a model of ours: a packaged name, a run folder or a ``.safetensors`` file."""
    path = Path(name)
    return weights.packaged(name) is not None or (path / MODEL_FILE).is_file() or path.suffix == ".safetensors"


def load_small(reference: Path | str, *, device: torch.device | str = "cpu") -> Clip:
    """A small CLIP in evaluation mode, float32.

    Args:
        reference: a run folder, its :data:`MODEL_FILE`, or a packaged name.
        device: where the weights go; ``"auto"`` takes CUDA where there is one.

    Raises:
        InputError: no such model; not a CLIP of ours; missing, unexpected, misshapen or non-finite weights.
        EnvironmentFault: open_clip is missing.
    """
    path = locate(reference)
    meta = metadata_of(path, read_header(path))
    model = _skeleton(path, meta)
    fill(
        str(path),
        "this CLIP",
        model,
        {name: _wide(each) for name, each in read_weights(path, counters=True).tensors.items()},
    )
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = path.parent.name if path.name == MODEL_FILE else path.stem
    return as_clip(model.to(device).requires_grad_(False).eval(), meta, str(reference), name)


def as_clip(model: SmallClip, meta: Mapping[str, Any], source: str, name: str = "small CLIP") -> Clip:
    """A model with its preprocessing and tokenizer.

    Args:
        model: on any device.
        meta: ``mean`` and ``std`` per channel, and the name of the ``data`` it was trained on.
        source: where the weights came from.
        name: what to call it.
    """
    size = model.settings["visual"]["image_size"]
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    preprocessing = Preprocessing(size, size, "bilinear", False, mean, std)
    tokenizer = simple_tokenizer(model.settings["text"]["context_length"])
    return Clip(model, preprocessing, tokenizer, name, str(meta["data"]), source, torch.float32)


def _skeleton(path: Path, meta: Mapping[str, Any]) -> SmallClip:
    """The model that the file's settings describe, with throw-away weights; random numbers stay as they were."""
    settings = meta.get("model", {})
    if not isinstance(settings, dict) or settings.get("kind") != "clip":
        hint = "Give a model that diffvit clip train made, as cifar10-clip."
        raise InputError(str(path), "is not a CLIP: it has no text tower", hint)
    try:
        visual = ModelConfig.model_validate(settings["visual"])
        text = TextConfig.model_validate(settings["text"])
        joint, size = int(settings["joint_dim"]), int(settings["vocabulary"])
        fits = [len(meta[key]) == visual.in_chans for key in ("mean", "std")]
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else f"{error!r}"
        raise InputError(str(path), f"describes an impossible model ({first})") from None
    if not all(fits) or not 0 < size <= _MOST_TOKENS or not 0 < joint <= 2**16:
        raise InputError(str(path), "describes an impossible model (its sizes do not go together)")
    try:
        with torch.random.fork_rng(devices=[]):
            return SmallClip(
                visual={**visual.model_dump(exclude={"preset"}), "init": "trunc-normal"},
                text=text.model_dump(),
                joint_dim=joint,
                vocabulary=size,
            )
    except (ConfigError, RuntimeError) as error:
        raise InputError(str(path), f"describes an impossible model ({' '.join(str(error).split())[:120]})") from None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
