"""Small CLIPs with random weights everywhere, and their weights in the layouts that the world has."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from diffvit.clip.load import Clip
from diffvit.clip.preprocess import of_clip

NAME = "RN-small"
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
NOTES = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


def random_everywhere(model: nn.Module, seed: int = 0) -> nn.Module:
    """No weight stays at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return model.eval()


def small_model(seed: int = 0, **more: Any) -> Any:
    return copy.deepcopy(_drawn(seed, **more))


@cache
def _drawn(seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    return random_everywhere(open_clip.CLIP(**copy.deepcopy(CONFIG), quick_gelu=True, **more), seed)


def small_clip(model: nn.Module | None = None) -> Clip:
    preprocessing = of_clip({}, 64, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    model = (model or small_model()).requires_grad_(False)
    return Clip(model, preprocessing, "a test", open_clip.SimpleTokenizer(), NAME, None)


def register(folder: Path, patch: Any) -> None:
    """Make open_clip know the small model and weights of it that need QuickGELU."""
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    patch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, copy.deepcopy(CONFIG))
    tags = {"openai": open_clip.pretrained._pcfg("https://example.org/small.pt", "nobody/small/", quick_gelu=True)}
    patch.setitem(open_clip.pretrained._PRETRAINED, NAME, {**tags, "plain": open_clip.pretrained._pcfg()})


def openai_half(model: Any) -> Any:
    """A copy as OpenAI published them: convolutions and linear layers in float16, the rest in float32."""
    half = copy.deepcopy(model)
    open_clip.convert_weights_to_fp16(half)
    return half


@cache
def small_file() -> bytes:
    """A small model's weights as OpenAI published theirs, the whole file."""
    buffer = io.BytesIO()
    torch.save(openai_state(small_model()), buffer)
    return buffer.getvalue()


def openai_state(model: Any, notes: dict[str, int] = NOTES) -> dict[str, Tensor]:
    numbers = {name: torch.tensor(value) for name, value in notes.items()}
    return {**openai_half(model).state_dict(), **numbers}


def openai_archive(model: Any, path: Path, notes: dict[str, int] = NOTES) -> None:
    """The official form: a TorchScript archive whose module also holds three whole numbers."""
    half = openai_half(model)
    for name, value in notes.items():
        if hasattr(half, name):
            delattr(half, name)
        half.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.script(half), path)


def publish(archive: Path, patch: Any) -> None:
    """Make open_clip know an archive as one of OpenAI's: its URL holds the SHA-256."""
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    tag = open_clip.pretrained._pcfg(f"https://example.org/models/{sha256}/RN50.pt", quick_gelu=True)
    patch.setitem(open_clip.pretrained._PRETRAINED, "RN-published", {"openai": tag})


def broken(function: Callable[..., Any]) -> Callable[..., Any]:
    """Something that must not be called."""

    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"{function} was called")

    return called


def open_clips_probabilities(files: Sequence[Path], labels: list[str], templates: list[Any]) -> Tensor:
    """Zero-shot by open_clip alone, in float64, with the weights of :func:`openai_state`."""
    model = small_model()
    model.load_state_dict({name: tensor.float() for name, tensor in openai_state(model, {}).items()})
    transform: Any = open_clip.image_transform(64, is_train=False)
    images = torch.stack([transform(Image.open(file)) for file in files])
    rows: Any = open_clip.build_zero_shot_classifier(model, open_clip.tokenize, labels, templates)
    with torch.no_grad():
        features = model.double().encode_image(images.double(), normalize=True)
        return (model.logit_scale.exp() * features @ rows.double()).softmax(dim=1)


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)
