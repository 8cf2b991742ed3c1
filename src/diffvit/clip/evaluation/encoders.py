"""Models as what they make of one picture: CLIP a unit vector, the supervised ResNet-50 its 1000 logits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from diffvit.clip.fingerprint import fingerprint, image_fingerprint
from diffvit.clip.hub import open_clip_library, timm_library
from diffvit.clip.load import Clip, ResNet50
from diffvit.clip.precision_engine import float32_products
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.small.model import SmallClip


@dataclass(frozen=True)
class Encoder:
    """What is computed once per picture, whatever is asked of it afterwards.

    Args:
        name: model and weights, for people.
        preprocessing: what its pictures must go through.
        width: numbers per picture.
        key: SHA-256 (hex) of everything that the rows depend on: weights, modules, preprocessing, dtype, device.
        encode: squares, 0 to 255, to rows on the CPU. Products of float32 are computed in full also on CUDA.
    """

    name: str
    preprocessing: Preprocessing
    width: int
    key: str
    encode: Callable[[UInt8[Tensor, "n 3 s s"]], Float32[Tensor, "n width"]]


def of_clip(clip: Clip) -> Encoder:
    """CLIP's image features, at unit length."""
    model: Any = clip.model

    def encode(squares: UInt8[Tensor, "n 3 s s"]) -> Float32[Tensor, "n width"]:
        images = clip.preprocessing.normalised(squares).to(clip.device, clip.dtype)
        with torch.no_grad(), float32_products("ieee"):
            return F.normalize(model.encode_image(images).float(), dim=-1).cpu()

    state = [open_clip_library().__version__, image_fingerprint(model), str(clip.dtype), clip.device.type]
    key = key_of("clip", clip.preprocessing, state)
    # What a small CLIP of ours learnt from is no weights' tag: its name says which it is.
    weights = "" if isinstance(model, SmallClip) else f" ({clip.pretrained or 'own weights'})"
    return Encoder(f"CLIP {clip.name}{weights}", clip.preprocessing, _width(clip), key, encode)


def of_resnet50(resnet: ResNet50) -> Encoder:
    """The supervised ResNet-50's logits, in the order of ImageNet's 1000 classes."""
    device = next(resnet.model.parameters()).device

    def encode(squares: UInt8[Tensor, "n 3 s s"]) -> Float32[Tensor, "n 1000"]:
        images = resnet.preprocessing.normalised(squares).to(device, resnet.dtype)
        with torch.no_grad(), float32_products("ieee"):
            return resnet.model(images).float().cpu()

    state = [timm_library().__version__, fingerprint(resnet.model), str(resnet.dtype), device.type]
    key = key_of("resnet50", resnet.preprocessing, state)
    return Encoder(f"ResNet-50 ({resnet.version})", resnet.preprocessing, 1000, key, encode)


def _width(clip: Clip) -> int:
    """The length of an image feature: the model is asked, since towers do not agree on where they say it."""
    model: Any = clip.model
    blank = torch.zeros(1, 3, clip.preprocessing.size, clip.preprocessing.size, device=clip.device, dtype=clip.dtype)
    with torch.no_grad():
        return int(model.encode_image(blank).shape[1])


def key_of(kind: str, preprocessing: Preprocessing, state: list[str]) -> str:
    """SHA-256 (hex) of what an encoder's rows depend on: its kind, preprocessing, state, and torch."""
    what = [kind, torch.__version__, *state, dataclasses.astuple(preprocessing)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
