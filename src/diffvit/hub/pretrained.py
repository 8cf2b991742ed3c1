"""Vision Transformers that others trained, as models of this package: DINO's, timm's, and any that a file describes.

The settings come from a table (DINO), from timm's model of that name, or from the names and shapes of the weights. A
model of timm's is accepted if its weights fit ours and one image gives the same logits in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diffvit.errors import ConfigError, EnvironmentFault, InputError, suggestion
from diffvit.hub.files import WeightsFile, check_finite, check_weights, read_weights
from diffvit.hub.libraries import cache_where_offline, library, quietly, reason
from diffvit.hub.onnx_file import read_onnx
from diffvit.models.vit import VisionTransformer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The ViTs of DINO (arXiv 2104.14294, table 1): they need no timm once their weights are there.
DINO = {
    f"vit_{size}_patch{patch}_224.dino": {
        "image_size": 224,
        "patch_size": patch,
        "embed_dim": dim,
        "depth": 12,
        "num_heads": dim // 64,
        "mlp_ratio": 4.0,
        "num_classes": 0,
        "in_chans": 3,
        "class_token": True,
        "registers": 0,
        "no_embed_class": False,
    }
    for size, dim in (("small", 384), ("base", 768))
    for patch in (16, 8)
}
LAYER_SCALE = 1e-5  # its initial value, which the weights overwrite
_HEAD_DIM = 64  # of ViT-Ti, S, B and L, DeiT and DINO
_MAX_DEPTH = 256  # blocks; the largest published ViTs have 48
_TOLERANCE = 1e-4  # of the largest logit, within which two models compute the same in float32
_HINT = "Say which model it is with --pretrained NAME, or take another file."
_INSTALL = "Install it with pip install 'diffvit[pretrained]'; the DINO models need only --weights FILE."
_WEIGHTS = "Fetch its weights elsewhere and give them with --weights FILE."


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, in evaluation mode, float32, on the CPU, and how its images are prepared.

    ``model`` is a :class:`diffvit.VisionTransformer`, or what :func:`diffvit.hub.adapters.adapted` made of another's.
    ``mean`` and ``std`` are those of each channel, of pixels from 0 to 1; ``image_size`` is the side, pixels, of the
    square images that it was trained on (it takes other sizes too); ``classes`` are what the logits mean, where that is
    known; ``source`` says where the weights came from, and what had to be assumed.
    """

    model: Any
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    classes: list[str] | None
    source: str


def load_pretrained(name: str | None = None, weights: Path | None = None) -> Pretrained:
    """A pretrained Vision Transformer by timm's name, from a weights file, or both.

    ``name`` is one of :data:`DINO`, or any that timm has (extra ``pretrained``); without it, the architecture is read
    from the weights. The file is read by :func:`diffvit.hub.files.read_weights`; without it, timm downloads them.
    ConfigError where neither is given, or there is no such model, or nobody published weights for it; InputError where
    the file or the model is not supported (the line names the weight or the part); EnvironmentFault where timm is
    missing, or the download failed.
    """
    if weights is None:
        if name is None:
            raise ConfigError("pretrained", "needs a name, a weights file, or both", f"Names: {', '.join(DINO)}, ...")
        return _downloaded(name)
    if name is None or name in DINO:
        return _from_file(weights, name, DINO.get(name or ""), IMAGENET_MEAN, IMAGENET_STD)
    theirs = skeleton(name)
    config = theirs.pretrained_cfg
    found = _from_file(weights, name, settings_of_timm(name, theirs), config["mean"], config["std"])
    if found.image_size != theirs.patch_embed.img_size[0]:
        theirs = skeleton(name, img_size=found.image_size)
    theirs.load_state_dict(found.model.state_dict(), assign=True)
    check_logits(name, theirs, found.model)
    return found


