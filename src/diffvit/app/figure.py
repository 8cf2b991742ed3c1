"""What the page shows as one figure in a file."""

from __future__ import annotations

from collections.abc import Sequence

from diffvit.app.explorer import Look, Question
from diffvit.attention.overlay import draw_overlay
from diffvit.reporting.style import LIGHT, Theme, figure, plain, to_png
from diffvit.reporting.tables import percent

_COLUMNS = 5  # the picture, three maps of a differential head, rollout


def draw_looks(looks: Sequence[Look], question: Question, *, theme: Theme = LIGHT) -> bytes:
    """A row for each model: the picture, its maps with their scales, and rollout; PNG.

    Args:
        looks: of one picture.
        question: what is asked of each.
        theme: colours.
    """
    from diffvit.app.panels import said

    made = figure(theme, 2.9 * _COLUMNS, 3.5 * len(looks) + 0.3)
    rows = made.subfigures(len(looks), 1, squeeze=False)[:, 0]
    for look, part in zip(looks, rows, strict=True):
        part.set_facecolor(theme.paper)
        best = ", ".join(f"{name} {percent(chance, 1)}" for name, chance in look.chances[:2])
        title = f"{look.subject.name}: {best}" if best else look.subject.name
        part.suptitle(plain(f"{title}\n{said(look, question)}"), x=0.01, ha="left", fontsize=11, color=theme.ink)
        panels = part.subplots(1, _COLUMNS)
        heats = {**look.maps(question), "rollout": look.rolled(question)}
        for axes in panels:
            axes.axis("off")
        panels[0].imshow(look.picture.pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        panels[0].set_title(plain(look.picture.label or "the picture"), fontsize=10.5, color=theme.ink, loc="left")
        for axes, (name, heat) in zip(panels[1:], heats.items(), strict=False):
            bar = part.colorbar(draw_overlay(axes, look.picture.pixels, heat), ax=axes, fraction=0.046, pad=0.03)
            bar.ax.tick_params(labelsize=8, colors=theme.ink)
            axes.set_title(name, fontsize=10.5, color=theme.ink, loc="left")
    return to_png(made)
