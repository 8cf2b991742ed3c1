"""The style of all plots: colours that colour-blind readers can tell apart, on white and on dark; no global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, UnidentifiedImageError

STAMP = "diffvit-rows"  # the PNG text entry that says which rows a plot was made from

_FONT = "DejaVu Sans"  # matplotlib's own
_PACKAGES = "fonts-noto-core, fonts-noto-cjk for Chinese, Japanese and Korean, fonts-symbola for emoji"


@dataclass(frozen=True)
class Theme:
    """Colours of one look. ``series`` follows Okabe and Ito's palette, lightened on dark."""

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]
    heat: str
    first_shade: float
    last_shade: float


LIGHT = Theme(
    paper="#ffffff",
    ink="#1d2733",
    faint="#d5dbe2",
    series=("#0072b2", "#d55e00", "#009e73", "#b35c93", "#8a6d00", "#4aa3d6", "#5b6570"),
    heat="Blues",
    first_shade=0.0,
    last_shade=0.82,
)
DARK = Theme(
    paper="#161b22",
    ink="#e2e8ef",
    faint="#39424e",
    series=("#56b4e9", "#f0924a", "#2fc79b", "#e39bc4", "#e6c34a", "#9ccbf0", "#aab4bf"),
    heat="cividis",
    first_shade=0.35,
    last_shade=1.0,
)


def colour(theme: Theme, index: int) -> str:
    """Colour of a series; they repeat after the palette's end."""
    return theme.series[index % len(theme.series)]


def figure(theme: Theme, width: float, height: float) -> Figure:
    """An empty figure, inches, with its own Agg canvas."""
    made = Figure(figsize=(width, height), dpi=120, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(made)
    return made


def dress(axes: Axes, theme: Theme, *, title: str, x: str, y: str, grid: bool = True) -> None:
    """Title, axis titles, colours and a quiet grid."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=13, loc="left", pad=10)
    axes.set_xlabel(x, color=theme.ink, fontsize=11.5)
    axes.set_ylabel(y, color=theme.ink, fontsize=11.5)
    axes.tick_params(colors=theme.ink, labelsize=11, length=3)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))
    if grid:
        axes.grid(True, color=theme.faint, linewidth=0.7)
        axes.set_axisbelow(True)


def to_png(made: Figure, stamp: str = "") -> bytes:
    """The figure as PNG bytes, the same for the same input; ``stamp`` is kept inside the file."""
    buffer = io.BytesIO()
    metadata = {"Software": None, **({STAMP: stamp} if stamp else {})}
    with all_letters(made):  # savefig would draw everything twice, the first time to find the places
        FigureCanvasAgg(made).print_png(buffer, metadata=metadata)
    return buffer.getvalue()


def stamp_of(plot: Path | io.BytesIO) -> str | None:
    """Which rows a plot was made from; None where it is missing, damaged or does not say."""
    try:
        with Image.open(plot, formats=["PNG"]) as image:
            return image.info.get(STAMP)
    except (OSError, UnidentifiedImageError):
        return None


def to_svg(made: Figure) -> bytes:
    """The figure as SVG bytes, the same for the same input."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "diffvit"}), all_letters(made):
        made.savefig(buffer, format="svg", facecolor=made.get_facecolor(), metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def all_letters(made: Figure) -> Iterator[None]:
    """Use another installed font for texts with letters that matplotlib's own font lacks, while drawing inside.

    A dollar, as a file's or a class's name may have it, begins no formula but in the labels of logarithmic axes. Where
    there is no font, boxes are drawn, and a warning names packages with fonts.
    """
    for axes in made.axes:  # tick labels get their text when they are asked for
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()
    known = _letters(font_manager.findfont(_FONT))
    lacking = {text: frozenset(map(ord, text.get_text())) - known for text in made.findobj(Text)}  # pyright: ignore[reportAttributeAccessIssue]
    for text in lacking:
        text.set_parse_math("mathdefault" in text.get_text())  # pyright: ignore[reportAttributeAccessIssue]
    wanted = frozenset(code for codes in lacking.values() for code in codes if chr(code).isprintable())
    if not wanted:
        yield
        return
    families = fonts_for(wanted)
    for text, codes in lacking.items():
        if codes & wanted:
            text.set_fontfamily([_FONT, *families])  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


@lru_cache
def fonts_for(wanted: frozenset[int]) -> tuple[str, ...]:
    """Families of installed fonts that together have these code points, sans-serif first; warns of missing ones."""
    rest, families = set(wanted), []
    entries = [entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith("Last Resort")]
    for entry in sorted(
        entries, key=lambda e: (e.style != "normal", e.weight not in (400, "normal"), "Sans" not in e.name)
    ):
        if rest and (found := rest & _letters(entry.fname)):
            rest -= found
            families.append(entry.name)
    if rest:
        some = " ".join(chr(code) for code in sorted(rest)[:10])
        why = f"no installed font has {some}: plots have boxes in their place"
        warnings.warn(f"{why}. Install one (Debian: {_PACKAGES}) and draw again", stacklevel=1)
    return tuple(families)


@lru_cache
def _letters(path: str) -> frozenset[int]:
    """The code points of a font file; none of one that cannot be read or, as coloured emoji, cannot be drawn."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
