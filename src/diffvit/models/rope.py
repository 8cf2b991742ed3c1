"""Rotary positions in two dimensions: queries and keys turn with their patch's row and column."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError

BASE = 100.0  # arXiv 2403.13298, section 3.1: a tenth of the root of what language models take, for grids are short


class Rope2d(nn.Module):
    """Axial rotary position embedding (arXiv 2104.09864 for the rotation, arXiv 2403.13298, equation 7, for images).

    A head of width ``d`` is ``d / 2`` planes, plane ``j`` spanned by its entries ``j`` and ``d / 2 + j``. Plane ``t``
    of the first half turns by ``row * 100^(-4 t / d)``, plane ``t`` of the second by ``column * 100^(-4 t / d)``. So
    the product of a query and a key depends on how far apart their patches stand, not on where. The ``prefix`` tokens
    before the patches do not turn.

    It has no parameters and leaves nothing in a checkpoint.

    Args:
        grid: rows and columns of patches.
        head_dim: width of a head; a multiple of 4.
        prefix: tokens before the patches, 1 with a [CLS] token, else 0.

    Raises:
        ConfigError: ``head_dim`` is not a multiple of 4.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int, prefix: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ConfigError("num_heads", f"leaves heads {head_dim} wide: rope-2d needs a multiple of 4")
        self.prefix = prefix
        rates = BASE ** (-torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim)
        rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
        angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], dim=1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Float[Tensor, "*lead tokens head_dim"]) -> Float[Tensor, "*lead tokens head_dim"]:
        """Turn each token's vector; fewer tokens than there are patches are the first ones."""
        count = x.shape[-2] - self.prefix
        if count <= 0:
            return x
        cos, sin = (table[:count].to(x.dtype) for table in (self.cos, self.sin))
        turned: Tensor = _Turn.apply(x, cos, sin, self.prefix)  # pyright: ignore[reportAssignmentType]
        return turned


class _Turn(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back: nothing of the activations has to be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, prefix: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.prefix = prefix
        return _turn(x, cos, sin, prefix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, -sin, ctx.prefix), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, prefix: int) -> Tensor:
    """Written straight into its contiguous place, which the products that follow need anyway."""
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    turned[..., :prefix, :] = x[..., :prefix, :]
    first, second = x[..., prefix:, :].chunk(2, dim=-1)
    out_first, out_second = turned[..., prefix:, :].chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(first, sin, out=out_second).addcmul_(second, cos)
    return turned
