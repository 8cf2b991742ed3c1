"""Where a token sits: the position embeddings, each a module part by the name the configuration gives it.

timm knows one tensor ``pos_embed`` (1, tokens, dim); every kind that is such a tensor keeps that name.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.errors import ConfigError
from diffvit.models.choice import check_choice

ADDED = ("none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d")
ROPE = "rope-2d"
KINDS = (*ADDED, ROPE, *(f"{kind}+{ROPE}" for kind in ADDED[1:]))
_PARTS = {"learned-2d": (2, "halves"), "sincos-1d": (2, "halves"), "sincos-2d": (4, "quarters")}


def sincos(positions: Float[Tensor, " tokens"], dim: int) -> Float[Tensor, "tokens dim"]:
    """Sines, then cosines, of ``position / 10000^(2 i / dim)`` (arXiv 1706.03762, section 3.5), in float64."""
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_table(kind: str, grid: tuple[int, int], dim: int, prefix: int) -> Float[Tensor, "1 tokens dim"]:
    """The fixed table of ``sincos-1d`` or ``sincos-2d``; the ``prefix`` tokens before the patches have zeros."""
    rows, columns = grid
    if kind == "sincos-1d":
        table = sincos(torch.arange(rows * columns, dtype=torch.float64), dim)
    else:
        down = sincos(torch.arange(rows, dtype=torch.float64), dim // 2)
        across = sincos(torch.arange(columns, dtype=torch.float64), dim // 2)
        table = _over_grid(down, across)
    return torch.cat([torch.zeros(prefix, dim, dtype=torch.float64), table])[None].float()


def attach(model: nn.Module, kind: str, grid: tuple[int, int], dim: int, prefix: int) -> None:
    """Give ``model`` the tensors of its position embedding.

    ``learned-1d``: parameter ``pos_embed`` (1, tokens, dim). ``learned-2d``: ``pos_embed_rows`` (rows, dim / 2),
    ``pos_embed_cols`` (columns, dim / 2) and, with a [CLS] token, ``pos_embed_cls`` (1, dim). ``sincos-*``: buffer
    ``pos_embed``, saved with the weights. ``none``: nothing; nor for ``rope-2d``, alone or after a ``+``, whose
    positions act inside the attention (:mod:`diffvit.models.rope`).

    Args:
        model: the module that adds the embedding.
        kind: one of :data:`KINDS`.
        grid: rows and columns of patches.
        dim: width of a token.
        prefix: tokens before the patches, 1 with a [CLS] token, else 0.

    Raises:
        ConfigError: an unknown kind, or a width that does not split as it must.
    """
    check_choice("pos_embed", kind, KINDS)
    kind = kind.removesuffix(f"+{ROPE}")
    parts, words = _PARTS.get(kind, (1, ""))
    if dim % parts:
        raise ConfigError("embed_dim", f"{dim} is not a multiple of {parts}: {kind} needs {words} of equal width")
    if kind == "learned-1d":
        model.register_parameter("pos_embed", nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim)))
    elif kind == "learned-2d":
        model.register_parameter("pos_embed_rows", nn.Parameter(torch.empty(grid[0], dim // 2)))
        model.register_parameter("pos_embed_cols", nn.Parameter(torch.empty(grid[1], dim // 2)))
        if prefix:
            model.register_parameter("pos_embed_cls", nn.Parameter(torch.empty(prefix, dim)))
    elif kind.startswith("sincos"):
        model.register_buffer("pos_embed", sincos_table(kind, grid, dim, prefix))


def table(model: nn.Module) -> Float[Tensor, "1 tokens dim"] | None:
    """What to add to the tokens of a model that :func:`attach` dressed; None where there is nothing."""
    if not hasattr(model, "pos_embed_rows"):
        return getattr(model, "pos_embed", None)
    down, across = model.get_parameter("pos_embed_rows"), model.get_parameter("pos_embed_cols")
    patches = _over_grid(down, across)
    if hasattr(model, "pos_embed_cls"):
        patches = torch.cat([model.get_parameter("pos_embed_cls"), patches])
    return patches[None]


def _over_grid(down: Tensor, across: Tensor) -> Tensor:
    """(rows, a) and (columns, b) as (rows * columns, a + b), row by row."""
    return torch.cat([down.repeat_interleave(len(across), dim=0), across.repeat(len(down), 1)], dim=1)
