"""A look as HTML: the picture, its maps over it, rollout, and the model's answer. Images travel inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from diffvit.app.explorer import Look, Question
from diffvit.attention.metrics import mass_mask
from diffvit.attention.overlay import blend
from diffvit.reporting.tables import Table, percent

COLOURS = ("inferno", "viridis", "cividis", "Blues")
_CHANCES = 5  # classes that are listed
_STOPS = 8  # of a colour scale


@dataclass(frozen=True)
class Paint:
    """How heat is drawn.

    Args:
        strength: of the colours over the picture, 0 to 1.
        colours: one of :data:`COLOURS`, for heat without negative entries.
        mass: colour the fewest patches that hold this share of the positive heat; 1 colours all.
    """

    strength: float = 1.0
    colours: str = COLOURS[0]
    mass: float = 1.0


def panels(
    look: Look, question: Question, paint: Paint, *, note: str = "", link: str = "", clickable: bool = True
) -> str:
    """Everything about one model and one picture.

    Args:
        look: what the model makes of the picture.
        question: what is asked.
        paint: how heat is drawn.
        note: HTML under the pictures.
        link: where the figure can be had as a file; none without.
        clickable: whether a patch can be clicked.
    """
    name = escape(look.subject.name)
    figures = [_picture(look, question, clickable), *_maps(look, question, paint)]
    figures.append(_figure(look, look.rolled(question), "rollout", "all layers followed", paint))
    download = (
        f'<a class="dv-download" href="{escape(link)}" download>Download this as a figure (PNG)</a>' if link else ""
    )
    return (
        f'<section class="dv-model" aria-label="{name}"><h2>{name}</h2>'
        f'<p class="dv-said">{escape(said(look, question))}</p>{_chances(look)}'
        f'<div class="dv-pictures">{"".join(figures)}</div>{note}{download}</section>'
    )


def said(look: Look, question: Question) -> str:
    """Whose maps these are, in words."""
    head, patch = look.head(question), look.patch(question)
    who = "each patch, on average," if look.record.pool == "mean" else "[CLS]"
    who = who if patch is None else f"the patch in row {patch[0] + 1}, column {patch[1] + 1}"
    which = f"the mean of {look.heads} heads" if head is None else f"head {head + 1} of {look.heads}"
    return f"What {who} reads in layer {look.layer(question) + 1} of {len(look.record.layers)}, {which}."


def _picture(look: Look, question: Question, clickable: bool) -> str:
    rows, columns = look.record.grid
    truth = f", true class {escape(look.picture.label)}" if look.picture.label else ""
    patch, mark = look.patch(question), ""
    if patch is not None:
        place = f"top:{100 * patch[0] / rows:.4g}%;left:{100 * patch[1] / columns:.4g}%"
        mark = f'<i class="dv-asks" style="{place};height:{100 / rows:.4g}%;width:{100 / columns:.4g}%"></i>'
    if look.picture.mask is not None:
        mark += _outline(look)
    image = inline(look.picture.pixels.permute(1, 2, 0).numpy())
    alt = f"The picture{truth}, as {escape(look.subject.name)} sees it, in {rows} x {columns} patches"
    box, hint = 'class="dv-still"', ""
    if clickable:
        box, hint = 'class="dv-click" data-ask="patch" title="Click a patch to let it ask"', "<br>click a patch"
    return (
        f'<figure><div {box}><img src="{image}" alt="{alt}">{mark}</div>'
        f"<figcaption><b>the picture</b> {escape(look.picture.label)}{hint}</figcaption></figure>"
    )


def _outline(look: Look) -> str:
    """Where the object is: the edges of its mask, drawn over the picture."""
    assert look.picture.mask is not None
    mask = look.picture.mask.numpy()
    height, width = mask.shape
    padded = np.pad(mask, 1)
    across = [f"M{x} {y}h1" for y, x in zip(*np.nonzero(padded[:-1, 1:-1] != padded[1:, 1:-1]), strict=True)]
    down = [f"M{x} {y}v1" for y, x in zip(*np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:]), strict=True)]
    return (
        f'<svg class="dv-outline" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path d="{"".join(across + down)}"/></svg>'
    )


def _maps(look: Look, question: Question, paint: Paint) -> list[str]:
    """One scale for all three maps of a differential head, so that the third is the first minus the second."""
    maps = look.maps(question)
    most = max(float(heat.abs().max()) for heat in maps.values())
    return [_figure(look, heat, name, _MEANING[place], paint, most) for place, (name, heat) in enumerate(maps.items())]


_MEANING = ("what is read", "what is taken away", "what is left")


def _figure(
    look: Look,
    heat: Float[Tensor, "rows columns"],
    name: str,
    meaning: str,
    paint: Paint,
    most: float | None = None,
) -> str:
    kept = None if paint.mass >= 1 else mass_mask(heat, paint.mass)
    picture, scale = blend(
        look.picture.pixels, heat, strength=paint.strength, colours=paint.colours, most=most, kept=kept
    )
    low, high = scale.norm.vmin, scale.norm.vmax
    peak = int(heat.argmax())
    row, column = divmod(peak, heat.shape[1])
    alt = f"{name}, {meaning}: the most, {float(heat.max()):.3f}, in row {row + 1}, column {column + 1}"
    ramp = colormaps[scale.get_cmap().name]
    stops = ", ".join(_hex(ramp(stop / (_STOPS - 1))) for stop in range(_STOPS))
    image = inline((picture.clip(0, 1) * 255).round().astype(np.uint8))
    return (
        f'<figure><img src="{image}" alt="{escape(alt)}"><figcaption><b>{escape(name)}</b> {escape(meaning)}'
        f'<span class="dv-scale"><span>{_number(low)}</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<span>{_number(high)}</span></span></figcaption></figure>"
    )


def _chances(look: Look) -> str:
    if not look.chances:
        return '<p class="dv-said">This model does not classify.</p>'
    return bars(look.chances[:_CHANCES], look.picture.label)


def bars(chances: list[tuple[str, float]], truth: str = "") -> str:
    """Probabilities as a list with bars; the true class, where it is known, is marked."""
    lines = [
        f'<li{" class=dv-true" if name == truth else ""}><span class="dv-name">{escape(name)}'
        f'{" (true)" if name == truth else ""}</span><span class="dv-bar" aria-hidden="true">'
        f'<i style="width:{100 * chance:.3g}%"></i></span><span class="dv-number">{percent(chance, 1)}</span></li>'
        for name, chance in chances
    ]
    return f'<ol class="dv-chances">{"".join(lines)}</ol>'


def inline(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as a data URI; the browser draws its pixels as large as there is room."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: Any) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def _hex(colour: tuple[float, float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def fault(text: str) -> str:
    """A line that says what is wrong."""
    return f'<p class="dv-fault" role="alert">{escape(text)}</p>' if text else ""


def told(text: str) -> str:
    """A line that says what was done."""
    return f'<p class="dv-told" role="status">{escape(text)}</p>' if text else ""


def html_table(made: Table, caption: str) -> str:
    """A table as HTML, in a box that scrolls where it is too wide."""
    head = "".join(f"<th scope=col>{escape(name) or 'Figure'}</th>" for name in made.columns)
    body = "".join(
        f"<tr><th scope=row>{escape(cells[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells[1:])}</tr>"
        for cells in made.rows
    )
    return (
        f'<div class="dv-table" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
