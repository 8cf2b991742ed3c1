"""A supervised ViT of our own, to put beside a small CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from diffvit.clip.evaluation.encoders import Encoder, key_of
from diffvit.clip.fingerprint import fingerprint
from diffvit.clip.preprocess import Preprocessing
from diffvit.errors import ConfigError
from diffvit.training.load import load_with_meta


@dataclass(frozen=True)
class OwnViT:
    """A ViT of ours that was trained with labels.

    Args:
        model: in evaluation mode, without gradients.
        preprocessing: what its images must go through.
        classes: of its logits.
        name: what it was loaded by.
        source: its file.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    name: str
    source: str


def load_own(reference: str, *, device: str = "auto") -> OwnViT:
    """A run folder, weights file or packaged model of ours.

    Raises:
        InputError: no such model, or damaged.
    """
    model, meta = load_with_meta(reference, device=device)
    size = model.settings["image_size"]
    look = Preprocessing(size, size, "bilinear", False, tuple(meta["mean"]), tuple(meta["std"]))
    return OwnViT(model.requires_grad_(False), look, tuple(meta["classes"]), reference, reference)


def of_own(vit: OwnViT) -> Encoder:
    """Its logits."""
    device = next(vit.model.parameters()).device

    def encode(squares: UInt8[Tensor, "n 3 s s"]) -> Float32[Tensor, "n classes"]:
        with torch.inference_mode():
            return vit.model(vit.preprocessing.normalised(squares).to(device)).float().cpu()

    key = key_of("own", vit.preprocessing, [fingerprint(vit.model), str(vit.model), device.type])
    return Encoder(f"ViT {vit.name}", vit.preprocessing, len(vit.classes), key, encode)


def own_groups(vit: OwnViT, classes: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The classes that it can answer, by name, and for each its place among its own.

    Raises:
        ConfigError: there are none.
    """
    places = [place for place, name in enumerate(classes) if name in vit.classes]
    if not places:
        found = f"{', '.join(classes[:3])}, ... vs {', '.join(vit.classes[:3])}, ..."
        raise ConfigError("--supervised", f"{vit.name} knows none of the classes ({found})")
    return places, [[vit.classes.index(classes[place])] for place in places]
