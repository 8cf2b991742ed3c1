"""The pre-norm encoder block, with stochastic depth; a new attention is one more line in ``ATTENTION``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.attention import Attention, AttentionMaps
from diffvit.models.choice import check_choice
from diffvit.models.differential import DifferentialAttention
from diffvit.models.mlp import Mlp
from diffvit.models.native_tokens import add_and_norm
from diffvit.models.rope import Rope2d

# name -> maker from (dim, num_heads, layer_index, qkv_bias, rope)
ATTENTION: Mapping[str, Callable[[int, int, int, bool, Rope2d | None], Attention | DifferentialAttention]] = {
    "softmax": lambda dim, heads, _, bias, rope: Attention(dim, heads, qkv_bias=bias, rope=rope),
    "differential": lambda dim, heads, layer, bias, rope: DifferentialAttention(
        dim, heads, layer_index=layer, qkv_bias=bias, rope=rope
    ),
}


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drop a sample's residual branch with this chance.

    What is kept is scaled up, so that the expectation stays.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, branch: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Draw once per sample; outside training, nothing changes."""
        if not self.training or self.chance == 0.0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.chance
        return branch * (kept.to(branch.dtype) / (1.0 - self.chance))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside an identity (arXiv 2010.11929, equations 2 and 3).

    Args:
        dim: width of a token.
        num_heads: heads of the softmax baseline.
        hidden: width of the MLP's hidden layer.
        attention: a name in :data:`ATTENTION`.
        layer_index: depth of the block, counted from 0.
        qkv_bias: bias on the query, key and value projection.
        norm_eps: epsilon of the layer norms.
        drop_path: chance to drop a sample's residual branch.
        rope: rotary positions of the attention, if any.

    Raises:
        ConfigError: an unknown attention, or one that refuses these sizes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        *,
        attention: str,
        layer_index: int,
        qkv_bias: bool,
        norm_eps: float,
        drop_path: float,
        rope: Rope2d | None = None,
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTION)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ATTENTION[attention](dim, num_heads, layer_index, qkv_bias, rope)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], queries: int | None = None
    ) -> Float[Tensor, "batch read dim"]:
        """One step of the encoder; with ``queries``, only for the first so many tokens, which read all of them."""
        x, normed = add_and_norm(self.norm1, x)
        branch = self.drop_path(self.attn(normed, queries))
        x, normed = add_and_norm(self.norm2, x if queries is None else x[:, :queries], branch)
        return x + self.drop_path(self.mlp(normed))


def walk(blocks: nn.Sequential, x: Float[Tensor, "batch tokens dim"], wanted: Collection[int]) -> list[AttentionMaps]:
    """The wanted blocks' maps, first to last, by the explicit path; ``x`` enters the first block.

    The tokens go on by the fast path, and no further than the last block asked for.
    """
    layers = []
    last = max(wanted, default=-1)
    for index, block in enumerate(blocks):
        if index > last:
            break
        assert isinstance(block, Block)
        if index in wanted:
            layers.append(block.attn.maps(block.norm1(x)))
        x = block(x)
    return layers


def walk_through(
    blocks: nn.Sequential, x: Float[Tensor, "batch tokens dim"]
) -> tuple[list[AttentionMaps], Float[Tensor, "batch tokens dim"]]:
    """Every block's maps, as :func:`walk` gives them, and the tokens that leave the last block."""
    layers = []
    for block in blocks:
        assert isinstance(block, Block)
        layers.append(block.attn.maps(block.norm1(x)))
        x = block(x)
    return layers, x
