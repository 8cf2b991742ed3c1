"""Heat over the picture it belongs to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

_SEQUENTIAL, _DIVERGING = "inferno", "RdBu_r"
_PALE = 0.55  # how much of the picture's contrast is left under the heat
_DARK = 0.22  # of its light where a mask keeps nothing


def blend(
    image: UInt8[Tensor, "3 h w"],
    heat: Float[Tensor, "rows columns"],
    *,
    strength: float = 1.0,
    colours: str = _SEQUENTIAL,
    most: float | None = None,
    kept: Bool[Tensor, "rows columns"] | None = None,
) -> tuple[Float[np.ndarray, "h w 3"], ScalarMappable]:
    """The picture in grey, coloured where there is heat, and the scale of the colours.

    Heat from 0 up is one ramp to the map's largest value; heat with negative entries has two hues, and none at zero.
    The stronger, the more it covers: up to four fifths.

    Args:
        image: the picture.
        heat: per patch.
        strength: of the colours, 0 for the picture in grey alone.
        colours: matplotlib's name of the ramp for heat without negative entries.
        most: the heat that the scale ends at; by default the map's own largest, whatever its sign.
        kept: patches that are coloured; the others are grey.
    """
    spread = np.ones((image.shape[1] // heat.shape[0], image.shape[2] // heat.shape[1]))
    values = np.kron(heat.numpy(), spread)
    most = max(float(np.abs(values).max()) if most is None else most, 1e-12)
    signed = bool((values < 0).any())
    norm = Normalize(-most if signed else 0.0, most)
    scale = ScalarMappable(norm, colormaps[_DIVERGING if signed else colours])
    painted = scale.to_rgba(values)[..., :3]
    grey = 1 - _PALE + _PALE * (image.float().mean(dim=0).numpy() / 255)
    cover = strength * (0.15 + 0.65 * (np.abs(values) / most).clip(max=1.0))
    if kept is not None:
        cover = cover * np.kron(kept.numpy(), spread)
    return grey[..., None] * (1 - cover[..., None]) + painted * cover[..., None], scale


def draw_overlay(axes: Axes, image: UInt8[Tensor, "3 h w"], heat: Float[Tensor, "rows columns"]) -> ScalarMappable:
    """:func:`blend` on axes without ticks; returns what a colour bar needs."""
    picture, scale = blend(image, heat)
    axes.imshow(picture, interpolation="nearest")
    axes.axis("off")
    return scale


def marked(image: UInt8[Tensor, "3 h w"], mask: Bool[Tensor, "rows columns"]) -> UInt8[Tensor, "3 h w"]:
    """The picture, darkened where the mask keeps nothing."""
    tall, wide = image.shape[1] // mask.shape[0], image.shape[2] // mask.shape[1]
    kept = mask.repeat_interleave(tall, dim=0).repeat_interleave(wide, dim=1)
    return (image.float() * (_DARK + (1 - _DARK) * kept)).round().to(image.dtype)
