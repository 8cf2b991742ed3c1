"""The Vision Transformer, softmax or differential, with timm's parameter names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError, did_you_mean
from diffvit.models import pos_embed as positions
from diffvit.models.attention import AttentionMaps
from diffvit.models.block import Block, walk
from diffvit.models.choice import check_choice
from diffvit.models.differential import DifferentialAttention
from diffvit.models.init import initialise
from diffvit.models.mlp import Mlp
from diffvit.models.patch_embed import PatchEmbed
from diffvit.models.presets import PRESETS
from diffvit.models.rope import Rope2d


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer (arXiv 2010.11929).

    ``state_dict`` moves to and from timm's ``VisionTransformer`` without renaming; ``pool="mean"`` is timm's
    ``class_token=False, global_pool="avg", fc_norm=False``, and timm's differential ``num_heads`` is half of ours.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of a square patch, pixels; divides ``image_size``.
        in_chans: input channels.
        num_classes: outputs of the head; 0 leaves the head out and gives the pooled features.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: heads of the softmax baseline; even for differential attention.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        attention: ``softmax`` or ``differential``.
        pos_embed: ``none``, ``learned-1d``, ``learned-2d``, ``sincos-1d`` or ``sincos-2d``, added to the tokens;
            ``rope-2d``, which turns queries and keys (:class:`diffvit.models.rope.Rope2d`); or both, as in
            ``sincos-2d+rope-2d``.
        pool: ``cls`` (a [CLS] token) or ``mean`` (over the patches; no [CLS] token).
        head: ``linear``, or ``mlp`` with one hidden layer of width ``embed_dim``.
        qkv_bias: bias on the query, key and value projections.
        norm_eps: epsilon of the layer norms.
        drop_path: stochastic depth of the last block; rises linearly from 0 in the first.
        init: ``trunc-normal`` or ``mimetic``.

    Raises:
        ConfigError: an unknown name, or sizes that do not go together.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 6,
        mlp_ratio: float = 2.0,
        attention: str = "softmax",
        pos_embed: str = "learned-1d",
        pool: str = "cls",
        head: str = "linear",
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        init: str = "trunc-normal",
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.settings: dict[str, Any] = settings
        _check_sizes(settings)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("head", head, ("linear", "mlp"))
        self.pool = pool
        self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, embed_dim)
        self.grid: tuple[int, int] = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if pool == "cls" else None
        prefix = int(pool == "cls")
        positions.attach(self, pos_embed, self.grid, embed_dim, prefix)
        rope = (
            Rope2d(self.grid, num_heads, embed_dim // num_heads, prefix) if pos_embed.endswith(positions.ROPE) else None
        )
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    num_heads,
                    int(embed_dim * mlp_ratio),
                    attention=attention,
                    layer_index=layer,
                    qkv_bias=qkv_bias,
                    norm_eps=norm_eps,
                    drop_path=drop_path * layer / max(depth - 1, 1),
                    rope=rope,
                )
                for layer in range(depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = _head(head, embed_dim, num_classes)
        initialise(self, init)

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; the pooled features where there is no head.

        Raises:
            InputError: the images have another size or number of channels than the model, or are not floating point.
        """
        x = self.blocks[:-1](self.tokens(images))
        # The head reads [CLS] alone, so in the last block only [CLS] asks: the other rows would be thrown away.
        return self.answer(self.blocks[-1](x, queries=None if self.cls_token is None else 1))

    def answer(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits from the tokens that leave the last block, of which [CLS] alone may be given where there is one."""
        # A norm acts on each token alone: with [CLS], only its own is read.
        x = self.norm(x).mean(dim=1) if self.cls_token is None else self.norm(x[:, 0])
        return self.head(x)

    def tokens(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """What enters the first block: [CLS] where there is one, then the patches row by row, positions added."""
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        table = positions.table(self)
        return x if table is None else x + table

    def attention_maps(self, images: Float[Tensor, "batch chans height width"]) -> list[AttentionMaps]:
        """Every block's maps, first to last, by the explicit path."""
        return walk(self.blocks, self.tokens(images), range(len(self.blocks)))

    @torch.no_grad()
    def lambdas(self) -> list[float]:
        """Each layer's lambda, first to last; empty for softmax attention."""
        attentions = [module for module in self.modules() if isinstance(module, DifferentialAttention)]
        return [attention.lam().item() for attention in attentions]


def create_model(preset: str, **overrides: Any) -> VisionTransformer:
    """A model by its preset's name, with other settings of :class:`VisionTransformer` given or overridden.

    Raises:
        ConfigError: no such preset or setting, or sizes that do not go together.
    """
    check_choice("preset", preset, PRESETS)
    known = inspect.signature(VisionTransformer).parameters
    for name in overrides:
        if name not in known:
            raise ConfigError(name, "no such model setting", did_you_mean(name, known).strip().capitalize())
    settings: dict[str, Any] = {**PRESETS[preset].settings, **overrides}
    return VisionTransformer(**settings)


def _head(kind: str, dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    return nn.Linear(dim, num_classes) if kind == "linear" else Mlp(dim, dim, num_classes)


def _check_sizes(settings: Mapping[str, Any]) -> None:
    for name in ("image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads"):
        if not isinstance(settings[name], Integral):
            square = ": images are square" if name == "image_size" else ""
            raise ConfigError(name, f"must be a whole number{square} (found {settings[name]!r})")
    for name in ("mlp_ratio", "norm_eps", "drop_path"):
        if not isinstance(settings[name], Real):
            raise ConfigError(name, f"must be a number (found {settings[name]!r})")
    for name in ("image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"):
        if settings[name] < 1:
            raise ConfigError(name, f"must be at least 1 (found {settings[name]})")
    if settings["num_classes"] < 0:
        raise ConfigError("num_classes", f"must be at least 0 (found {settings['num_classes']})")
    if int(settings["embed_dim"] * settings["mlp_ratio"]) < 1:
        raise ConfigError("mlp_ratio", f"leaves no hidden width (found {settings['mlp_ratio']})")
    if not 0.0 <= settings["drop_path"] < 1.0:
        raise ConfigError("drop_path", f"must be from 0 to below 1 (found {settings['drop_path']})")