def _from_file(
    path: Path, name: str | None, settings: Mapping[str, Any] | None, mean: Sequence[float], std: Sequence[float]
) -> Pretrained:
    """The model in a weights file; its settings are inferred from the weights where they are not known."""
    found, note = WeightsFile(read_onnx(path), "") if path.suffix == ".onnx" else read_weights(path), ""
    tensors = found.tensors
    if settings is None:
        settings, note = infer(str(path), tensors)
    elif not settings["num_classes"] and found.nest in ("teacher", "student"):
        # A self-distilled model has a projection where a classifier would be.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    model = fit(str(path), tensors, settings)
    source = "; ".join(part for part in (f"{path}", f"its {found.nest}" if found.nest else "", note) if part)
    return Pretrained(model, name or path.stem, tuple(mean), tuple(std), model.settings["image_size"], None, source)


def _downloaded(name: str) -> Pretrained:
    empty = skeleton(name)
    timm = library("timm", _INSTALL)
    settings, config = settings_of_timm(name, empty), empty.pretrained_cfg  # before megabytes are fetched
    if not timm.models.is_model_pretrained(name):
        raise ConfigError("pretrained", f"nobody published weights for {name}", "Give some with --weights FILE.")
    try:
        with quietly(), cache_where_offline():
            theirs: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # each way of downloading has errors of its own
        why = f"its weights could not be fetched ({reason(error)})"
        raise EnvironmentFault(name, why, _WEIGHTS) from None
    model = fit(name, theirs.state_dict(), settings)
    check_logits(name, theirs, model)
    place = config.get("hf_hub_id") or config.get("url") or "its registry"
    source = f"timm {timm.__version__}, {place}"
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Pretrained(model, name, mean, std, model.settings["image_size"], classes_of_timm(timm, theirs), source)


