"""Vision Transformers of other libraries, run by their own code, with their attention maps.

A library computes attention by ``scaled_dot_product_attention``, by a softmax between two products, or by
``MultiheadAttention``. :class:`AttentionTap` intercepts these calls, whatever the module around them, and computes
their maps explicitly, so that the model's output and gradients depend on the maps that are shown. An :class:`Adapter`
says what cannot be inferred from the calls: the patch size, the tokens before the patches, what the output means.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffvit.errors import ConfigError, EnvironmentFault, InputError, check_choice
from diffvit.hub.libraries import cache_where_offline, library, quietly, reason
from diffvit.hub.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pretrained,
    check_logits,
    classes_of_timm,
    fit,
    load_pretrained,
    settings_of_timm,
    skeleton,
)
from diffvit.models.pos_embed import resample
from diffvit.models.vit import VisionTransformer

TOLERANCE = 1e-4  # of the largest output, within which explicit maps give the same in float32
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_NORMS = (F.layer_norm, F.rms_norm)
_SELF_ATTENTION = inspect.signature(F.multi_head_attention_forward)
_INSTALL = "Install it with pip install 'diffvit[pretrained]'."


class AttentionTap(TorchFunctionMode):
    """Inside, attention is computed by explicit maps, which are collected.

    Args:
        layers: whose maps are kept, counted from 0; by default all.

    Attributes:
        maps: (batch, heads, query, key) of each self-attention, in the order of execution, in the graph.
        entering: the norm's output that the last of them projected, (batch, tokens, dim); None where it was no norm's.
    """

    def __init__(self, layers: Collection[int] | None = None) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.entering: Tensor | None = None
        self._layers, self._count = layers, 0
        self._normed: Tensor | None = None
        self._projected: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)[0]
        if func is F.multi_head_attention_forward:
            call = _SELF_ATTENTION.bind(*args, **kwargs)
            call.apply_defaults()
            if _is_plain(call.arguments):
                return self._multi_head(**call.arguments)
        if func is F.linear and self._normed is not None and args[0] is self._normed:
            self._projected = self._normed
        out = func(*args, **kwargs)
        if func in _SOFTMAX and out.ndim == 4 and out.shape[-1] == out.shape[-2]:
            self._collect(out)
        if func in _NORMS and out.ndim == 3:
            self._normed = out
        return out

    def _collect(self, maps: Tensor) -> None:
        if self._layers is None or self._count in self._layers:
            self.maps.append(maps)
        self._count += 1
        self.entering, self._projected = self._projected, None

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """``scaled_dot_product_attention`` without dropout, and its map."""
        del dropout_p
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        maps = scores.softmax(dim=-1)
        if maps.ndim == 4 and maps.shape[-1] == maps.shape[-2]:
            self._collect(maps)
        return maps @ value, maps

    def _multi_head(self, query: Tensor, num_heads: int, **call: Any) -> tuple[Tensor, Tensor | None]:
        """``multi_head_attention_forward`` of (tokens, batch, dim), of tokens on themselves."""
        tokens = query.transpose(0, 1)
        if self._normed is not None and (query is self._normed or query._base is self._normed):
            self._projected = tokens
        qkv = F.linear(tokens, call["in_proj_weight"], call["in_proj_bias"])
        q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        out, maps = self._attend(q, k, v, call["attn_mask"])
        out = F.linear(out.transpose(1, 2).flatten(2), call["out_proj_weight"], call["out_proj_bias"]).transpose(0, 1)
        if not call["need_weights"]:
            return out, None
        return out, maps.mean(dim=1) if call["average_attn_weights"] else maps


def _is_plain(call: dict[str, Any]) -> bool:
    """Self-attention of a batch, without what a Vision Transformer does not use."""
    tokens = call["query"]
    of_itself = call["key"] is tokens and call["value"] is tokens and tokens.ndim == 3
    absent = all(call[name] is None for name in ("bias_k", "bias_v", "key_padding_mask", "static_k", "static_v"))
    return of_itself and absent and not call["use_separate_proj_weight"] and not call["add_zero_attn"]


class Run(NamedTuple):
    """One forward pass, in one graph: maps and what entered the last (see :class:`AttentionTap`), and the output."""

    maps: list[Float[Tensor, "batch heads query key"]]
    entering: Float[Tensor, "batch tokens dim"] | None
    out: Float[Tensor, "batch outputs"]


@dataclass(frozen=True)
class Adapter:
    """What cannot be inferred from a model's calls of attention.

    Args:
        patch_size: side of a patch, pixels.
        image_size: height and width that it was made for, pixels.
        prefix_tokens: tokens before the patches, in order: ``[CLS]``, ``distillation``, ``register``.
        call: ``call(model, images)`` gives logits or features, (batch, outputs).
        classifies: whether these are logits.
        pool: what the maps shown are of: ``cls``, token 0, or ``mean``, the mean over the patches.
        any_size: whether it takes images of another size.
    """

    patch_size: int
    image_size: tuple[int, int]
    prefix_tokens: tuple[str, ...]
    call: Callable[[Any, Tensor], Tensor]
    classifies: bool = True
    pool: str = "cls"
    any_size: bool = False


class AdaptedModel(nn.Module):
    """Another library's Vision Transformer, with what :mod:`diffvit.attention` asks of a model.

    Args:
        model: left as it is.
        adapter: of its library.

    Raises:
        InputError: its maps are not those of its patches, or explicit maps give another output.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.model, self.adapter = model, adapter
        self.patch_size, self.pool, self.prefix = adapter.patch_size, adapter.pool, len(adapter.prefix_tokens)
        # Of the patches where they are cut by a convolution: its type is that of the images.
        self.weight = next((each for each in model.parameters() if each.ndim == 4), next(model.parameters()))
        modes = [(module, module.training) for module in model.modules()]
        try:
            found = self._check()
        finally:
            for module, training in modes:
                module.training = training
        self.depth, self.num_heads = len(found.maps), max(layer.shape[1] for layer in found.maps)
        self.classes: list[str] | None = None
        self.settings = {
            "image_size": adapter.image_size[0] if len(set(adapter.image_size)) == 1 else adapter.image_size,
            "num_classes": found.out.shape[1] if adapter.classifies else 0,
            "depth": self.depth,
            "num_heads": self.num_heads,
        }

    @torch.no_grad()
    def _check(self) -> Run:
        name, (height, width) = type(self.model).__name__, self.adapter.image_size
        self.model.eval()
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(self.weight)
        with torch.autocast(image.device.type, enabled=False):
            expected, found = self(image), self.run(image)
        tokens = self.prefix + (height // self.patch_size) * (width // self.patch_size)
        sizes = sorted({layer.shape[-1] for layer in found.maps})
        if sizes != [tokens]:
            sizes = ", ".join(map(str, sizes)) or "no maps"
            why = f"its attention is not over all its patches (found {sizes} vs {tokens} tokens)"
            raise InputError(name, why, "It cannot be looked into.")
        off, most = (float(each.abs().max()) for each in (found.out - expected, expected))
        allowed = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps)
        if not off <= allowed * most:
            why = f"explicit maps give another output (by {off:.1g} where the largest is {most:.1g} vs {allowed:.1g})"
            raise InputError(name, why, "It cannot be looked into.")
        return found

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch outputs"]:
        """Logits, or features where the model does not classify.

        Raises:
            InputError: the model does not take images of this size.
        """
        size, made = tuple(images.shape[-2:]), self.adapter.image_size
        fits = self.adapter.any_size and not any(side % self.patch_size for side in size)
        if size != made and not fits:
            allowed = f"{made[0]}x{made[1]}" + (f", or multiples of {self.patch_size}" if self.adapter.any_size else "")
            raise InputError("images", f"do not fit the model (found {size[0]}x{size[1]} vs {allowed} pixels)")
        return self.adapter.call(self.model, images)

    def run(self, images: Float[Tensor, "batch chans height width"], layers: Collection[int] | None = None) -> Run:
        """A forward pass over explicit maps, of which those of ``layers`` are kept; in a graph where gradients are on.

        Raises:
            InputError: the model does not take images of this size.
        """
        with AttentionTap(layers) as tap:
            out = self(images)
        return Run(tap.maps, tap.entering, out)


