"""What a state dict says of the model it belongs to, and whether it fits one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffvit.errors import ConfigError, InputError
from diffvit.models.vit import VisionTransformer

_HEAD_DIM = 64  # of ViT-Ti, S, B and L, DeiT and DINO
_MAX_DEPTH = 256  # blocks; the largest published ViTs have 48
LAYER_SCALE = 1e-5  # its initial value, which the weights overwrite
_HINT = "Say which model it is with --pretrained NAME, or take another file."


def infer(source: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:
    """Settings of the :class:`diffvit.VisionTransformer` of such weights, and a note on what had to be assumed.

    Heads follow from the lambdas or the query norms where there are some; else they are taken as 64 wide.

    Args:
        source: where the weights came from, for the message.
        tensors: by timm's names.

    Raises:
        InputError: not the weights of a Vision Transformer that is supported.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = "blocks.0."
    for name, ndim in (("patch_embed.proj.weight", 4), ("pos_embed", 3), (f"{first}mlp.fc1.weight", 2)):
        if len(shapes.get(name, ())) != ndim:
            why = f"does not hold a Vision Transformer that is supported (no {name} with {ndim} axes)"
            raise InputError(source, why, _HINT)
    dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
    differential = f"{first}attn.lambda_q1" in shapes
    known = shapes.get(f"{first}attn.lambda_q1") or shapes.get(f"{first}attn.q_norm.weight")
    width = known[0] if known else _HEAD_DIM
    if dim % width:
        raise InputError(source, f"its heads cannot be told ({dim} is not a multiple of {width})", _HINT)
    registers = shapes.get("reg_token", (1, 0, dim))
    prefix = int("cls_token" in shapes) + (registers[1] if len(registers) == 3 else 0)
    tokens = shapes["pos_embed"][1]
    no_embed_class = _side(tokens - prefix) is None and _side(tokens) is not None
    side = _side(tokens if no_embed_class else tokens - prefix)
    if side is None:
        raise InputError(source, f"its positions are not those of a square image ({tokens} tokens)", _HINT)
    fc_norm = "fc_norm.weight" in shapes
    settings = {
        "image_size": side * patch,
        "patch_size": patch,
        "embed_dim": dim,
        "depth": len({name.split(".")[1] for name in shapes if re.match(r"blocks\.\d+\.", name)}),
        "num_heads": dim // width,
        "mlp_ratio": mlp_ratio(dim, shapes[f"{first}mlp.fc1.weight"][0]),
        "num_classes": shapes.get("head.weight", (0,))[0],
        "attention": "differential" if differential else "softmax",
        "qkv_bias": f"{first}attn.qkv.bias" in shapes,
        "qk_norm": _norm_kind(shapes, f"{first}attn.q_norm."),
        "layer_scale": LAYER_SCALE if f"{first}ls1.gamma" in shapes else 0.0,
        "class_token": "cls_token" in shapes,
        "registers": prefix - int("cls_token" in shapes),
        "no_embed_class": no_embed_class,
        "pool": "cls" if "cls_token" in shapes and not fc_norm else "mean",
        "fc_norm": fc_norm,
        "in_chans": channels,
    }
    return settings, "" if known else f"heads taken as {_HEAD_DIM} wide"


def mlp_ratio(dim: int, hidden: int) -> float:
    """The ratio that gives exactly this hidden width, ``int(dim * ratio)``."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def fit(source: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> VisionTransformer:
    """The model of these settings with these weights, in float32 and evaluation mode, for images of any size.

    Positions of another square image than the settings' are taken as they are, and the model is built for that image.

    Args:
        source: where the weights came from, for the message.
        tensors: by timm's names; copied.
        settings: of :class:`diffvit.VisionTransformer`.

    Raises:
        InputError: missing, unexpected, misshapen or non-finite weights, or settings that do not go together.
    """
    settings = _with_grid_of(tensors, settings)
    if not 1 <= settings["depth"] <= _MAX_DEPTH or settings["in_chans"] != 3:
        found = f"{settings['depth']} blocks, {settings['in_chans']} channels"
        raise InputError(source, f"is not a model to look into ({found} vs 1 to {_MAX_DEPTH} blocks, 3 channels)")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = VisionTransformer(**settings)
    except (ConfigError, RuntimeError, ValueError) as error:
        raise InputError(source, f"is an impossible model: {' '.join(str(error).split())[:120]}", _HINT) from None
    _check_names_and_shapes(source, tensors, model.state_dict())
    state = {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(source, f"{name} holds NaN or infinite values", "Take another file.")
    model.load_state_dict(state, strict=True, assign=True)
    model.patch_embed.any_size = True
    return model.eval()


def _check_names_and_shapes(source: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for problem, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has the unexpected", found.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(source, f"does not fit the model: it {problem} {min(names)}{more}", _HINT)
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            sizes = " vs ".join("x".join(map(str, shape)) for shape in (found[name].shape, tensor.shape))
            raise InputError(source, f"does not fit the model: {name} has the wrong size ({sizes})", _HINT)


def _with_grid_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return settings
    before = 0 if settings["no_embed_class"] else int(settings["class_token"]) + settings["registers"]
    side = _side(positions.shape[1] - before)
    return settings if side is None else {**settings, "image_size": side * settings["patch_size"]}


def _norm_kind(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> str:
    if f"{prefix}weight" not in shapes:
        return "none"
    return "layer" if f"{prefix}bias" in shapes else "rms"


def _side(tokens: int) -> int | None:
    """Rows of a square grid of so many tokens; None where there is no such grid."""
    if tokens < 1:
        return None
    side = math.isqrt(tokens)
    return side if side * side == tokens else None
