"""A forward pass as HTML (image, maps, rollout, probabilities) and as a figure in a file; small parts of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from diffvit.app.explorer import ForwardPass, MapSelection
from diffvit.attention.metrics import mass_mask
from diffvit.attention.overlay import blend, draw_overlay
from diffvit.reporting.style import LIGHT, Theme, figure, plain, to_png
from diffvit.reporting.tables import Table, percent

COLOURS = ("inferno", "viridis", "cividis", "Blues")
_TOP = 5  # classes that are listed
_COLUMNS = 5  # of a figure: the image, three maps of a differential head, rollout
_MEANINGS = ("weights", "subtracted", "effective")


@dataclass(frozen=True)
class OverlayStyle:
    """How a map is drawn over the image.

    Args:
        strength: opacity of the colours, 0 to 1.
        colours: one of :data:`COLOURS`, for maps without negative entries.
        mass: colour the fewest patches that hold this share of the positive part; 1 colours all patches.
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
    """HTML of one forward pass; images are inside it as data URIs.

    The three maps of a differential head share a colour scale: the third is visibly the first minus the second.

    Args:
        result: the forward pass.
        selection: which map.
        style: how it is drawn.
        note: HTML below the images.
        link: address of the figure to download; empty for none.
        clickable: whether a click on the image selects the query patch.
    """
    maps = result.maps(selection)
    largest = max(float(values.abs().max()) for values in maps.values())
    figures = [_image(result, selection, clickable)]
    for (name, values), meaning in zip(maps.items(), _MEANINGS, strict=False):
        figures.append(_map(result, values, f"{name}, {meaning}", style, largest))
    figures.append(_map(result, result.rollout(selection), "rollout, through all layers", style))
    probabilities = '<p class="dv-text">This model does not classify.</p>'
    if result.probabilities:
        probabilities = bars(result.probabilities[:_TOP], result.image.label)
    if link:
        link = f'<a class="dv-download" href="{escape(link)}" download>Download this as a figure (PNG)</a>'
    content = f'{probabilities}<div class="dv-pictures">{"".join(figures)}</div>{note}{link}'
    return section(result.model.name, describe(result, selection), content)


def describe(result: ForwardPass, selection: MapSelection) -> str:
    """Which map is shown, as a sentence."""
    layer, head, patch = result.locate(selection)
    query = "the patches, on average" if result.record.pool == "mean" else "[CLS]"
    query = query if patch is None else f"the patch in row {patch[0] + 1}, column {patch[1] + 1}"
    heads = f"mean of {result.heads} heads" if head is None else f"head {head + 1} of {result.heads}"
    return f"Attention of {query}: layer {layer + 1} of {len(result.record.layers)}, {heads}."


def _image(result: ForwardPass, selection: MapSelection, clickable: bool) -> str:
    rows, columns = result.record.grid
    label, patch, marks = escape(result.image.label), result.locate(selection)[2], ""
    if patch is not None:
        place = f"top:{100 * patch[0] / rows:.4g}%;left:{100 * patch[1] / columns:.4g}%"
        marks = f'<i class="dv-query" style="{place};height:{100 / rows:.4g}%;width:{100 / columns:.4g}%"></i>'
    if result.image.mask is not None:
        marks += _outline(result.image.mask.numpy())
    source = inline(result.image.pixels.permute(1, 2, 0).numpy())
    truth = f", true class {label}" if label else ""
    alt = f"The image{truth}, as {escape(result.model.name)} sees it, in {rows} x {columns} patches"
    box, hint = 'class="dv-still"', ""
    if clickable:
        box, hint = 'class="dv-click" data-ask="patch" title="Click a patch to make it the query"', "<br>click a patch"
    return (
        f'<figure><div {box}><img src="{source}" alt="{alt}">{marks}</div>'
        f"<figcaption><b>image</b> {label}{hint}</figcaption></figure>"
    )


def _outline(mask: np.ndarray) -> str:
    """The edges of the object's mask as an SVG over the image."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    across = [f"M{x} {y}h1" for y, x in zip(*np.nonzero(padded[:-1, 1:-1] != padded[1:, 1:-1]), strict=True)]
    down = [f"M{x} {y}v1" for y, x in zip(*np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:]), strict=True)]
    return (
        f'<svg class="dv-outline" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path d="{"".join(across + down)}"/></svg>'
    )


def _map(
    result: ForwardPass,
    values: Float[Tensor, "rows columns"],
    caption: str,
    style: OverlayStyle,
    largest: float | None = None,
) -> str:
    kept = None if style.mass >= 1 else mass_mask(values, style.mass)
    image, scale = blend(
        result.image.pixels, values, strength=style.strength, colours=style.colours, most=largest, kept=kept
    )
    row, column = divmod(int(values.argmax()), values.shape[1])
    alt = escape(f"{caption}: largest, {float(values.max()):.3f}, in row {row + 1}, column {column + 1}")
    stops = ", ".join(to_hex(colour) for colour in colormaps[scale.get_cmap().name](np.linspace(0, 1, 8)))
    low, high = (f"{limit:.2g}".replace("-", "\N{MINUS SIGN}") for limit in (scale.norm.vmin, scale.norm.vmax))
    name, _, meaning = caption.partition(", ")
    return (
        f'<figure><img src="{inline((image.clip(0, 1) * 255).round().astype(np.uint8))}" alt="{alt}">'
        f"<figcaption><b>{escape(name)}</b> {escape(meaning)}"
        f'<span class="dv-scale"><span>{low}</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<span>{high}</span></span></figcaption></figure>"
    )


def section(title: str, text: str, content: str) -> str:
    """A box with a title, a sentence and HTML content."""
    return (
        f'<section class="dv-model" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f'<p class="dv-text">{escape(text)}</p>{content}</section>'
    )


def bars(probabilities: Sequence[tuple[str, float]], truth: str = "") -> str:
    """Probabilities as a list with bars; the true class, where it is known, is marked."""
    lines = [
        f'<li{" class=dv-true" if name == truth else ""}><span class="dv-name">{escape(name)}'
        f'{" (true)" if name == truth else ""}</span><span class="dv-bar" aria-hidden="true">'
        f'<i style="width:{100 * value:.3g}%"></i></span><span class="dv-number">{percent(value, 1)}</span></li>'
        for name, value in probabilities
    ]
    return f'<ol class="dv-probabilities">{"".join(lines)}</ol>'


def inline(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as a data URI of its own size; the browser scales it."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def alert(text: str) -> str:
    """An error line as HTML; empty without text."""
    return f'<p class="dv-fault" role="alert">{escape(text)}</p>' if text else ""


def html_table(table: Table, caption: str) -> str:
    """A table as HTML, in a box that scrolls if it is too wide."""
    head = "".join(f"<th scope=col>{escape(name) or 'Figure'}</th>" for name in table.columns)
    body = "".join(
        f"<tr><th scope=row>{escape(cells[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells[1:])}</tr>"
        for cells in table.rows
    )
    return (
        f'<div class="dv-table" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def draw_figure(passes: Sequence[ForwardPass], selection: MapSelection, *, theme: Theme = LIGHT) -> bytes:
    """PNG with a row for each forward pass: the image, its maps with their scales, and rollout.

    Args:
        passes: of one image through one or more models.
        selection: which map.
        theme: colours.
    """
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
            bar = part.colorbar(draw_overlay(each, result.image.pixels, values), ax=each, fraction=0.046, pad=0.03)
            bar.ax.tick_params(labelsize=8, colors=theme.ink)
            each.set_title(name, fontsize=10.5, color=theme.ink, loc="left")
    return to_png(made)