def adapted(model: nn.Module) -> VisionTransformer | AdaptedModel:
    """The model itself where it is of this package, else an :class:`AdaptedModel` of it.

    Known are timm's ``VisionTransformer`` (DeiT's with distillation too) and ``Eva`` (EVA, DINOv3), transformers'
    ViT, DeiT, DINOv2, DINOv3 and CLIP, torchvision's ``VisionTransformer``, vit-pytorch's ``ViT``, and the image
    towers of open_clip and of OpenAI's ``clip``, alone or in their model.

    Raises:
        InputError: a model of another kind, or one whose explicit maps give another output.
    """
    if isinstance(model, VisionTransformer | AdaptedModel):
        return model
    for parent in type(model).__mro__:
        package, name = parent.__module__.split(".")[0], parent.__name__
        make = ADAPTERS.get(f"{package}.{name}") or ADAPTERS.get(f"{parent.__module__}.{name}")
        if make:
            try:
                return make(model)
            except AttributeError as error:
                why = f"is not of a version of {package} that is known ({error})"
                raise InputError(name, why, "docs/attention.md names the versions.") from None
    hint = "Describe it: AdaptedModel(model, Adapter(patch_size=..., ...)) of diffvit.hub.adapters."
    known = ", ".join(sorted({name.split(".")[0] for name in ADAPTERS}))
    raise InputError(type(model).__name__, f"is of no kind that is known (have the ViTs of {known})", hint)


