"""Position embeddings, by the names that the configuration gives them: added to the tokens, rotary, or both.

timm knows one tensor ``pos_embed`` (1, tokens, dim); every kind that is such a tensor keeps that name.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.errors import ConfigError, check_choice
from diffvit.registry import POSITIONS, ROPE, position_names

ROPE_BASE = 100.0  # arXiv 2403.13298, section 3.1: the square root of what language models take, for grids are short
_PARTS = {"learned-2d": (2, "halves"), "sincos-1d": (2, "halves"), "sincos-2d": (4, "quarters")}


def _count(number: int) -> Float[Tensor, " number"]:
    """0 to ``number - 1`` in float64, on the CPU: torch.arange on the meta device first imports modules for 1.5 s."""
    return torch.arange(number, dtype=torch.float64, device="cpu")


def sincos(positions: Float[Tensor, " tokens"], dim: int) -> Float[Tensor, "tokens dim"]:
    """Sines, then cosines, of ``position / 10000^(2 i / dim)`` (arXiv 1706.03762, section 3.5), in float64."""
    rates = 10000.0 ** (-_count(dim // 2) / (dim // 2))
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_table(kind: str, grid: tuple[int, int], dim: int, prefix: int) -> Float[Tensor, "1 tokens dim"]:
    """The fixed table of ``sincos-1d`` or ``sincos-2d``; the ``prefix`` tokens before the patches have zeros."""
    rows, columns = grid
    if kind == "sincos-1d":
        table = sincos(_count(rows * columns), dim)
    else:
        down = sincos(_count(rows), dim // 2)
        across = sincos(_count(columns), dim // 2)
        table = _over_grid(down, across)
    return torch.cat([table.new_zeros(prefix, dim), table])[None].float().to(torch.get_default_device())


def attach(model: nn.Module, kind: str, grid: tuple[int, int], dim: int, prefix: int) -> None:
    """Give ``model`` the tensors of its position embedding.

    ``learned-1d``: parameter ``pos_embed`` (1, tokens, dim). ``learned-2d``: ``pos_embed_rows`` (rows, dim / 2),
    ``pos_embed_cols`` (columns, dim / 2) and, with tokens before the patches, ``pos_embed_cls`` (prefix, dim).
    ``sincos-*``: buffer ``pos_embed``, saved with the weights. ``none`` and ``rope-2d``: nothing. A user's own: its
    module, as ``pos_embed``.

    Args:
        model: the module that adds the embedding.
        kind: one of :func:`diffvit.registry.position_names`.
        grid: rows and columns of patches.
        dim: width of a token.
        prefix: tokens before the patches that have a position: [CLS] and registers.

    Raises:
        ConfigError: an unknown kind, or a width that does not split as it must.
    """
    check_choice("pos_embed", kind, position_names())
    kind = kind.removesuffix(f"+{ROPE}")
    parts, words = _PARTS.get(kind, (1, ""))
    if dim % parts:
        raise ConfigError("embed_dim", f"{dim} is not a multiple of {parts}: {kind} needs {words} of equal width")
    if make := POSITIONS.get(kind):
        model.pos_embed = make(grid, dim, prefix)
    elif kind == "learned-1d":
        model.register_parameter("pos_embed", nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim)))
    elif kind == "learned-2d":
        model.register_parameter("pos_embed_rows", nn.Parameter(torch.empty(grid[0], dim // 2)))
        model.register_parameter("pos_embed_cols", nn.Parameter(torch.empty(grid[1], dim // 2)))
        if prefix:
            model.register_parameter("pos_embed_cls", nn.Parameter(torch.empty(prefix, dim)))
    elif kind.startswith("sincos"):
        model.register_buffer("pos_embed", sincos_table(kind, grid, dim, prefix))


def table(model: nn.Module) -> Float[Tensor, "1 tokens dim"] | None:
    """The position embedding that is added to a model's tokens; None if there is none."""
    if not hasattr(model, "pos_embed_rows"):
        found = getattr(model, "pos_embed", None)
        return found() if isinstance(found, nn.Module) else found
    down, across = model.get_parameter("pos_embed_rows"), model.get_parameter("pos_embed_cols")
    patches = _over_grid(down, across)
    if hasattr(model, "pos_embed_cls"):
        patches = torch.cat([model.get_parameter("pos_embed_cls"), patches])
    return patches[None]


def resample(
    table: Float[Tensor, "1 tokens dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 new_tokens dim"]:
    """A table for another grid of patches: bicubic with antialiasing in float32, as timm resamples it.

    Rows of the table before the patches' stay as they are; for the same grid the table does.
    """
    if old == new:
        return table
    prefix = table.shape[1] - old[0] * old[1]
    before, patches = table[:, :prefix], table[:, prefix:]
    square = patches.float().unflatten(1, old).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=new, mode="bicubic", antialias=True)
    return torch.cat([before, resized.flatten(2).mT.to(before.dtype)], dim=1)


def _over_grid(down: Tensor, across: Tensor) -> Tensor:
    """(rows, a) and (columns, b) as (rows * columns, a + b), row by row."""
    return torch.cat([down.repeat_interleave(len(across), dim=0), across.repeat(len(down), 1)], dim=1)


class Rope2d(nn.Module):
    """Axial rotary position embedding (arXiv 2104.09864 for the rotation, arXiv 2403.13298, equation 7, for images).

    A head of width ``d`` is ``d / 2`` planes of two adjacent entries each. Plane ``t`` of the first half rotates by
    ``row * 100^(-4 t / d)``, plane ``t`` of the second by ``column * 100^(-4 t / d)``. So the product of a query and a
    key depends on the distance of their patches, not on where they are. The ``prefix`` tokens before the patches are
    not rotated.

    It has no parameters and leaves nothing in a checkpoint.

    Args:
        grid: rows and columns of patches.
        head_dim: width of a head; a multiple of 4.
        prefix: tokens before the patches: [CLS] and registers.

    Raises:
        ConfigError: ``head_dim`` is not a multiple of 4.
    """

    angles: Float[Tensor, "tokens planes"]

    def __init__(self, grid: tuple[int, int], head_dim: int, prefix: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ConfigError("num_heads", f"leaves heads {head_dim} wide: rope-2d needs a multiple of 4")
        self.prefix = prefix
        self.register_buffer("angles", torch.empty(0, head_dim // 2, dtype=torch.float64), persistent=False)
        self.set_grid(grid)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the angles of a grid of patches."""
        planes = self.angles.shape[1]
        rates = ROPE_BASE ** (-_count(planes // 2) * 2 / planes)
        rows, columns = torch.meshgrid(*map(_count, grid), indexing="ij")
        angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], dim=1)
        self.angles = torch.cat([angles.new_zeros(self.prefix, planes), angles]).to(self.angles)

    def forward(self, x: Float[Tensor, "batch tokens heads width"]) -> Float[Tensor, "batch tokens heads width"]:
        """Rotate queries or keys; where there are fewer tokens than positions, they are the first ones."""
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = self.angles[: x.shape[1], None].to(wide)
        first, second = x.to(wide).unflatten(3, (-1, 2)).unbind(4)
        cos, sin = angles.cos(), angles.sin()
        rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=4)
        return rotated.flatten(3).to(x.dtype)
