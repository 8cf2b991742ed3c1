"""Moving pixels: crops, flips and affine maps, each one gather over a batch with its own parameters per image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


def crop_and_flip(
    pixels: UInt8[Tensor, "batch chans height width"],
    shift: Int64[Tensor, "batch 2"],
    mirror: Bool[Tensor, " batch"],
) -> UInt8[Tensor, "batch chans height width"]:
    """Move each image by (rows, columns), reflecting at its edges (the edge itself not repeated), then mirror some.

    The same as padding by reflection, cutting the window that begins ``shift`` past the image's own corner, and
    flipping left to right; shifts must be smaller than the image. Nothing is padded: the reflection is in the index.
    """
    batch, channels, height, width = pixels.shape
    rows = _reflect(torch.arange(height, device=pixels.device) + shift[:, :1], height)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + shift[:, 1:], width)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    flat = pixels.reshape(batch, channels, height * width)
    return flat.gather(2, places.expand(-1, channels, -1)).view_as(pixels)


def affine(
    pixels: UInt8[Tensor, "batch chans height width"],
    maps: Int64[Tensor, "batch 6"],
    fill: UInt8[Tensor, " chans"],
) -> UInt8[Tensor, "batch chans height width"]:
    """Move each image by its own affine map, taking the nearest pixel; places from outside get the ``fill`` colour.

    ``maps`` holds (a, b, c, d, e, f) of :func:`fixed_point`: the pixel at (x, y) comes from
    (a x + b y + c, d x + e y + f). Integer arithmetic, so every device and batch size picks the same pixels.
    """
    batch, channels, height, width = pixels.shape
    x = torch.arange(width, device=pixels.device)
    y = torch.arange(height, device=pixels.device)[:, None]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    from_x, from_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    outside = (from_x < 0) | (from_x >= width) | (from_y < 0) | (from_y >= height)
    # One more pixel at the end of each image has the fill colour.
    places = (from_y * width + from_x).masked_fill_(outside, height * width).view(batch, 1, height * width)
    source = torch.cat([pixels.flatten(2), fill[:, None].expand(batch, channels, 1)], 2)
    return source.gather(2, places.expand(-1, channels, -1)).view_as(pixels)


def fixed_point(matrix: Sequence[float]) -> list[int]:
    """An affine map between pixel centres, in 1/65536 of a pixel.

    ``matrix`` is (a, b, c, d, e, f) over continuous coordinates, in which pixel 0 reaches from 0 to 1: the output's
    point (x, y) shows the input's point (a x + b y + c, d x + e y + f).
    """
    a, b, c, d, e, f = matrix
    centred = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return [math.floor(value * 65536 + 0.5) for value in centred]


def box_mask(
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    bottom: Int64[Tensor, " batch"],
    right: Int64[Tensor, " batch"],
    size: tuple[int, int],
) -> Bool[Tensor, "batch 1 height width"]:
    """True inside each image's box: rows ``top .. bottom - 1``, columns ``left .. right - 1``.

    ``size`` is (height, width); what of a box lies outside the image is cut off.
    """
    y = torch.arange(size[0], device=top.device)
    x = torch.arange(size[1], device=top.device)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _reflect(positions: Tensor, size: int) -> Tensor:
    positions = positions.abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)
