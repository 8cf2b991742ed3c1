"""Rotary positions in two dimensions: queries and keys turn with their patch's row and column."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError

BASE = 100.0  # arXiv 2403.13298, section 3.1: the square root of what language models take, for grids are short


class Rope2d(nn.Module):
    """Axial rotary position embedding (arXiv 2104.09864 for the rotation, arXiv 2403.13298, equation 7, for images).

    A head of width ``d`` is ``d / 2`` planes of two adjacent entries each. Plane ``t`` of the first half turns by
    ``row * 100^(-4 t / d)``, plane ``t`` of the second by ``column * 100^(-4 t / d)``. So the product of a query and a
    key depends on how far apart their patches stand, not on where. The ``prefix`` tokens before the patches do not
    turn.

    It has no parameters and leaves nothing in a checkpoint.

    Args:
        grid: rows and columns of patches.
        num_heads: heads side by side in a query or a key.
        head_dim: width of one; a multiple of 4.
        prefix: tokens before the patches, 1 with a [CLS] token, else 0.

    Raises:
        ConfigError: ``head_dim`` is not a multiple of 4.
    """

    angles: Tensor
    turn: Tensor

    def __init__(self, grid: tuple[int, int], num_heads: int, head_dim: int, prefix: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ConfigError("num_heads", f"leaves heads {head_dim} wide: rope-2d needs a multiple of 4")
        self.num_heads = num_heads
        rates = BASE ** (-torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim)
        rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
        of_a_head = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], dim=1)
        angles = torch.cat([of_a_head.new_zeros(prefix, head_dim // 2), of_a_head]).repeat(1, num_heads)
        self.register_buffer("angles", angles, persistent=False)  # (tokens, dim / 2)
        of_a_head = angles[:, : head_dim // 2].float()
        cosine, sine = (part.repeat_interleave(2, dim=1) for part in (of_a_head.cos(), of_a_head.sin()))
        sine[:, 0::2].neg_()
        self.register_buffer("turn", torch.stack([cosine, sine], dim=1), persistent=False)  # (tokens, 2, head_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Turn queries or keys, heads side by side; where there are fewer tokens than places, they are the first."""
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = self.angles[: x.shape[1]].to(wide)
        pairs = x.to(wide).unflatten(2, (-1, 2))
        if torch.compiler.is_compiling():  # which has no kernels for complex numbers
            first, second, cos, sin = *pairs.unbind(3), angles.cos(), angles.sin()
            return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=3).flatten(2).to(x.dtype)
        # A complex product is one pass over memory; the four real ones take five times as long on a CPU.
        turned = torch.view_as_complex(pairs) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(2).to(x.dtype)
