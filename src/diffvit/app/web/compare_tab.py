"""The tab that puts finished runs side by side: figures, curves, lambda, confusion, from their run folders."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from html import escape

import gradio

from diffvit.app.desk import Desk
from diffvit.app.kept import Kept
from diffvit.app.panels import html_table
from diffvit.app.web.answers import answering
from diffvit.errors import ConfigError
from diffvit.reporting import plots, tables
from diffvit.reporting.arms import Arm, arms, statements
from diffvit.reporting.rows import read_run
from diffvit.reporting.style import DARK, LIGHT

MOST = 6  # runs at a time
HOW = (
    "No run of your own is here yet. Make two, and start the page again: <code>diffvit train --out runs/vit</code>, "
    "<code>diffvit train --model.attention differential --out runs/diffvit</code>, <code>diffvit app</code>. "
    "A few minutes suffice for a first look: <code>make demo</code>. Until then the tabs Look, Zero-shot and Shapes "
    "show the packaged models."
)


def build(desk: Desk) -> None:
    """The tab."""
    names = [offer.name for offer in desk.models.runs]
    if not names:
        gradio.HTML(f'<p class="dv-said">{HOW}</p>')
        return
    kept: Kept[str] = Kept(16)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=260):
            runs = gradio.CheckboxGroup(
                names,
                value=names[:2],
                label="Runs",
                info=f"Up to {MOST}. Runs that differ in the seed alone are one arm.",
            )
            button = gradio.Button("Compare", variant="primary")
            said = gradio.HTML("")
        with gradio.Column(scale=3, min_width=330):
            view = gradio.HTML('<p class="dv-said">Choose runs and press Compare.</p>', elem_id="dv-compare")

    def compare(chosen: list[str]) -> str:
        folders = [str(desk.models.offer(name).folder) for name in chosen]
        return kept.get(tuple(folders), lambda: compared(folders))

    button.click(answering(desk, 1)(compare), [runs], [view, said], api_visibility="private")


def compared(folders: Sequence[str]) -> str:
    """Runs side by side as HTML.

    Raises:
        ConfigError: none, or too many.
        InputError: a run is damaged.
    """
    if not 1 <= len(folders) <= MOST:
        raise ConfigError("runs", f"choose 1 to {MOST} (found {len(folders)})")
    grouped = arms([read_run(folder) for folder in folders])
    known = tables.data_notes(record.row for arm in grouped for record in arm.records)
    notes = [f"<p class=dv-said><b>{escape(name)}.</b> {escape(note)}</p>" for name, note in known]
    claims = [f"<p>{escape(line)}</p>" for line in statements(grouped)]
    return "".join([*notes, *claims, html_table(tables.side_by_side(grouped), "Figures"), _plots(grouped)])


def _plots(grouped: Sequence[Arm]) -> str:
    labels = ", ".join(arm.label for arm in grouped)
    parts = [_both(f"Loss and accuracy against the epoch: {labels}", partial(plots.curves, grouped))]
    for arm in grouped:
        if any(row.get("lambda") for row in arm.records[0].epochs):
            parts.append(_both(f"Lambda of every block against the epoch: {arm.label}", partial(plots.lambdas, arm)))
    for arm in grouped:
        if arm.confusion:
            parts.append(_both(f"Confusion matrix: {arm.label}", partial(plots.confusion, arm)))
    return f'<div class="dv-plots">{"".join(parts)}</div>'


def _both(alt: str, draw: Callable[..., bytes]) -> str:
    """A plot on white and on dark; the style sheet shows the one that suits the page."""
    images = [
        f'<img class="dv-{kind}" alt="{escape(alt)}" src="data:image/png;base64,'
        f'{base64.b64encode(draw(theme=theme)).decode()}">'
        for kind, theme in (("light", LIGHT), ("dark", DARK))
    ]
    return f"<figure>{''.join(images)}<figcaption>{escape(alt)}</figcaption></figure>"
