"""A forward pass as HTML (image, maps, rollout, probabilities) and as a figure in a file; the page's other HTML."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from diffvit.app.explorer import ForwardPass, MapSelection
from diffvit.attention.figures import blend
from diffvit.attention.metrics import mass_mask
from diffvit.reporting.style import LIGHT, Theme, figure, plain, to_png
from diffvit.reporting.tables import percent
from diffvit.reporting.texts import data_uri, template

COLOURS = ("inferno", "viridis", "cividis", "Blues")
_COLUMNS = 5  # of a figure: the image, three maps of a differential head, rollout
_MEANINGS = ("weights", "subtracted", "effective")


def html(part: str, **values: Any) -> str:
    """Render a macro of parts.html. Values are escaped, except those that this function made."""
    return getattr(template("app/parts.html").module, part)(**values)


def inline(pixels: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "3 h w"]) -> str:
    """An image as a data URI of its own size; the browser scales it."""
    array = pixels.permute(1, 2, 0).numpy() if isinstance(pixels, Tensor) else pixels
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", compress_level=1)
    return data_uri(buffer.getvalue())


@dataclass(frozen=True)
class OverlayStyle:
    """How a map is drawn over the image: opacity, colour map of maps without negative entries, and threshold.

    ``mass``: colour the fewest patches that hold this share of the positive part; 1 colours all patches.
    """

    strength: float = 1.0
    colours: str = COLOURS[0]
    mass: float = 1.0


def panel(
    result: ForwardPass,
    selection: MapSelection,
    style: OverlayStyle,
    *,
    note: str = "",
    link: str = "",
    clickable: bool = True,
) -> str:
    """HTML of one forward pass, images inside as data URIs.

    The three maps of a differential head share a colour scale: the third is visibly the first minus the second.
    ``note`` is HTML below the images, ``link`` the address of the figure to download; a click on a ``clickable`` image
    selects the query patch.
    """
    selected = result.maps(selection)
    largest = max(float(values.abs().max()) for values in selected.values())
    maps = [
        _map(result, values, name, meaning, style, largest)
        for (name, values), meaning in zip(selected.items(), _MEANINGS, strict=False)
    ]
    maps.append(_map(result, result.rollout(selection), "rollout", "through all layers", style))
    return html(
        "panel",
        result=result,
        text=describe(result, selection),
        image=inline(result.image.pixels),
        outline=None if result.image.mask is None else _outline(result.image.mask.numpy()),
        query=result.locate(selection)[2],
        maps=maps,
        clickable=clickable,
        note=note,
        link=link,
    )


def describe(result: ForwardPass, selection: MapSelection) -> str:
    """Which map is shown, as a sentence."""
    layer, head, patch = result.locate(selection)
    query = "the patches, on average" if result.record.pool == "mean" else "[CLS]"
    query = query if patch is None else f"the patch in row {patch[0] + 1}, column {patch[1] + 1}"
    heads = f"mean of {result.heads} heads" if head is None else f"head {head + 1} of {result.heads}"
    return f"Attention of {query}: layer {layer + 1} of {len(result.record.layers)}, {heads}."


def _outline(mask: np.ndarray) -> dict[str, Any]:
    """The edges of the object's mask as an SVG path."""
    padded = np.pad(mask, 1)
    across = [f"M{x} {y}h1" for y, x in zip(*np.nonzero(padded[:-1, 1:-1] != padded[1:, 1:-1]), strict=True)]
    down = [f"M{x} {y}v1" for y, x in zip(*np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:]), strict=True)]
    return {"height": mask.shape[0], "width": mask.shape[1], "path": "".join(across + down)}


def _map(
    result: ForwardPass,
    values: Float[Tensor, "rows columns"],
    name: str,
    meaning: str,
    style: OverlayStyle,
    largest: float | None = None,
) -> dict[str, Any]:
    """A map over the image, its colour scale, and its description in words."""
    kept = None if style.mass >= 1 else mass_mask(values, style.mass)
    image, scale = blend(
        result.image.pixels, values, strength=style.strength, colours=style.colours, most=largest, kept=kept
    )
    row, column = divmod(int(values.argmax()), values.shape[1])
    low, high = (f"{limit:.2g}".replace("-", "\N{MINUS SIGN}") for limit in (scale.norm.vmin, scale.norm.vmax))
    return {
        "name": name,
        "meaning": meaning,
        "low": low,
        "high": high,
        "image": inline((image.clip(0, 1) * 255).round().astype(np.uint8)),
        "alt": f"{name}, {meaning}: largest, {float(values.max()):.3f}, in row {row + 1}, column {column + 1}",
        "colours": [to_hex(colour) for colour in colormaps[scale.get_cmap().name](np.linspace(0, 1, 8))],
    }


def draw_figure(passes: Sequence[ForwardPass], selection: MapSelection, *, theme: Theme = LIGHT) -> bytes:
    """PNG with a row for each model's forward pass of an image: the image, its maps with their scales, and rollout."""
    made = figure(theme, 2.9 * _COLUMNS, 3.5 * len(passes) + 0.3)
    rows = made.subfigures(len(passes), 1, squeeze=False)[:, 0]
    for result, part in zip(passes, rows, strict=True):
        part.set_facecolor(theme.paper)
        best = ", ".join(f"{name} {percent(value, 1)}" for name, value in result.probabilities[:2])
        title = f"{result.model.name}: {best}" if best else result.model.name
        part.suptitle(plain(f"{title}\n{describe(result, selection)}"), x=0.01, ha="left", fontsize=11, color=theme.ink)
        axes = part.subplots(1, _COLUMNS)
        for each in axes:
            each.axis("off")
        axes[0].imshow(result.image.pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes[0].set_title(plain(result.image.label or "image"), fontsize=10.5, color=theme.ink, loc="left")
        maps = {**result.maps(selection), "rollout": result.rollout(selection)}
        for each, (name, values) in zip(axes[1:], maps.items(), strict=False):
            picture, scale = blend(result.image.pixels, values)
            each.imshow(picture, interpolation="nearest")
            bar = part.colorbar(scale, ax=each, fraction=0.046, pad=0.03)
            bar.ax.tick_params(labelsize=8, colors=theme.ink)
            each.set_title(name, fontsize=10.5, color=theme.ink, loc="left")
    return to_png(made)
