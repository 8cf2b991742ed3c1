"""Swap the plain modules of :mod:`diffvit.models` for faster ones that compute the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from diffvit.kernels.modules import (
    FastAttention,
    FastBlock,
    FastClsBlock,
    FastDifferentialAttention,
    FastMlp,
    FastPatchEmbed,
    FastRope2d,
)
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d
from diffvit.models.vit import Block, DropPath, LayerScale, Mlp, PatchEmbed, VisionTransformer

_NORMS = (nn.Identity, nn.LayerNorm, nn.RMSNorm)
_ATTENTION = {"qkv": (nn.Linear,), "proj": (nn.Linear,), "q_norm": _NORMS, "k_norm": _NORMS}
# plain class -> faster subclass, and the types of the parts whose weights the faster one may read without a call
FASTER: Mapping[type[nn.Module], tuple[type[nn.Module], Mapping[str, tuple[type[nn.Module], ...]]]] = {
    Attention: (FastAttention, _ATTENTION),
    DifferentialAttention: (FastDifferentialAttention, {**_ATTENTION, "sub_norm": (nn.RMSNorm,)}),
    Rope2d: (FastRope2d, {}),
    Block: (FastBlock, {"norm1": (nn.LayerNorm,), "norm2": (nn.LayerNorm,)}),
    Mlp: (FastMlp, {"fc1": (nn.Linear,), "fc2": (nn.Linear,)}),
    PatchEmbed: (FastPatchEmbed, {"proj": (nn.Conv2d,)}),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KNOWN = (*FASTER, LayerScale, DropPath, nn.Linear, *_NORMS)


def accelerate(model: nn.Module) -> list[str]:
    """Swap in the faster modules, in place; the model keeps its parameters and the keys of its ``state_dict``.

    Only modules that are exactly the project's own are swapped: one that is subclassed, wrapped, hooked, parametrised
    or given another method stays as it is, and so does one with such a part. Hooks that are registered afterwards on
    parts of a swapped module may not be called: register them before.

    In the last block of a model that reads [CLS] alone, only [CLS] attends; the block's output is then that one token.

    Returns:
        The names of the swapped modules.
    """
    only_cls = {
        each.blocks[-1]
        for each in model.modules()
        if type(each) is VisionTransformer
        and each.pool == "cls"
        and type(each.norm) in (nn.LayerNorm, nn.Identity)
        and type(each.blocks) is nn.Sequential
        and not any(map(is_changed, (each, each.norm, each.blocks)))
    }
    done: dict[nn.Module, nn.Module] = {}
    swapped: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or not is_own(module):
            continue
        if module not in done:
            # A part of somebody's own may read the other tokens.
            few = module in only_cls and all(type(part) in _KNOWN and not is_changed(part) for part in module.modules())
            done[module] = _as(FastClsBlock if few else FASTER[type(module)][0], module)
        swapped[name] = done[module]
    for name, fast in swapped.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fast)
    return list(swapped)


def is_own(module: nn.Module) -> bool:
    """Whether a module has a faster form and is, with the parts that this would not call, as its class makes it."""
    if type(module) not in FASTER or is_changed(module):
        return False
    for name, types in FASTER[type(module)][1].items():
        part = module.get_submodule(name)
        if type(part) not in types or is_changed(part):
            return False
    return not isinstance(module, PatchEmbed) or _cuts_patches(module)


def _cuts_patches(embed: PatchEmbed) -> bool:
    """Whether the projection takes one patch after the other, without gap, overlap or border."""
    proj, side = embed.proj, (embed.patch_size,) * 2
    return proj.kernel_size == side == proj.stride and (proj.padding, proj.dilation, proj.groups) == ((0, 0), (1, 1), 1)


def is_changed(module: nn.Module) -> bool:
    """Whether a module has hooks, parametrisations, or a method of its own in place of its class's."""
    return (
        any(getattr(module, name) for name in _HOOKS)
        or hasattr(module, "parametrizations")
        or any(hasattr(type(module), name) for name in vars(module))
    )


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """``module`` as an instance of its subclass ``kind``, over the same parameters, buffers and parts."""
    fast = kind.__new__(kind)
    fast.__dict__ = dict(vars(module))
    return fast
