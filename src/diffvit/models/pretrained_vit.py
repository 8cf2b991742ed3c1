"""Vision Transformers that others trained: our parts, plus those that published weights have, by timm's names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError, InputError
from diffvit.models.attention import Attention
from diffvit.models.block import Block
from diffvit.models.choice import check_choice
from diffvit.models.differential import DifferentialAttention
from diffvit.models.init import initialise
from diffvit.models.patch_embed import PatchEmbed

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass(frozen=True)
class VitParts:
    """What a pretrained Vision Transformer is made of.

    Args:
        image_size: side of the square input that the positions were trained on, pixels.
        patch_size: side of a square patch, pixels.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: heads of the softmax baseline, as everywhere here; timm counts half of them where attention is
            differential.
        hidden: width of the MLP's hidden layer.
        num_classes: outputs of the head; 0 for none.
        attention: ``softmax`` or ``differential``.
        qkv_bias: bias on the query, key and value projections.
        qk_norm: the norm on each head's queries and keys: ``none``, ``layer`` or ``rms``.
        layer_scale: a learnt factor per channel on each residual branch (arXiv 2103.17239, section 2).
        class_token: a [CLS] token before the patches.
        registers: register tokens between [CLS] and the patches (arXiv 2309.16588).
        no_embed_class: [CLS] and the registers have no positions.
        pool: ``cls``, or ``mean`` over the patches.
        fc_norm: the last norm acts after the pooling instead of before.
        norm_eps: epsilon of all layer norms, those of queries and keys included.
        in_chans: input channels.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    hidden: int
    num_classes: int = 0
    attention: str = "softmax"
    qkv_bias: bool = True
    qk_norm: str = "none"
    layer_scale: bool = False
    class_token: bool = True
    registers: int = 0
    no_embed_class: bool = False
    pool: str = "cls"
    fc_norm: bool = False
    norm_eps: float = 1e-6
    in_chans: int = 3

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token) + self.registers


class LayerScale(nn.Module):
    """A learnt factor per channel, which starts near 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, branch: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Scale a residual branch."""
        return branch * self.gamma


