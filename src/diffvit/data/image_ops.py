"""Operations on batches of uint8 images: colours, crops, flips and affine maps, each image with its own parameters.

Colour operations follow the arithmetic of Pillow's ``ImageOps``, ``ImageEnhance`` and ``ImageFilter``, which published
augmentation policies are defined by. All sums are over integers and every move is one gather with integer positions, so
an image's result depends neither on the batch nor on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "batch chans height width"]
Edges = Int64[Tensor, " batch"]

# ITU-R 601 luma in 1/65536; the weighted sum stays below 2**24, so that float32 holds it exactly.
_LUMA = (19595.0, 38470.0, 7471.0)


def grey(pixels: Pixels) -> UInt8[Tensor, "batch 1 height width"]:
    """Luma, rounded; an image of one channel is its own."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.to(torch.float32).unbind(1)
    total = red.mul_(_LUMA[0]).add_(green.mul_(_LUMA[1])).add_(blue.mul_(_LUMA[2])).add_(32768.0)
    return total.mul_(1 / 65536).to(torch.uint8)[:, None]


def _blend(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """``base + factor * (pixels - base)``, cut to 0 .. 255 and to whole numbers."""
    base = base.to(torch.float32)
    mixed = (pixels.to(torch.float32) - base).mul_(factor[:, None, None, None]).add_(base)
    return mixed.clamp_(0, 255).to(torch.uint8)


def brightness(pixels: Pixels, factor: Float32[Tensor, " batch"]) -> Pixels:
    """Scale towards black (factor 0) or away from it; 1 changes nothing."""
    return (pixels.to(torch.float32).mul_(factor[:, None, None, None])).clamp_(0, 255).to(torch.uint8)


def contrast(pixels: Pixels, factor: Float32[Tensor, " batch"]) -> Pixels:
    """Scale towards the image's mean luma (factor 0) or away from it; 1 changes nothing."""
    luma = grey(pixels).flatten(1)
    mean = (luma.sum(1, dtype=torch.int64) * 2 + luma.shape[1]) // (2 * luma.shape[1])
    return _blend(mean[:, None, None, None], pixels, factor)


def saturation(pixels: Pixels, factor: Float32[Tensor, " batch"]) -> Pixels:
    """Scale towards the grey image (factor 0) or away from it; 1 changes nothing. Policies call it colour."""
    return _blend(grey(pixels), pixels, factor)


def sharpness(pixels: Pixels, factor: Float32[Tensor, " batch"]) -> Pixels:
    """Scale towards a smoothed image (factor 0) or away from it; 1 changes nothing, the outermost pixels never change.

    The smoothing kernel is 3 x 3: 5 in the middle, 1 around, over 13.
    """
    height, width = pixels.shape[2:]
    if min(height, width) < 3:
        return pixels
    # Neighbours are shifts of the flat image: quicker than slices, and wrong only at the sides, which stay as they are.
    flat = pixels.flatten(2).to(torch.float32)
    rows = (flat[..., : -2 * width] + flat[..., width:-width]).add_(flat[..., 2 * width :])
    around = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    middle = slice(width + 1, height * width - width - 1)
    # Thirteenths never tie, so one float32 rounding cannot cross a half.
    smooth = around.add_(flat[..., middle], alpha=4).mul_(1 / 13).add_(0.5).floor_()
    base = flat.clone()
    base[..., middle] = smooth
    base = base.view(pixels.shape)
    base[..., :: width - 1] = pixels[..., :: width - 1].to(torch.float32)
    return _blend(base, pixels, factor)


def posterize(pixels: Pixels, bits: UInt8[Tensor, " batch"]) -> Pixels:
    """Keep the highest ``bits`` (1 .. 8) of each byte."""
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(bits, dtype=torch.int64), 8 - bits.to(torch.int64))
    return pixels & mask.to(torch.uint8)[:, None, None, None]


def solarize(pixels: Pixels, threshold: Int64[Tensor, " batch"]) -> Pixels:
    """Invert the values from ``threshold`` (0 .. 256) up; 256 inverts none."""
    # Inverting a byte flips all its bits. On a CPU this is several times quicker than torch.where over bytes.
    flips = pixels.to(torch.int16) >= threshold.to(torch.int16)[:, None, None, None]
    return pixels ^ flips.view(torch.uint8).neg()


def autocontrast(pixels: Pixels) -> Pixels:
    """Stretch each channel to 0 .. 255; a channel of one value stays as it is."""
    flat = pixels.flatten(2)
    low, high = flat.amin(2, keepdim=True).to(torch.int64), flat.amax(2, keepdim=True).to(torch.int64)
    values = torch.arange(256, device=pixels.device)
    span = high - low
    stretched = (values - low).clamp(min=0) * 255 // span.clamp(min=1)
    return _look_up(torch.where(span > 0, stretched.clamp(max=255), values), pixels)


def equalize(pixels: Pixels) -> Pixels:
    """Make each channel's histogram as flat as a table look-up can.

    With step = (pixels - those of the highest value) // 255, a value goes to (pixels below it + step // 2) // step;
    a channel too uniform for a step of 1 stays as it is.
    """
    flat = pixels.flatten(2).to(torch.int64)
    # bincount would wait for the largest value on an accelerator, to know its own length.
    counts = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    step = (flat.shape[2] - counts.gather(2, flat.amax(2, keepdim=True))) // 255
    lower = counts.cumsum(2) - counts
    flattened = ((lower + step // 2) // step.clamp(min=1)).clamp(max=255)
    return _look_up(torch.where(step > 0, flattened, torch.arange(256, device=pixels.device)), pixels)


def _look_up(tables: Int64[Tensor, "batch chans 256"], pixels: Tensor) -> Tensor:
    return tables.to(torch.uint8).gather(2, pixels.flatten(2).to(torch.int64)).view_as(pixels)


def crop_and_flip(pixels: Pixels, shift: Int64[Tensor, "batch 2"], mirror: Bool[Tensor, " batch"]) -> Pixels:
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


def affine(pixels: Pixels, maps: Int64[Tensor, "batch 6"], fill: UInt8[Tensor, " chans"]) -> Pixels:
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
    top: Edges, left: Edges, bottom: Edges, right: Edges, size: tuple[int, int]
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
