"""Faster modules that compute what those of :mod:`diffvit.models` do, and :func:`accelerate`, which swaps them in.

Attention goes whichever way is fastest for the device, the dtype and the number of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.kernels import native
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d
from diffvit.models.vit import Block, DropPath, LayerScale, Mlp, PatchEmbed, VisionTransformer

_LONG = 128  # tokens, from which on the fused kernel wins in float32 on a CPU


def explicit_is_faster(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Whether writing the map out beats torch's fused kernel for queries of this dtype and so many keys.

    On a CPU it does in half precision, whose fused backward pass is slow, and in float32 for short sequences: a whole
    training step of a small ViT (65 tokens) takes 0.95 of the time. ``diffvit bench attention`` has the layer alone,
    for every way, number of tokens and width (reports/speed).
    """
    return device.type == "cpu" and (dtype in (torch.bfloat16, torch.float16) or tokens < _LONG)


def softmax_map(
    q: Float[Tensor, "batch heads query width"], k: Float[Tensor, "batch heads key width"]
) -> Float[Tensor, "heads_of_all_images query key"]:
    """``softmax(q k^T / sqrt(width))`` over the keys, images and heads in one leading dimension (batch * heads).

    The scale is a factor of the product itself: multiplying q first costs 8% of the whole attention on a CPU.
    """
    return scaled_product(q.flatten(0, 1), k.flatten(0, 1).mT, q.shape[-1] ** -0.5).softmax(dim=-1)


def scaled_product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """``factor * a @ b`` of batches of matrices, the factor inside the product."""
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0, alpha=factor)  # beta=0 leaves the summand out


class FastRope2d(Rope2d):
    """Rotary positions as one complex product, a fifth of the four real products' time on a CPU."""

    def forward(self, x: Float[Tensor, "batch tokens heads width"]) -> Float[Tensor, "batch tokens heads width"]:
        """As :meth:`Rope2d.forward`."""
        if torch.compiler.is_compiling():  # which has no kernels for complex numbers
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = self.angles[: x.shape[1]].to(wide).repeat(1, x.shape[2])
        planes = torch.view_as_complex(x.to(wide).flatten(2).unflatten(2, (-1, 2)))
        rotated = planes * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(rotated).to(x.dtype).view(x.shape)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """As :meth:`Rope2d.set_grid`."""
        super().set_grid(grid)
        vars(self).pop("turn", None)

    @functools.cached_property
    def turn(self) -> Float[Tensor, "tokens 2 width"]:
        """Cosine and signed sine of each entry of a head, float32, as the compiled kernels read them."""
        angles = self.angles.float().cpu()
        cosine, sine = (part.repeat_interleave(2, dim=1) for part in (angles.cos(), angles.sin()))
        sine[:, 0::2].neg_()
        return torch.stack([cosine, sine], dim=1)


class FastAttention(Attention):
    """:class:`Attention` by compiled kernels, an explicit map or torch's fused kernel; for [CLS] alone if asked."""

    def forward(self, x: Float[Tensor, "batch tokens dim"], only_cls: bool = False) -> Float[Tensor, "batch read dim"]:
        """As :meth:`Attention.forward`; with ``only_cls``, only the first token attends."""
        if only_cls and one_query_is_faster(self, x):
            x = in_working_type(x)
            return self.proj(values_for_one(self.qkv, x, maps_for_one(self, x)).flatten(1)[:, None])
        if not only_cls and native_works(self, x):
            read = native.attention(native.linear(self.qkv, x), self.num_heads, turn_of(self))
            return native.linear(self.proj, read)
        q, k, v = heads_for(self, x, only_cls)
        if explicit_is_faster(q.device, q.dtype, k.shape[2]):
            read = torch.bmm(softmax_map(q, k), v.flatten(0, 1)).unflatten(0, q.shape[:2])
        else:
            read = F.scaled_dot_product_attention(q, k, v)
        return self.proj(read.transpose(1, 2).flatten(2))


