"""Changing colours: batched, each image with its own strength, bytes in and bytes out.

Each operation follows the arithmetic of Pillow's ``ImageOps``, ``ImageEnhance`` and ``ImageFilter``, which published
augmentation policies are defined by. All sums are over integers, so an image's result does not depend on the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

# ITU-R 601 luma in 1/65536; the weighted sum stays below 2**24, so that float32 holds it exactly.
_LUMA = (19595.0, 38470.0, 7471.0)


def grey(pixels: UInt8[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 1 height width"]:
    """Luma, rounded."""
    red, green, blue = pixels.to(torch.float32).unbind(1)
    total = red.mul_(_LUMA[0]).add_(green.mul_(_LUMA[1])).add_(blue.mul_(_LUMA[2])).add_(32768.0)
    return total.mul_(1 / 65536).to(torch.uint8)[:, None]


def _blend(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """``base + factor * (pixels - base)``, cut to 0 .. 255 and to whole numbers."""
    base = base.to(torch.float32)
    mixed = (pixels.to(torch.float32) - base).mul_(factor[:, None, None, None]).add_(base)
    return mixed.clamp_(0, 255).to(torch.uint8)


def brightness(
    pixels: UInt8[Tensor, "batch 3 height width"], factor: Float32[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Scale towards black (factor 0) or away from it; 1 changes nothing."""
    return (pixels.to(torch.float32).mul_(factor[:, None, None, None])).clamp_(0, 255).to(torch.uint8)


def contrast(
    pixels: UInt8[Tensor, "batch 3 height width"], factor: Float32[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Scale towards the image's mean luma (factor 0) or away from it; 1 changes nothing."""
    luma = grey(pixels).flatten(1)
    mean = (luma.sum(1, dtype=torch.int64) * 2 + luma.shape[1]) // (2 * luma.shape[1])
    return _blend(mean[:, None, None, None], pixels, factor)


def saturation(
    pixels: UInt8[Tensor, "batch 3 height width"], factor: Float32[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Scale towards the grey image (factor 0) or away from it; 1 changes nothing. Policies call it colour."""
    return _blend(grey(pixels), pixels, factor)


def sharpness(
    pixels: UInt8[Tensor, "batch 3 height width"], factor: Float32[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
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


def posterize(
    pixels: UInt8[Tensor, "batch 3 height width"], bits: UInt8[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Keep the highest ``bits`` (1 .. 8) of each byte."""
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(bits, dtype=torch.int64), 8 - bits.to(torch.int64))
    return pixels & mask.to(torch.uint8)[:, None, None, None]


def solarize(
    pixels: UInt8[Tensor, "batch 3 height width"], threshold: Int64[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Invert the values from ``threshold`` (0 .. 256) up; 256 inverts none."""
    # Inverting a byte flips all its bits. On a CPU this is several times quicker than torch.where over bytes.
    flips = pixels.to(torch.int16) >= threshold.to(torch.int16)[:, None, None, None]
    return pixels ^ flips.view(torch.uint8).neg()


def autocontrast(pixels: UInt8[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 3 height width"]:
    """Stretch each channel to 0 .. 255; a channel of one value stays as it is."""
    flat = pixels.flatten(2)
    low, high = flat.amin(2, keepdim=True).to(torch.int64), flat.amax(2, keepdim=True).to(torch.int64)
    values = torch.arange(256, device=pixels.device)
    span = high - low
    stretched = (values - low).clamp(min=0) * 255 // span.clamp(min=1)
    return _look_up(torch.where(span > 0, stretched.clamp(max=255), values), pixels)


def equalize(pixels: UInt8[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 3 height width"]:
    """Make each channel's histogram as flat as a table look-up can.

    With step = (pixels - those of the highest value) // 255, a value goes to (pixels below it + step // 2) // step;
    a channel too uniform for a step of 1 stays as it is.
    """
    batch, channels, height, width = pixels.shape
    flat = pixels.reshape(batch * channels, -1).to(torch.int64)
    places = flat + torch.arange(len(flat), device=pixels.device)[:, None] * 256
    counts = _counts(places.flatten(), 256 * len(flat)).view(batch, channels, 256)
    highest = pixels.flatten(2).amax(2, keepdim=True).to(torch.int64)
    step = (height * width - counts.gather(2, highest)) // 255
    lower = counts.cumsum(2) - counts
    flattened = ((lower + step // 2) // step.clamp(min=1)).clamp(max=255)
    return _look_up(torch.where(step > 0, flattened, torch.arange(256, device=pixels.device)), pixels)


def _counts(places: Tensor, length: int) -> Tensor:
    """How often each of ``0 .. length - 1`` occurs."""
    if places.device.type == "cpu":
        return torch.bincount(places, minlength=length)
    # On an accelerator bincount waits for the largest value, to know its own length.
    return places.new_zeros(length).scatter_add_(0, places, torch.ones_like(places))


def _look_up(tables: Int64[Tensor, "batch 3 256"], pixels: Tensor) -> Tensor:
    return tables.to(torch.uint8).gather(2, pixels.flatten(2).to(torch.int64)).view_as(pixels)