def skeleton(name: str, **settings: Any) -> Any:
    """Timm's model of that name without weights: no memory, no download."""
    timm = library("timm", _INSTALL)
    names = {*timm.list_models(), *timm.list_pretrained()}
    if name not in names:
        hint = suggestion(name, names)
        raise ConfigError("pretrained", f"no model {name!r} in timm {timm.__version__}", hint)
    try:
        with quietly(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            return timm.create_model(name, pretrained=False, **settings)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        # No plain ViT does this; models that compute while they are built may.
        raise _unsupported(name, " ".join(str(error).split())[:120]) from None


def _unsupported(name: str, part: str) -> InputError:
    return InputError(name, f"has a part that is not supported: {part}", "It cannot be looked into.")


def settings_of_timm(name: str, model: Any) -> dict[str, Any]:
    """Settings of the :class:`diffvit.VisionTransformer` with the weights of timm's ``model``, on any device.

    Whether it also computes the same is for :func:`check_logits` to say. InputError for a weight that
    :class:`diffvit.VisionTransformer` lacks, or that only it has.
    """
    try:
        attn = model.blocks[0].attn
        heads = attn.num_heads * (2 if hasattr(attn, "lambda_q1") else 1)
        settings, _ = infer(name, model.state_dict(), heads)
        settings |= {  # what the weights' shapes do not tell for sure
            "image_size": model.patch_embed.img_size[0],
            "norm_eps": model.blocks[0].norm1.eps,
            "no_embed_class": model.no_embed_class,
            "pool": "cls" if model.global_pool == "token" else "mean",
        }
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            ours = VisionTransformer(**settings)
    except InputError as error:
        raise InputError(name, error.why, "Its attention maps cannot be computed.") from None
    except (AttributeError, TypeError, IndexError, ConfigError, RuntimeError, ValueError) as error:
        raise _unsupported(name, " ".join(str(error).split())[:120]) from None
    found, expected = _shapes(model.state_dict()), _shapes(ours.state_dict())
    why = "has a part that is not supported: "
    check_weights(name, found, expected, why=why, hint="It cannot be looked into.")
    return settings


@torch.no_grad()
def check_logits(name: str, theirs: nn.Module, ours: VisionTransformer) -> None:
    """Compare two models on one random image; both are in evaluation mode afterwards.

    InputError where their logits (or features, without a head) differ by more than float32 explains.
    """
    side = ours.settings["image_size"]
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, found = theirs.eval()(image), ours.eval()(image)
    off = float((found - expected).abs().max() / expected.abs().max()) if found.shape == expected.shape else math.inf
    if not off <= _TOLERANCE:
        raise _unsupported(name, f"timm's model gives other logits (by {off:.1g} of the largest vs {_TOLERANCE:g})")


def classes_of_timm(timm: ModuleType, model: Any) -> list[str] | None:
    """The names of the classes: those in the model's settings, or ImageNet's where their number says so."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        return None
    names = model.pretrained_cfg.get("label_names")
    if not names:
        subset = timm.data.infer_imagenet_subset(model)
        if subset is None:
            return None
        info = timm.data.ImageNetInfo(subset)
        names = [info.index_to_description(index) for index in range(head.out_features)]
    return [str(label) for label in names] if len(names) == head.out_features else None


def infer(source: str, tensors: Mapping[str, Tensor], heads: int | None = None) -> tuple[dict[str, Any], str]:
    """Settings of the :class:`diffvit.VisionTransformer` that such weights belong to, and a note on what is assumed.

    Where ``heads`` is not given, it follows from the lambdas or the query norms where there are some; else heads are
    taken as 64 wide. InputError, which calls them ``source``, for weights of no Vision Transformer that is supported.
    """
    shapes = _shapes(tensors)
    first = "blocks.0."
    for name, ndim in (("patch_embed.proj.weight", 4), ("pos_embed", 3), (f"{first}mlp.fc1.weight", 2)):
        if len(shapes.get(name, ())) != ndim:
            why = f"does not hold a Vision Transformer that is supported (no {name} with {ndim} axes)"
            raise InputError(source, why, _HINT)
    dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
    differential = f"{first}attn.lambda_q1" in shapes
    q_norm = f"{first}attn.q_norm.weight"
    known = shapes.get(f"{first}attn.lambda_q1") or shapes.get(q_norm)
    width = known[0] if known else _HEAD_DIM
    if heads is None and dim % width:
        raise InputError(source, f"its number of heads cannot be inferred ({dim} is not a multiple of {width})", _HINT)
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
        "num_heads": heads or dim // width,
        "mlp_ratio": mlp_ratio(dim, shapes[f"{first}mlp.fc1.weight"][0]),
        "num_classes": shapes.get("head.weight", (0,))[0],
        "attention": "differential" if differential else "softmax",
        "qkv_bias": f"{first}attn.qkv.bias" in shapes,
        "qk_norm": "none" if q_norm not in shapes else "layer" if f"{first}attn.q_norm.bias" in shapes else "rms",
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
    The tensors are copied. InputError, which calls them ``source``, for missing, unexpected, misshapen or non-finite
    weights, or settings that do not go together.
    """
    settings = _with_grid_of(tensors, settings)
    if not 1 <= settings["depth"] <= _MAX_DEPTH or settings["in_chans"] != 3:
        found = f"{settings['depth']} blocks, {settings['in_chans']} channels"
        raise InputError(source, f"is not supported ({found} vs 1 to {_MAX_DEPTH} blocks, 3 channels)")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = VisionTransformer(**settings)
    except (ConfigError, RuntimeError, ValueError) as error:
        raise InputError(source, f"is an impossible model: {' '.join(str(error).split())[:120]}", _HINT) from None
    check_weights(source, _shapes(tensors), _shapes(model.state_dict()), hint=_HINT)
    state = {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    check_finite(source, state, "Take another file.")
    model.load_state_dict(state, strict=True, assign=True)
    model.patch_embed.any_size = True
    return model.eval()


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _with_grid_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return settings
    before = 0 if settings["no_embed_class"] else int(settings["class_token"]) + settings["registers"]
    side = _side(positions.shape[1] - before)
    return settings if side is None else {**settings, "image_size": side * settings["patch_size"]}


def _side(tokens: int) -> int | None:
    """Rows of a square grid of so many tokens; None where there is no such grid."""
    if tokens < 1:
        return None
    side = math.isqrt(tokens)
    return side if side * side == tokens else None
