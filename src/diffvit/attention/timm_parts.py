"""What a timm Vision Transformer is made of, read from its modules; a part that we do not have is refused by name.

timm itself is not imported: the modules are judged by their types' names and their attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from diffvit.attention.weights_parts import LAYER_SCALE, mlp_ratio
from diffvit.errors import InputError

_HINT = "It cannot be looked into."
_HOME = "timm.models.vision_transformer"
_BLOCK = r"blocks\.\d+"
# path of a module -> types that compute what ours does outside training
_TYPES: dict[str, tuple[str, ...]] = {
    "": ("VisionTransformer",),
    "patch_embed": ("PatchEmbed",),
    r"patch_embed\.proj": ("Conv2d",),
    r"patch_embed\.norm|patch_drop|norm_pre": ("Identity",),
    r"pos_drop|head_drop": ("Dropout",),
    "blocks": ("Sequential",),
    "norm|fc_norm": ("LayerNorm", "Identity"),
    "head": ("Linear", "Identity"),
    _BLOCK: ("Block",),
    rf"{_BLOCK}\.norm[12]": ("LayerNorm",),
    rf"{_BLOCK}\.attn": ("Attention", "DiffAttention"),
    rf"{_BLOCK}\.attn\.(qkv|proj)": ("Linear",),
    rf"{_BLOCK}\.attn\.[qk]_norm": ("Identity", "LayerNorm", "RmsNorm"),
    rf"{_BLOCK}\.attn\.(attn_drop|proj_drop)": ("Dropout",),
    rf"{_BLOCK}\.attn\.norm": ("Identity",),
    rf"{_BLOCK}\.attn\.sub_norm": ("RmsNorm",),
    rf"{_BLOCK}\.ls[12]": ("LayerScale", "Identity"),
    rf"{_BLOCK}\.drop_path[12]": ("DropPath", "Identity"),
    rf"{_BLOCK}\.mlp": ("Mlp",),
    rf"{_BLOCK}\.mlp\.fc[12]": ("Linear",),
    rf"{_BLOCK}\.mlp\.act": ("GELU",),
    rf"{_BLOCK}\.mlp\.drop[12]": ("Dropout",),
    rf"{_BLOCK}\.mlp\.norm": ("Identity",),
}


def settings_of_timm(name: str, model: nn.Module) -> dict[str, Any]:
    """Settings of the :class:`diffvit.VisionTransformer` that computes what a timm ``VisionTransformer`` does.

    Args:
        name: the model's, for the message.
        model: from ``timm.create_model``; the meta device will do.

    Raises:
        InputError: it has a part that :class:`diffvit.VisionTransformer` has not.
    """
    _check_modules(name, model)
    for part in _odd(model):
        raise InputError(name, f"has a part that is not supported: {part}", _HINT)
    timm: Any = model
    blocks = [_of_block(block) for block in timm.blocks]
    for index, block in enumerate(blocks):
        if block != blocks[0]:
            raise InputError(name, f"has a part that is not supported: blocks.{index} differs from blocks.0", _HINT)
    return {
        "image_size": timm.patch_embed.img_size[0],
        "patch_size": timm.patch_embed.patch_size[0],
        "embed_dim": timm.embed_dim,
        "depth": len(blocks),
        "num_classes": timm.head.out_features if isinstance(timm.head, nn.Linear) else 0,
        "class_token": timm.cls_token is not None,
        "registers": 0 if timm.reg_token is None else timm.reg_token.shape[1],
        "no_embed_class": timm.no_embed_class,
        "pool": "cls" if timm.global_pool == "token" else "mean",
        "fc_norm": type(timm.fc_norm).__name__ == "LayerNorm",
        "in_chans": timm.patch_embed.proj.in_channels,
        **blocks[0],
    }


def _check_modules(name: str, model: nn.Module) -> None:
    """Every module is of a type in :data:`_TYPES`; the outermost one that is not is named."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        allowed = next((types for pattern, types in _TYPES.items() if re.fullmatch(pattern, path)), ())
        if kind not in allowed or (not path and type(module).__module__ != _HOME):
            where = f"{path or 'the model itself'} = {kind}"
            against = f" (vs {' or '.join(allowed)})" if allowed else ""
            raise InputError(name, f"has a part that is not supported: {where}{against}", _HINT)


def _of_block(block: Any) -> dict[str, Any]:
    """A block's share of the settings."""
    attn = block.attn
    differential = type(attn).__name__ == "DiffAttention"
    kinds = {"Identity": "none", "LayerNorm": "layer", "RmsNorm": "rms"}
    return {
        "num_heads": attn.num_heads * (2 if differential else 1),
        "mlp_ratio": mlp_ratio(block.mlp.fc1.in_features, block.mlp.fc1.out_features),
        "attention": "differential" if differential else "softmax",
        "qkv_bias": attn.qkv.bias is not None,
        "qk_norm": kinds[type(attn.q_norm).__name__],
        "layer_scale": LAYER_SCALE if type(block.ls1).__name__ == "LayerScale" else 0.0,
        "norm_eps": block.norm1.eps,
    }


def _odd(model: Any) -> Iterator[str]:
    """What the types do not show, where it is not as ours."""
    embed = model.patch_embed
    if model.global_pool not in ("token", "avg"):
        yield f"global_pool is {model.global_pool!r} (vs 'token' or 'avg')"
    if model.pool_include_prefix:
        yield "pool_include_prefix: the mean runs over all tokens"
    if {type(model.norm).__name__, type(model.fc_norm).__name__} != {"LayerNorm", "Identity"}:
        yield "final_norm: there is no norm, or there are two, after the blocks"
    if model.pos_embed is None:
        yield "pos_embed: there is none"
    square = all(len(set(size)) == 1 for size in (embed.img_size, embed.patch_size))
    plain = embed.proj.stride == embed.proj.kernel_size == embed.patch_size and embed.proj.bias is not None
    if not square or not plain or embed.dynamic_img_pad or embed.img_size[0] % embed.patch_size[0]:
        yield "patch_embed: not a square grid of whole square patches with a bias"
    eps = model.blocks[0].norm1.eps
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == "GELU" and getattr(module, "approximate", "none") != "none":
            yield f"{path} = an approximate GELU"
        if kind in ("LayerNorm", "RmsNorm"):
            expected = 1e-5 if path.endswith("sub_norm") else eps
            if module.eps != expected or module.weight is None:
                yield f"{path} has epsilon {module.eps:g} or no weight (vs {expected:g})"
        if kind in ("Attention", "DiffAttention"):
            yield from _odd_attention(path, module)
        if kind == "Linear" and module.bias is None and not path.endswith("qkv"):
            yield f"{path} has no bias"


def _odd_attention(path: str, attn: Any) -> Iterator[str]:
    if getattr(attn, "lambda_a", None) is not None:
        yield f"{path}.lambda_a: dual_lambda"
    pair = 2 if type(attn).__name__ == "DiffAttention" else 1
    dim = attn.qkv.in_features
    if attn.head_dim * attn.num_heads * pair != dim or attn.qkv.out_features != 3 * dim:
        yield f"{path} has heads of another width than dim / num_heads"
    if attn.scale != attn.head_dim**-0.5:
        yield f"{path} has a scale of its own ({attn.scale:g})"
    if type(attn.q_norm) is not type(attn.k_norm):
        yield f"{path} has different norms on queries and keys"
