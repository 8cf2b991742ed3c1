"""A forward pass as HTML (image, maps, rollout, probabilities) and as a figure in a file; the page's other HTML."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffvit.app.explorer import ForwardPass, MapSelection, Shown
from diffvit.attention.figures import blend, mark_level
from diffvit.attention.metrics import mass_mask
from diffvit.files import to_csv
from diffvit.reporting.style import LIGHT, Theme, figure, to_png, to_svg
from diffvit.reporting.tables import percent
from diffvit.reporting.texts import data_uri, template

COLOURS = ("inferno", "viridis", "cividis", "Blues")
FORMATS = {"png": "image/png", "svg": "image/svg+xml", "npz": "application/zip", "csv": "text/csv"}  # of a download


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
    ``note`` is HTML below the images, ``link`` the address of the figure to download without its ending; a click on a
    ``clickable`` image selects the query patch.
    """
    selected = result.maps(selection)
    largest = max(float(each.values.abs().max()) for each in selected)
    maps = [_map(result, each, style, largest) for each in selected]
    maps += [_map(result, each, style) for each in _followed(result, selection)]
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
        formats=FORMATS,
    )


def describe(result: ForwardPass, selection: MapSelection) -> str:
    """Which map is shown, as a sentence."""
    layer, head, patch = result.locate(selection)
    query = "the patches, on average" if result.record.pool == "mean" else "[CLS]"
    query = query if patch is None else f"the patch in row {patch[0]}, column {patch[1]}"
    heads = f"mean of {result.heads} heads" if head is None else f"head {head} (of 0 to {result.heads - 1})"
    return f"Attention of {query}: layer {layer} (of 0 to {len(result.record.layers) - 1}), {heads}."


def _outline(mask: np.ndarray) -> dict[str, Any]:
    """The edges of the object's mask as an SVG path."""
    padded = np.pad(mask, 1)
    across = [f"M{x} {y}h1" for y, x in zip(*np.nonzero(padded[:-1, 1:-1] != padded[1:, 1:-1]), strict=True)]
    down = [f"M{x} {y}v1" for y, x in zip(*np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:]), strict=True)]
    return {"height": mask.shape[0], "width": mask.shape[1], "path": "".join(across + down)}


def _map(result: ForwardPass, shown: Shown, style: OverlayStyle, largest: float | None = None) -> dict[str, Any]:
    """A map over the image, its colour scale, its values, and its description in words."""
    values = shown.values
    kept = None if style.mass >= 1 else mass_mask(values, style.mass)
    look = {"strength": style.strength, "colours": style.colours, "kept": kept}
    image, scale = blend(result.image.pixels, values, most=largest, uniform=shown.uniform or 0.0, **look)
    row, column = divmod(int(values.argmax()), values.shape[1])
    low, high = (float(limit or 0.0) for limit in scale.get_clim())
    largest_at = f"largest, {float(values.max()):.3f}, in row {row}, column {column}"
    return {
        "name": shown.name,
        "meaning": shown.meaning,
        "low": _number(low),
        "high": _number(high),
        "uniform": None if shown.uniform is None else _number(shown.uniform),
        "mark": 100 * ((shown.uniform or 0) - low) / (high - low),
        "patches": [[_number(value) for value in line] for line in values.tolist()],
        "image": inline((image.clip(0, 1) * 255).round().astype(np.uint8)),
        "alt": f"{shown.name}, {shown.meaning}: {largest_at}",
        "colours": [to_hex(colour) for colour in colormaps[scale.get_cmap().name](np.linspace(0, 1, 8))],
    }


def _followed(result: ForwardPass, selection: MapSelection) -> list[Shown]:
    """As :meth:`ForwardPass.followed`; without attribution where the model lacks the class."""
    lacks = selection.target is not None and selection.target not in result.model.classes
    return result.followed(replace(selection, method=None) if lacks else selection)


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def download(passes: Sequence[ForwardPass], selection: MapSelection, form: str) -> bytes:
    """What is shown as a file: a figure, or every map's values, named by model and map, as npz or as lines of CSV."""
    if form in ("png", "svg"):
        made = draw_figure(passes, selection)
        return to_png(made) if form == "png" else to_svg(made)
    shown = [
        (each.model.name, part) for each in passes for part in (*each.maps(selection), *_followed(each, selection))
    ]
    buffer = io.BytesIO()
    if form == "npz":
        arrays: dict[str, Any] = {f"{model}, {part.name}": part.values.numpy() for model, part in shown}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()
    return to_csv(
        [
            {"model": model, "map": part.name, "row": row, "column": column, "value": value}
            for model, part in shown
            for row, values in enumerate(part.values.tolist())
            for column, value in enumerate(values)
        ]
    )


def draw_figure(passes: Sequence[ForwardPass], selection: MapSelection, *, theme: Theme = LIGHT) -> Figure:
    """A row for each model's forward pass of an image: the image, and its maps with their scales."""
    maps = [[*result.maps(selection), *_followed(result, selection)] for result in passes]
    columns = 1 + max(len(shown) for shown in maps)
    made = figure(theme, 2.9 * columns, 3.5 * len(passes) + 0.3)
    rows = made.subfigures(len(passes), 1, squeeze=False)[:, 0]
    for result, part, shown in zip(passes, rows, maps, strict=True):
        part.set_facecolor(theme.paper)
        best = ", ".join(f"{name} {percent(value, 1)}" for name, value in result.probabilities[:2])
        title = f"{result.model.name}: {best}" if best else result.model.name
        part.suptitle(f"{title}\n{describe(result, selection)}", x=0.01, ha="left", fontsize=11, color=theme.ink)
        axes = part.subplots(1, columns)
        for each in axes:
            each.axis("off")
        axes[0].imshow(result.image.pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes[0].set_title(result.image.label or "image", fontsize=10.5, color=theme.ink, loc="left")
        largest = max(float(part.values.abs().max()) for part in result.maps(selection))
        for place, (each, (name, meaning, values, uniform)) in enumerate(zip(axes[1:], shown, strict=False)):
            most = largest if place < len(result.maps(selection)) else None  # these share a scale, as on the page
            picture, scale = blend(result.image.pixels, values, most=most, uniform=uniform or 0.0)
            each.imshow(picture, interpolation="nearest")
            bar = part.colorbar(scale, ax=each, fraction=0.046, pad=0.03)
            bar.ax.tick_params(labelsize=8, colors=theme.ink)
            if uniform is not None:
                mark_level(bar, uniform)
            text = f"{name}, {meaning}" if meaning.startswith("for ") else name
            each.set_title(text, fontsize=10.5, color=theme.ink, loc="left")
    return made