class FastDifferentialAttention(DifferentialAttention):
    """:class:`DifferentialAttention` by compiled kernels, or with its elementwise steps where they are cheap."""

    def forward(self, x: Float[Tensor, "batch tokens dim"], only_cls: bool = False) -> Float[Tensor, "batch read dim"]:
        """As :meth:`DifferentialAttention.forward`; with ``only_cls``, only the first token attends."""
        eps = self.sub_norm.eps or 0.0
        if not only_cls and native_works(self, x):
            projected = native.linear(self.qkv, x)
            normed = native.attention(projected, self.num_heads, turn_of(self), self.lam(), eps)
        else:
            normed = rms_normed(self._read(x, only_cls), eps).flatten(2)
        # The norm's weight and the constant act on what proj reads: put into its columns, they cost dim^2, once.
        columns = self.sub_norm.weight.repeat(self.num_heads // 2) * (1.0 - self.lambda_init)
        return native.linear(self.proj, normed, self.proj.weight * columns)

    def _read(self, x: Tensor, only_cls: bool) -> Float[Tensor, "batch query pairs width"]:
        """The values by the combined map."""
        lam = self.lam()
        if only_cls and one_query_is_faster(self, x):
            x = in_working_type(x)
            maps = maps_for_one(self, x)
            combined = torch.addcmul(maps[:, 0::2], maps[:, 1::2], -lam.to(maps.dtype))
            return values_for_one(self.qkv, x, combined, row_sum=1.0 - lam)[:, None]
        q, k, v = heads_for(self, x, only_cls)
        positive, negative = (softmax_map(q[:, :, i], k[:, :, i]) for i in range(2))
        combined = torch.addcmul(positive, negative, -lam.to(positive.dtype))
        return torch.bmm(combined, v.flatten(0, 1)).unflatten(0, v.shape[:2]).transpose(1, 2)


def heads_for(attn: Attention, x: Float[Tensor, "batch tokens dim"], only_cls: bool) -> tuple[Tensor, Tensor, Tensor]:
    """:meth:`Attention.heads`, with the query of the first token alone, or those of all."""
    if not only_cls:
        return attn.heads(x)
    weight, bias, dim = attn.qkv.weight, attn.qkv.bias, x.shape[2]
    q = F.linear(x[:, :1], weight[:dim], None if bias is None else bias[:dim])
    k, v = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=2)
    q, k, v = (part.unflatten(2, (attn.num_heads, -1)) for part in (q, k, v))
    q, k = attn.q_norm(q), attn.k_norm(k)
    return attn.by_head(*((q, k, v) if attn.rope is None else (attn.rope(q), attn.rope(k), v)))


