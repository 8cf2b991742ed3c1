"""CLIP by open_clip's names, and the supervised models to compare it with; weights are checked before they are used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffvit.clip.hub import arranged, clip_skeleton, fetch_clip, timm_model, tokenizer_of
from diffvit.clip.preprocess import Preprocessing, of_clip, of_ours, of_timm
from diffvit.errors import ConfigError, InputError, suggestion
from diffvit.hub.files import check_finite, check_weights, read_weights
from diffvit.hub.libraries import library, quietly
from diffvit.training.load import load_with_meta

_COUNTS = ".num_batches_tracked"  # of BatchNorm; old files lack them, and nothing is computed from them
# Whole numbers that OpenAI's archives keep among the weights; nothing else has them.
_OPENAI_NOTES = frozenset({"input_resolution", "context_length", "vocab_size"})
TIMM = "timm:"  # before the name of a model of timm's
IMAGENET = 1000  # classes
# torchvision's two sets of weights: our short names, timm's, and what they are.
RESNET50 = {"tv-v1": "resnet50.tv_in1k", "tv-v2": "resnet50.tv2_in1k"}
_VERSIONS = {
    "resnet50.tv_in1k": "torchvision IMAGENET1K_V1 (published top-1 76.1)",
    "resnet50.tv2_in1k": "torchvision IMAGENET1K_V2 (published top-1 80.9)",
}


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, without gradients, what its images must go through, and where weights are from."""

    model: nn.Module
    preprocessing: Preprocessing
    source: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return next(self.model.parameters()).dtype

    @property
    def facts(self) -> dict[str, Any]:
        """What stands beside every result, ready for JSON."""
        return {
            "weights": self.source,
            "preprocessing": self.preprocessing.words,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }


@dataclass(frozen=True)
class Clip(Loaded):
    """A CLIP model of open_clip's, or a small one of ours: ``encode_image``, ``encode_text``, ``logit_scale``.

    ``tokenizer`` makes int64 (texts, context) of texts, cut with the end-of-text token last; it takes
    ``context_length``. ``pretrained`` is the tag of the weights, or None for weights of unknown training.
    """

    tokenizer: Callable[..., Tensor]
    name: str
    pretrained: str | None

    @property
    def tag(self) -> str | None:
        """What published accuracies call the weights, as ``RN50/openai``; None for others."""
        return f"{self.name}/{self.pretrained}" if self.pretrained else None


@dataclass(frozen=True)
class Supervised(Loaded):
    """A classifier that was trained with labels, images to logits: a model of timm's, or a ViT of ours.

    ``title`` is for people, ``version`` the weights' published one; ``classes`` are None for ImageNet's 1000.
    """

    title: str
    version: str
    classes: tuple[str, ...] | None = None

    @property
    def tag(self) -> str | None:
        """What published accuracies call the weights, ``tv-v1`` or ``tv-v2``; None for others."""
        return next((tag for tag, name in RESNET50.items() if _VERSIONS[name] == self.version), None)


