"""How every plot looks: colours that colour-blind readers can tell apart, on white and on dark; no global state."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STAMP = "diffvit-rows"  # the PNG text entry that says which rows a plot was made from


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


def plain(text: str) -> str:
    """Somebody else's words (a file's name, a class) as matplotlib draws them: a dollar is no formula."""
    return text.replace("$", r"\$")


def to_png(made: Figure, stamp: str = "") -> bytes:
    """The figure as PNG bytes, the same for the same input; ``stamp`` is kept inside the file."""
    buffer = io.BytesIO()
    metadata = {"Software": None, **({STAMP: stamp} if stamp else {})}
    made.savefig(buffer, format="png", facecolor=made.get_facecolor(), metadata=metadata)
    return buffer.getvalue()


def to_svg(made: Figure) -> bytes:
    """The figure as SVG bytes, the same for the same input."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "diffvit"}):
        made.savefig(buffer, format="svg", facecolor=made.get_facecolor(), metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
