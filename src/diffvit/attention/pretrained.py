"""Vision Transformers that others trained, to be looked into: DINO's by a table of ours, the rest through timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from diffvit.attention.timm_parts import settings_of_timm
from diffvit.attention.weights_parts import fit, infer
from diffvit.errors import ConfigError, EnvironmentFault, InputError, did_you_mean
from diffvit.models.vit import VisionTransformer
from diffvit.training.hubs import cache_where_offline, quietly, reason
from diffvit.training.torchvision_names import import_torchvision
from diffvit.training.weights_file import WeightsFile, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The ViTs of DINO (arXiv 2104.14294, table 1): they need no timm once their weights are there.
DINO = {
    f"vit_{size}_patch{patch}_224.dino": {
        **{"image_size": 224, "patch_size": patch, "embed_dim": dim, "depth": 12, "num_heads": dim // 64},
        **{"mlp_ratio": 4.0, "num_classes": 0, "in_chans": 3},
        **{"class_token": True, "registers": 0, "no_embed_class": False},
    }
    for size, dim in (("small", 384), ("base", 768))
    for patch in (16, 8)
}
_WEIGHTS = "Fetch its weights elsewhere and give them with --weights FILE."


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model and what its images must look like.

    Args:
        model: in evaluation mode, float32, on the CPU.
        name: timm's name of it, or the file's.
        mean: per channel, of pixels from 0 to 1.
        std: per channel, of pixels from 0 to 1.
        image_size: side of the square images that it was trained on, pixels; it takes other sizes too.
        classes: what the logits mean, where that is known.
        source: where the weights came from, and what had to be assumed.
    """

    model: VisionTransformer
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    classes: list[str] | None
    source: str


def load_pretrained(name: str | None = None, weights: Path | None = None) -> Pretrained:
    """A pretrained Vision Transformer by timm's name, from a weights file, or both.

    Args:
        name: one of :data:`DINO`, or any that timm has (extra ``pretrained``); without it, the architecture is told
            from the weights.
        weights: see :func:`diffvit.training.weights_file.read_weights`; without it, timm downloads them.

    Raises:
        ConfigError: neither is given, no such model, or one that nobody published weights for.
        InputError: the file or the model is not one that can be looked into; the line names the key or the part.
        EnvironmentFault: timm is missing, or the download failed.
    """
    if weights is None:
        if name is None:
            raise ConfigError("pretrained", "needs a name, a weights file, or both", f"Names: {', '.join(DINO)}, ...")
        return _downloaded(name)
    if name is not None and name not in DINO:
        skeleton = _skeleton(name)[1]
        settings, config = settings_of_timm(name, skeleton), _config(skeleton)
        return _from_file(weights, name, settings, config["mean"], config["std"])
    return _from_file(weights, name, DINO.get(name or ""), IMAGENET_MEAN, IMAGENET_STD)


def _from_file(
    path: Path, name: str | None, settings: Mapping[str, Any] | None, mean: Sequence[float], std: Sequence[float]
) -> Pretrained:
    """The model in a weights file; its settings are told from the weights where they are not known."""
    found = read_weights(path)
    tensors, note = found.tensors, ""
    if settings is None:
        settings, note = infer(str(path), tensors)
    elif not settings["num_classes"]:
        tensors = _without_projection(found)
    model = fit(str(path), tensors, settings)
    source = "; ".join(part for part in (f"{path}", f"its {found.nest}" if found.nest else "", note) if part)
    return Pretrained(model, name or path.stem, tuple(mean), tuple(std), model.settings["image_size"], None, source)


def _without_projection(found: WeightsFile) -> dict[str, torch.Tensor]:
    """A self-distilled model without classes has a projection where a classifier would be."""
    return {name: t for name, t in found.tensors.items() if not (found.self_distilled and name.startswith("head."))}


def _downloaded(name: str) -> Pretrained:
    timm, skeleton = _skeleton(name)
    settings, config = settings_of_timm(name, skeleton), _config(skeleton)  # before hundreds of megabytes are fetched
    if not timm.models.is_model_pretrained(name):
        raise ConfigError("pretrained", f"nobody published weights for {name}", "Give some with --weights FILE.")
    try:
        with quietly(), cache_where_offline():
            theirs: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # each way of downloading has errors of its own
        why = f"its weights could not be fetched ({reason(error)})"
        raise EnvironmentFault(name, why, _WEIGHTS) from None
    model = fit(name, theirs.state_dict(), settings)
    place = config.get("hf_hub_id") or config.get("url") or "its registry"
    source = f"timm {timm.__version__}, {place}"
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Pretrained(model, name, mean, std, model.settings["image_size"], _classes(timm, theirs), source)


def _skeleton(name: str) -> tuple[ModuleType, nn.Module]:
    """The module timm and its model of that name without weights: no memory, no download.

    Raises:
        EnvironmentFault: there is no timm, or it does not work here.
        ConfigError: it knows no such model.
    """
    timm = _timm()
    names = {*timm.list_models(), *timm.list_pretrained()}
    if name not in names:
        raise ConfigError(
            "pretrained",
            f"no model {name!r} in timm {timm.__version__}",
            did_you_mean(name, names).replace(" did", "Did", 1),
        )
    try:
        with quietly(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            return timm, timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        # No plain ViT does this; models that compute while they are built may.
        why = f"has a part that is not supported ({' '.join(str(error).split())[:120]})"
        raise InputError(name, why, "It cannot be looked into.") from None


def _timm() -> ModuleType:
    try:
        import_torchvision()
        import timm
    except (ImportError, RuntimeError) as error:
        why = f"cannot be imported ({' '.join(str(error).split())[:160]})"
        hint = "Install it with pip install 'diffvit[pretrained]'; the DINO models need only --weights FILE."
        raise EnvironmentFault("timm", why, hint) from None
    return timm


def _config(skeleton: nn.Module) -> dict[str, Any]:
    return dict(getattr(skeleton, "pretrained_cfg", {}))


def _classes(timm: ModuleType, model: nn.Module) -> list[str] | None:
    """The names of the classes: those in the model's settings, or ImageNet's where their number says so."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        return None
    names = _config(model).get("label_names")
    if not names:
        subset = timm.data.infer_imagenet_subset(model)
        if subset is None:
            return None
        info = timm.data.ImageNetInfo(subset)
        names = [info.index_to_description(index) for index in range(head.out_features)]
    return [str(label) for label in names] if len(names) == head.out_features else None