def load_clip(
    name: str = "RN50",
    pretrained: str | None = "openai",
    weights: Path | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Clip:
    """A CLIP model in float32 and evaluation mode.

    Args:
        name: any of ``open_clip.list_models()``.
        pretrained: which of its weights (``open_clip.list_pretrained()``). With ``weights``, what those are: the tag
            says whether the model has QuickGELU and how images are prepared; None for neither, as for own training.
        weights: a file instead of the network: an archive that OpenAI published, or a state dict of open_clip's names.
        device: where the weights go; ``"auto"`` takes CUDA where there is one.

    Raises:
        ConfigError: no such model or tag, or a tag that contradicts the file.
        InputError: the file does not hold this model's weights; the line names the first key.
        EnvironmentFault: open_clip is missing, or nothing could be fetched.
    """
    open_clip = library("open_clip")
    _check_names(name, pretrained, weights)
    settings = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick = bool(settings.get("quick_gelu"))
    tokenizer = tokenizer_of(name)
    path, source = (weights, weights.name) if weights else fetch_clip(name, pretrained or "")
    tensors = _tensors(path)
    if tensors.keys() >= _OPENAI_NOTES and not quick:
        hint = "Say --pretrained openai."
        raise ConfigError("--pretrained", f"{path} is OpenAI's own archive, whose model has QuickGELU", hint)
    model = clip_skeleton(name, quick_gelu=quick)
    if quick:
        assert_quick_gelu(model)
    trained = {key: each for key, each in tensors.items() if key not in _OPENAI_NOTES}
    fill(str(path), name, model, arranged(model, trained))
    default = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocessing = of_clip(settings, getattr(model.visual, "image_size", 224), *default)
    return Clip(ready(model, device), preprocessing, source, tokenizer, name, pretrained)


def _tensors(path: Path) -> dict[str, Tensor]:
    """What a weights file holds. A TorchScript archive is a program: it is loaded if its SHA-256 is one of OpenAI's.

    Raises:
        InputError: any other archive, or no weights.
    """
    open_clip = library("open_clip")
    tagged = [open_clip.get_pretrained_cfg(name, tag) for name, tag in open_clip.list_pretrained() if tag == "openai"]
    with contextlib.suppress(OSError), path.open("rb") as file:  # the reader says what is wrong with the file
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if any(f"/{digest}/" in config.get("url", "") for config in tagged):
            with quietly():
                state = torch.jit.load(path, map_location="cpu").state_dict()
            return {key: tensor for key, tensor in state.items() if not key.endswith("attn_mask")}  # computed
    return read_weights(path, counters=True).tensors


def load_supervised(
    weights: str = "tv-v2", file: Path | None = None, *, device: torch.device | str = "cpu"
) -> Supervised:
    """A model supervised with the labels of ImageNet-1k, in float32 and evaluation mode.

    Args:
        weights: ``tv-v1`` or ``tv-v2`` (torchvision's ResNet-50), a name of timm's that begins with ``resnet50.``, or
            ``timm:NAME`` for any of timm's models with ImageNet's 1000 classes.
        file: these weights in a file instead of the network: torchvision's ``.pth``, timm's, or safetensors; also with
            other names than timm's, if all the tensors have the same shapes in the same order.
        device: where the weights go; ``"auto"`` takes CUDA where there is one.

    Raises:
        ConfigError: no such weights, or a model of other classes.
        InputError: the file does not hold this model's weights; the line names the first key.
        EnvironmentFault: timm is missing, or nothing could be fetched.
    """
    timm = library("timm")
    known = sorted(timm.list_pretrained("resnet50.*"))
    name = RESNET50.get(weights, weights.removeprefix(TIMM))
    if weights.startswith(TIMM):
        known = sorted({*timm.list_models(), *timm.list_pretrained()})
    if name not in known:
        have = ", ".join([*RESNET50, *RESNET50.values(), f"{TIMM}NAME"])
        hint = suggestion(name, [*RESNET50, *known])
        raise ConfigError("--supervised", f"no weights {weights!r} (have {have})", hint)
    model, source = timm_model(name, pretrained=file is None)
    config: Any = model.pretrained_cfg
    if config["num_classes"] != IMAGENET:
        raise ConfigError(
            "--supervised", f"{name} is of other classes ({config['num_classes']} vs ImageNet's {IMAGENET})"
        )
    tensors = model.state_dict()
    if file is not None:
        tensors, source = _in_order(read_weights(file, counters=True).tensors, tensors), file.name
    version = _VERSIONS.get(name, f"timm {name}")
    title = f"ResNet-50 ({version})" if name.startswith("resnet50.") else version
    fill(str(file or source), title.partition(" (")[0], model, tensors)
    return Supervised(ready(model, device), of_timm(config), source, title, version)


def _in_order(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of another implementation under a model's names: no name in common, the same shapes in the same order."""
    shapes = [[tensor.shape for tensor in tensors.values()] for tensors in (found, own)]
    if found.keys() & own.keys() or shapes[0] != shapes[1]:
        return found
    return dict(zip(own, found.values(), strict=True))


def load_vit(reference: str, *, device: str = "auto") -> Supervised:
    """A ViT of ours that was trained with labels, from a run folder, a weights file or a packaged name.

    Raises:
        InputError: no such model, or damaged.
    """
    model, meta = load_with_meta(reference, device=device)
    if isinstance(size := model.settings["image_size"], tuple):
        raise InputError(reference, f"takes images of {size[0]} x {size[1]} pixels (vs square ones)")
    preprocessing = of_ours(size, meta)
    model = model.requires_grad_(False)
    return Supervised(model, preprocessing, reference, f"ViT {reference}", reference, tuple(meta["classes"]))


def fill(source: str, name: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights into a model: each name, shape and value is checked before anything changes.

    BatchNorm's counts of batches may be missing, as from old files: nothing is computed from them.

    Raises:
        InputError: a missing, unexpected, misshapen or non-finite weight.
    """
    own = model.state_dict()
    expected = {key: each.shape for key, each in own.items() if key in tensors or not key.endswith(_COUNTS)}
    why = f"does not hold the weights of {name}: "
    check_weights(source, {key: each.shape for key, each in tensors.items()}, expected, why=why)
    check_finite(source, tensors)
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)


def assert_quick_gelu(model: nn.Module) -> None:
    """Weights that were trained with QuickGELU must not run with another activation: features change silently.

    Raises:
        InputError: some part has the exact GELU (image towers of timm always have; they are not looked at).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.GELU) and not name.startswith("visual.trunk."):
            raise InputError(name, "has GELU where the weights were trained with QuickGELU")


def ready(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A model in evaluation mode, without gradients, on a device; ``"auto"`` takes CUDA where there is one."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).requires_grad_(False).eval()


def _check_names(name: str, pretrained: str | None, weights: Path | None) -> None:
    open_clip = library("open_clip")
    names: Any = open_clip.list_models()
    if name not in names:
        hint = suggestion(name, names)
        raise ConfigError("--model", f"no model {name!r} in open_clip {open_clip.__version__}", hint)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None and weights is None:
        raise ConfigError("--pretrained", f"needs a name ({', '.join(tags) or 'none is published'}) or --weights FILE")
    if pretrained is not None and pretrained not in tags:
        raise ConfigError("--pretrained", f"no weights {pretrained!r} for {name} (have {', '.join(tags) or 'none'})")
