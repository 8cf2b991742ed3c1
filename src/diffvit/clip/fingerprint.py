"""Hashes of what a model's features depend on: they name what is kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn


def text_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of everything that text features depend on: the modules' settings, names, dtypes and weights."""
    return _fingerprint(model, lambda name: bool(name) and not name.startswith("visual"))


def image_fingerprint(model: nn.Module) -> str:
    """The same of what a CLIP's image features depend on."""
    return _fingerprint(model, lambda name: name.startswith("visual"))


def fingerprint(model: nn.Module) -> str:
    """The same of a whole model."""
    return _fingerprint(model, lambda _: True)


def _fingerprint(model: nn.Module, wanted: Callable[[str], bool]) -> str:
    """Of the modules and tensors whose names are wanted."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if wanted(name):
            said = module.extra_repr() or type(module).__name__
            digest.update(f"{name} {type(module).__name__} {said} {getattr(module, 'num_heads', '')}\n".encode())
    for name, tensor in model.state_dict().items():
        if wanted(name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
