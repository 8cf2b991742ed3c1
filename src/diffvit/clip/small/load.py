"""A small CLIP from a run folder, a weights file or a packaged name; everything is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffvit import weights
from diffvit.clip.hub import tokenizer_of
from diffvit.clip.load import Clip, fill, ready
from diffvit.clip.preprocess import of_ours
from diffvit.clip.small.model import SmallClip
from diffvit.clip_settings import TextConfig
from diffvit.errors import ConfigError, InputError
from diffvit.hub.files import read_header, read_weights
from diffvit.hub.libraries import reason
from diffvit.settings import ModelConfig
from diffvit.training.load import MODEL_FILE, locate, metadata_of

_MOST_TOKENS = 49_408  # that the tokenizer has


def is_own(name: str) -> bool:
    """Whether this names a model of ours: a packaged name, a run folder or a ``.safetensors`` file."""
    path = Path(name)
    return weights.packaged(name) is not None or (path / MODEL_FILE).is_file() or path.suffix == ".safetensors"


def load_small(reference: Path | str, *, device: torch.device | str = "cpu") -> Clip:
    """A small CLIP in evaluation mode, float32: a run folder, its weights file, or a packaged name.

    Raises:
        InputError: no such model; not a CLIP of ours; missing, unexpected, misshapen or non-finite weights.
        EnvironmentFault: open_clip is missing.
    """
    path = locate(reference)
    meta = metadata_of(path, read_header(path))
    model = _skeleton(path, meta)
    fill(str(path), "this CLIP", model, read_weights(path, counters=True).tensors)
    ready(model, device)
    return as_clip(model, meta, path.parent.name if path.name == MODEL_FILE else path.stem)


def as_clip(model: SmallClip, meta: Mapping[str, Any], name: str) -> Clip:
    """A model with its preprocessing and tokenizer; ``meta`` has the ``mean``, ``std`` and name of its ``data``."""
    preprocessing = of_ours(model.settings["visual"]["image_size"], meta)
    tokenizer = tokenizer_of(context_length=model.settings["text"]["context_length"])
    return Clip(model, preprocessing, name, tokenizer, name, str(meta["data"]))


def _skeleton(path: Path, meta: Mapping[str, Any]) -> SmallClip:
    """The model that the file's settings describe, with throw-away weights; random numbers stay as they were."""
    settings = meta["model"]
    if settings.get("kind") != "clip":
        hint = "Give a model that diffvit clip train made, as cifar10-clip."
        raise InputError(str(path), "is not a CLIP: it has no text tower", hint)
    try:
        visual = ModelConfig.model_validate(settings["visual"])
        text = TextConfig.model_validate(settings["text"])
        joint, size = int(settings["joint_dim"]), int(settings["vocabulary"])
        fits = [len(meta[key]) == visual.in_chans for key in ("mean", "std")]
        if not all(fits) or not 0 < size <= _MOST_TOKENS or not 0 < joint <= 2**16:
            raise ValueError("its sizes do not go together")
        with torch.random.fork_rng(devices=[]):
            image = {**visual.model_dump(exclude={"preset"}), "init": "trunc-normal"}
            return SmallClip(visual=image, text=text.model_dump(), joint_dim=joint, vocabulary=size)
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:  # pydantic's is a ValueError
        raise InputError(str(path), f"describes an impossible model ({reason(error)})") from None