class ScaledBlock(Block):
    """A block with a :class:`LayerScale` on each residual branch; the arguments are those of :class:`Block`."""

    def __init__(self, dim: int, num_heads: int, hidden: int, **more: object) -> None:
        super().__init__(dim, num_heads, hidden, **more)  # pyright: ignore[reportArgumentType]
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """As :meth:`Block.forward`."""
        x = x[:, :queries] + self.drop_path(self.ls1(self.attn(self.norm1(x), queries)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class NormedAttention(Attention):
    """Softmax attention with a norm on each head's queries and keys (arXiv 2302.05442, section 2).

    Args:
        dim: width of a token.
        num_heads: heads.
        norm: ``layer`` or ``rms``.
        eps: epsilon of the norms.
        qkv_bias: bias on the query, key and value projection.
    """

    def __init__(self, dim: int, num_heads: int, *, norm: str, eps: float, qkv_bias: bool) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.q_norm, self.k_norm = (NORMS[norm](self.head_dim, eps=eps) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """Attend by the explicit path or the fused one: the shortcuts of the parent go past the norms."""
        return self._by_heads(x, queries)

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._heads(x, queries)
        return self.q_norm(q), self.k_norm(k), v


class NormedDifferentialAttention(DifferentialAttention):
    """Differential attention with one norm on the queries of both maps, and one on the keys.

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline.
        layer_index: depth of the layer, counted from 0.
        norm: ``layer`` or ``rms``.
        eps: epsilon of the norms.
        qkv_bias: bias on the query, key and value projection.
    """

    def __init__(self, dim: int, num_heads: int, *, layer_index: int, norm: str, eps: float, qkv_bias: bool) -> None:
        super().__init__(dim, num_heads, layer_index=layer_index, qkv_bias=qkv_bias)
        self.q_norm, self.k_norm = (NORMS[norm](self.head_dim, eps=eps) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """Attend step by step: the shortcuts of the parent go past the norms."""
        return self.attend(x, queries)

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        q, k, v = super()._heads(x, queries)
        return tuple(map(self.q_norm, q)), tuple(map(self.k_norm, k)), v


class AnySizePatchEmbed(PatchEmbed):
    """A patch projection for images of any height and width that the patch divides; ``grid`` is the trained one."""

    def _check(self, images: Tensor) -> None:
        channels, height, width = images.shape[1:]
        side = self.patch_size
        if channels != self.in_chans or height % side or width % side or not height * width:
            found, allowed = f"{channels}x{height}x{width}", f"{self.in_chans} channels, sides multiples of {side}"
            raise InputError("images", f"do not fit the model ({found} vs {allowed})")


class PretrainedVisionTransformer(nn.Module):
    """A Vision Transformer for the weights that timm's ``VisionTransformer`` holds, on images of any size.

    ``state_dict`` moves to and from timm without renaming, and the outputs are timm's.

    Args:
        parts: what it is made of.

    Raises:
        ConfigError: parts that do not go together.
    """

    def __init__(self, parts: VitParts) -> None:
        super().__init__()
        check_choice("qk_norm", parts.qk_norm, ("none", *NORMS))
        check_choice("pool", parts.pool, ("cls", "mean"))
        if parts.pool == "cls" and not parts.class_token:
            raise ConfigError("pool", "cls needs a class token")
        self.parts, self.pool = parts, parts.pool
        dim = parts.embed_dim
        self.patch_embed = AnySizePatchEmbed(parts.image_size, parts.patch_size, parts.in_chans, dim)
        self.grid: tuple[int, int] = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if parts.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, parts.registers, dim)) if parts.registers else None
        placed = self.grid[0] * self.grid[1] + (0 if parts.no_embed_class else parts.prefix)
        self.pos_embed = nn.Parameter(torch.zeros(1, placed, dim))
        self.blocks = nn.Sequential(*(_block(parts, layer) for layer in range(parts.depth)))
        self.norm = nn.Identity() if parts.fc_norm else nn.LayerNorm(dim, eps=parts.norm_eps)
        self.fc_norm = nn.LayerNorm(dim, eps=parts.norm_eps) if parts.fc_norm else nn.Identity()
        self.head = nn.Linear(dim, parts.num_classes) if parts.num_classes else nn.Identity()
        initialise(self, "trunc-normal")

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; the pooled features where there is no head.

        Raises:
            InputError: another number of channels, or sides that the patch does not divide.
        """
        x = self.blocks[:-1](self.tokens(images))
        # With [CLS] it alone is read, so it alone asks in the last block.
        return self.answer(self.blocks[-1](x, queries=1 if self.pool == "cls" else None))

    def answer(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """As :meth:`forward`, from the tokens that leave the last block; of these [CLS] alone may be given."""
        x = self.norm(x[:, 0]) if self.pool == "cls" else self.norm(x)[:, self.parts.prefix :].mean(dim=1)
        return self.head(self.fc_norm(x))

    def tokens(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """What enters the first block: [CLS], the registers, then the patches row by row, positions added."""
        side = self.patch_embed.patch_size
        x = self.patch_embed(images)
        positions = self._positions((images.shape[2] // side, images.shape[3] // side))
        if self.parts.no_embed_class:
            x = x + positions
        before = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*before, x], dim=1) if before else x
        return x if self.parts.no_embed_class else x + positions

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """``pos_embed`` for a grid of patches: bicubic with antialiasing in float32, as timm resamples it."""
        if grid == self.grid:
            return self.pos_embed
        prefix = 0 if self.parts.no_embed_class else self.parts.prefix
        before, patches = self.pos_embed[:, :prefix], self.pos_embed[:, prefix:]
        square = patches.float().unflatten(1, self.grid).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
        return torch.cat([before, resized.flatten(2).mT.to(before.dtype)], dim=1)


def _block(parts: VitParts, layer: int) -> Block:
    kind = ScaledBlock if parts.layer_scale else Block
    block = kind(
        parts.embed_dim,
        parts.num_heads,
        parts.hidden,
        attention=parts.attention,
        layer_index=layer,
        qkv_bias=parts.qkv_bias,
        norm_eps=parts.norm_eps,
        drop_path=0.0,
    )
    if parts.qk_norm != "none":
        block.attn = _normed(parts, layer)
    return block


def _normed(parts: VitParts, layer: int) -> Attention | DifferentialAttention:
    dim, heads, norm, eps, bias = parts.embed_dim, parts.num_heads, parts.qk_norm, parts.norm_eps, parts.qkv_bias
    if parts.attention == "differential":
        return NormedDifferentialAttention(dim, heads, layer_index=layer, norm=norm, eps=eps, qkv_bias=bias)
    return NormedAttention(dim, heads, norm=norm, eps=eps, qkv_bias=bias)