def _sides(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _of_timm(model: Any) -> VisionTransformer | AdaptedModel:
    if hasattr(model.blocks[0].attn, "lambda_q1"):  # its two maps would count as heads
        name, theirs = type(model).__name__, copy.deepcopy(model).cpu().float()
        ours = fit(name, theirs.state_dict(), settings_of_timm(name, theirs))
        check_logits(name, theirs, ours)
        return ours.to(model.pos_embed)
    count, classes = model.num_prefix_tokens, int(hasattr(model, "cls_token") and model.cls_token is not None)
    before = ("[CLS]",) * classes + ("distillation",) * int(hasattr(model, "dist_token"))
    before += ("register",) * (count - len(before))
    pool = "cls" if classes and (model.global_pool == "token" or not model.num_classes) else "mean"
    size, patch = model.patch_embed.img_size, model.patch_embed.patch_size[0]
    return AdaptedModel(
        model, Adapter(patch, size, before, _call, model.num_classes > 0, pool, bool(model.dynamic_img_size))
    )


def _call(model: Any, images: Tensor) -> Tensor:
    return model(images)


def _of_transformers(model: Any) -> AdaptedModel:
    config = getattr(model.config, "vision_config", model.config)
    distilled = "DeiT" in type(model).__name__
    registers = getattr(config, "num_register_tokens", 0) or 0
    before = ("[CLS]", *("distillation",) * distilled, *("register",) * registers)
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    more = {"interpolate_pos_encoding": True} if takes else {}

    def call(model: Any, images: Tensor) -> Tensor:
        found = model(images, **more)
        for name in ("logits", "image_embeds", "pooler_output"):
            if getattr(found, name, None) is not None:
                return getattr(found, name)
        return found.last_hidden_state[:, 0]

    classifies = "ForImageClassification" in type(model).__name__
    size = _sides(config.image_size)
    return AdaptedModel(model, Adapter(int(config.patch_size), size, before, call, classifies, any_size=True))


def _of_torchvision(model: Any) -> AdaptedModel:
    side, patch = model.image_size, model.patch_size

    def call(model: Any, images: Tensor) -> Tensor:
        """Its forward pass, with the positions as its ``interpolate_embeddings`` makes them."""
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        table = model.encoder.pos_embedding
        if images.shape[2:] != (side, side):
            square = table[:, 1:].mT.unflatten(2, (side // patch, side // patch))
            square = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=True)
            table = torch.cat([table[:, :1], square.flatten(2).mT], dim=1)
        x = model.conv_proj(images).flatten(2).mT
        x = torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1)
        return model.heads(functional_call(model.encoder, {"pos_embedding": table}, x)[:, 0])

    return AdaptedModel(model, Adapter(patch, (side, side), ("[CLS]",), call, any_size=True))


def _with_positions(name: str, size: tuple[int, int], patch: int) -> Callable[[Any, Tensor], Tensor]:
    """A call with the positions of that name, (tokens, dim), for the images' own grid."""
    made = size[0] // patch, size[1] // patch

    def call(model: Any, images: Tensor) -> Tensor:
        grid = images.shape[2] // patch, images.shape[3] // patch
        table = resample(getattr(model, name)[None], made, grid)[0]
        out = functional_call(model, {name: table}, images)
        return out[0] if isinstance(out, tuple) else out

    return call


def _of_clip(model: Any) -> AdaptedModel:
    size = _sides(getattr(model, "image_size", None) or model.input_resolution)
    patch = model.conv1.kernel_size[0]
    pool = "cls" if getattr(model, "pool_type", "tok") == "tok" else "mean"
    call = _with_positions("positional_embedding", size, patch)
    return AdaptedModel(model, Adapter(patch, size, ("[CLS]",), call, False, pool, any_size=True))


def _of_vit_pytorch(model: Any) -> AdaptedModel:
    patch, before = model.patch_size[0], ("[CLS]",) * len(model.cls_token)
    patches = len(model.pos_embedding) - len(before)
    rows = math.isqrt(patches)
    if rows * rows != patches or len(set(model.patch_size)) > 1:
        hint = "Describe it with AdaptedModel and Adapter of diffvit.hub.adapters."
        raise InputError("ViT", f"must be for square images and patches (found {patches} patches)", hint)
    size = (rows * patch, rows * patch)
    call = _with_positions("pos_embedding", size, patch)
    facts = (patch, size, before, call, model.mlp_head is not None, model.pool)
    return AdaptedModel(model, Adapter(*facts, any_size=True))


# By the library's package, or module, and the class; a subclass goes with its parent.
ADAPTERS: dict[str, Callable[[Any], VisionTransformer | AdaptedModel]] = {
    **dict.fromkeys(("timm.VisionTransformer", "timm.Eva"), _of_timm),
    **{
        f"transformers.{name}{kind}": _of_transformers
        for name in ("ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
        for kind in ("Model", "ForImageClassification")
    },
    "transformers.DeiTForImageClassificationWithTeacher": _of_transformers,
    **{f"transformers.CLIP{kind}": _of_transformers for kind in ("VisionModel", "VisionModelWithProjection")},
    "torchvision.VisionTransformer": _of_torchvision,
    "vit_pytorch.vit.ViT": _of_vit_pytorch,
    **dict.fromkeys(("open_clip.VisionTransformer", "clip.VisionTransformer"), _of_clip),
    **dict.fromkeys(("open_clip.CLIP", "open_clip.CustomTextCLIP", "clip.CLIP"), lambda model: adapted(model.visual)),
    "open_clip.TimmModel": lambda model: adapted(model.trunk),
}


def load_model(name: str | None = None, weights: Path | None = None) -> Pretrained:
    """A pretrained Vision Transformer of any library, for maps and attribution.

    A model of timm's whose weights and logits fit becomes a :class:`diffvit.VisionTransformer`.

    ``name`` is as for :func:`diffvit.hub.pretrained.load_pretrained`, or ``hf:NAME`` (a repository or a folder),
    ``torchvision:NAME``, ``open_clip:ARCHITECTURE/TAG`` or ``timm:NAME``.

    Raises:
        ConfigError: no such kind of name, a name and a file that do not go together, or as there.
        InputError: a model without an adapter, or as there.
        EnvironmentFault: the library is missing, or the weights cannot be had.
    """
    kind, colon, rest = (name or "").partition(":")
    if not colon:
        try:
            return load_pretrained(name, weights)
        except InputError:
            known = name is not None and weights is None and type(skeleton(name)).__mro__
            if not known or not any(f"timm.{parent.__name__}" in ADAPTERS for parent in known):
                raise
        kind, rest = "timm", str(name)  # a part that a model of this package lacks
    check_choice("pretrained", kind, _LOADERS)
    if weights is not None:
        raise ConfigError("--weights", f"goes with a name of timm's, or none (found {name})", "Leave one of them out.")
    try:
        with quietly(), cache_where_offline():
            theirs, mean, std, classes = _LOADERS[kind](rest)
    except (ConfigError, EnvironmentFault):
        raise
    except Exception as error:  # each library has errors of its own
        why = f"cannot be loaded ({reason(error)})"
        raise EnvironmentFault(f"{kind}:{rest}", why, "Check the name and the network.") from None
    model = adapted(theirs.float().eval())
    made, known = model.settings["image_size"], classes if model.settings["num_classes"] else None
    note = "" if mean else "; ImageNet's mean and standard deviation assumed"
    mean, std = tuple(mean or IMAGENET_MEAN), tuple(std or IMAGENET_STD)
    short = Path(rest).name if kind == "hf" else rest.replace("/", "-").strip("-")
    return Pretrained(model, short, mean, std, made, known, f"{kind}, {rest}{note}")


Loaded = tuple[nn.Module, Sequence[float] | None, Sequence[float] | None, list[str] | None]  # model, mean, std, classes


def _from_timm(name: str) -> Loaded:
    timm = library("timm", _INSTALL)
    model = timm.create_model(name, pretrained=True, dynamic_img_size=True)
    return model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"], classes_of_timm(timm, model)


def _from_transformers(name: str) -> Loaded:
    transformers = library("transformers", "Install it with pip install transformers.")
    config = transformers.AutoConfig.from_pretrained(name)
    named = (config.architectures or [""])[0]
    kind = {"CLIPModel": "CLIPVisionModelWithProjection"}.get(named, named)
    maker = getattr(transformers, kind) if f"transformers.{kind}" in ADAPTERS else transformers.AutoModel
    try:
        images, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the model was saved without it
        images = {}
    labels = [str(label) for _, label in sorted((config.id2label or {}).items())]
    return maker.from_pretrained(name), images.get("image_mean"), images.get("image_std"), labels


def _from_torchvision(name: str) -> Loaded:
    models = library("torchvision", _INSTALL).models
    weights = models.get_model_weights(name).DEFAULT
    prepare = weights.transforms()
    return models.get_model(name, weights=weights), prepare.mean, prepare.std, list(weights.meta["categories"])


def _from_open_clip(name: str) -> Loaded:
    architecture, _, tag = name.partition("/")
    if not tag:
        raise ConfigError("pretrained", f"needs the weights' tag (found {name})", "As in open_clip:ViT-B-32/openai.")
    visual = library("open_clip", _INSTALL).create_model(architecture, pretrained=tag).visual
    return visual, visual.image_mean, visual.image_std, None


_LOADERS: dict[str, Callable[[str], Loaded]] = {
    "timm": _from_timm,
    "hf": _from_transformers,
    "torchvision": _from_torchvision,
    "open_clip": _from_open_clip,
}