def rms_normed(x: Float[Tensor, "*lead width"], eps: float) -> Float[Tensor, "*lead width"]:
    """``x`` over its root mean square, which is computed in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return x * (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)


def has_plain_heads(attn: Attention) -> bool:
    """Whether queries, keys and values are those of ``qkv``, rotated at most."""
    return type(attn.q_norm) is nn.Identity and type(attn.k_norm) is nn.Identity


def native_works(attn: Attention, x: Tensor) -> bool:
    """Whether the compiled kernels can compute the layer for these tokens, here and now."""
    rope = attn.rope
    if rope is not None and (type(rope) is not FastRope2d or len(rope.angles) < x.shape[1]):
        return False
    rounded = rope is not None and rope.angles.dtype.itemsize < 4  # by a model that was moved to half precision
    return not rounded and has_plain_heads(attn) and native.works(x, attn.head_dim)


def turn_of(attn: Attention) -> Tensor | None:
    """:attr:`FastRope2d.turn` of a layer with rotary positions."""
    return attn.rope.turn if isinstance(attn.rope, FastRope2d) else None


# Where [CLS] alone attends: with one query q, (q W_k) x^T is the same as q (x W_k)^T, and (map x) W_v the same as
# map (x W_v): two products with every token, each as wide as the heads are many, in place of two that are as wide as
# the model. The keys' bias adds the same to all of a query's scores, which the softmax takes away again; the values'
# bias comes through as it is, times the sum of the map's row.


def one_query_is_faster(attn: Attention, x: Tensor) -> bool:
    """Whether the products for one query do, with fewer operations than keys and values of all tokens take."""
    tokens, dim = x.shape[1:]
    return dim + attn.num_heads * tokens < tokens * dim and attn.rope is None and has_plain_heads(attn)


def in_working_type(x: Tensor) -> Tensor:
    """What autocast would make of ``x`` in each product that reads it, made once."""
    kind = x.device.type
    # "meta" has no autocast to ask about. torch.amp.is_autocast_available would say so, but the compiler of torch 2.11
    # cannot read it.
    casts = kind != "meta" and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if casts and x.dtype == torch.float32 else x


def maps_for_one(attn: Attention, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens"]:
    """``softmax(q k^T / sqrt(dim / num_heads))`` per head for the first token."""
    qkv, num_heads, dim = attn.qkv, attn.num_heads, x.shape[2]
    q = F.linear(x[:, :1], qkv.weight[:dim], None if qkv.bias is None else qkv.bias[:dim])
    of_heads = q[:, 0].unflatten(1, (num_heads, -1)).transpose(0, 1)  # (heads, batch, width)
    asked = torch.bmm(of_heads, qkv.weight[dim : 2 * dim].unflatten(0, (num_heads, -1))).transpose(0, 1)
    return scaled_product(asked, x.mT, (dim // num_heads) ** -0.5).softmax(dim=-1)


def values_for_one(
    qkv: nn.Linear,
    x: Float[Tensor, "batch tokens dim"],
    maps: Float[Tensor, "batch heads tokens"],
    row_sum: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch heads width"]:
    """``maps`` times the values of as many heads, whose rows sum to ``row_sum``."""
    dim, heads = x.shape[2], maps.shape[1]
    values = qkv.weight[2 * dim :].unflatten(0, (heads, -1))
    found = torch.bmm(torch.bmm(maps, x).transpose(0, 1), values.mT).transpose(0, 1)
    if qkv.bias is None:
        return found
    return found + (qkv.bias[2 * dim :] * row_sum).to(found.dtype).unflatten(0, (heads, -1))


class FastPatchEmbed(PatchEmbed):
    """:class:`PatchEmbed` as one product of matrices: patches do not overlap."""

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches dim"]:
        """As :meth:`PatchEmbed.forward`."""
        self.check(images)
        side = self.patch_size
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class FastMlp(Mlp):
    """:class:`Mlp` with the bias inside the product and a compiled GELU, where these are usable."""

    def forward(self, x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead out"]:
        """As :meth:`Mlp.forward`."""
        return native.linear(self.fc2, native.gelu(native.linear(self.fc1, x)))


class FastBlock(Block):
    """:class:`Block` with each sum and the norm that follows in one pass, where that is usable."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """As :meth:`Block.forward`."""
        x, normed = native.add_and_norm(self.norm1, x)
        branch = self.drop_path(self.ls1(self.attn(normed)))
        x, normed = native.add_and_norm(self.norm2, x, branch)
        return x + self.drop_path(self.ls2(self.mlp(normed)))


class FastClsBlock(Block):
    """A last block of which the head reads [CLS] alone: only [CLS] attends, and only [CLS] comes out."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 1 dim"]:
        """The first token of :meth:`Block.forward`'s output."""
        x, normed = native.add_and_norm(self.norm1, x)
        branch = self.drop_path(self.ls1(self.attn(normed, only_cls=True)))
        x, normed = native.add_and_norm(self.norm2, x[:, :1], branch)
        return x + self.drop_path(self.ls2(self.mlp(normed)))


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
