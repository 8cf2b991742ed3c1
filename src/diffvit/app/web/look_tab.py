"""The tab that looks at one picture with one model or two, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio

from diffvit.app.desk import Chosen, Desk
from diffvit.app.explorer import Look, Question
from diffvit.app.figure import draw_looks
from diffvit.app.panels import COLOURS, Paint, panels
from diffvit.app.web.answers import KEEP_NEWEST, QUICK, answering, numbered
from diffvit.app.web.picker import picker
from diffvit.app.web.upload_zone import upload_zone, uploaded
from diffvit.attention.rollout import FUSIONS, SIGNS

NONE = "none"
_MODEL_ASKS, _PATCH_ASKS = "the model", "a patch"
_CLICK = """
element.addEventListener('click', event => {
  const picture = event.target.closest('[data-ask]');
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  trigger('click', {down: (event.clientY - box.top) / box.height, across: (event.clientX - box.left) / box.width});
});
"""
_EMPTY = '<p class="dv-said">Choose a picture on the left.</p>'


@dataclass(frozen=True)
class Asked:
    """The values of the controls, in their order."""

    chosen: Chosen
    first: str
    second: str
    layer: float
    head: float
    mean: bool
    who: str
    row: float
    column: float
    strength: float
    colours: str
    mass: float
    fusion: str
    sign: str
    discard: float
    residual: float

    def question(self, grid: tuple[int, int]) -> Question:
        """What is asked; row and column count on the first model's grid, and stand for a place on the picture."""
        spot = None
        if self.who == _PATCH_ASKS:
            spot = ((self.row - 0.5) / grid[0], (self.column - 0.5) / grid[1])
        rules = {"fusion": self.fusion, "sign": self.sign, "discard": self.discard, "residual": self.residual}
        return Question(int(self.layer) - 1, None if self.mean else int(self.head) - 1, spot, rules)

    def paint(self) -> Paint:
        """How it is drawn."""
        return Paint(self.strength, self.colours if self.colours in COLOURS else COLOURS[0], self.mass)


def draw(desk: Desk, *values: Any) -> str:
    """Both models' panels as HTML.

    Args:
        desk: models and pictures.
        values: of the controls, see :class:`Asked`.

    Raises:
        DiffvitError: no such model or picture, or rollout rules without a meaning.
    """
    asked = Asked(*values)
    names = [asked.first] + ([asked.second] if asked.second not in (NONE, asked.first) else [])
    looks = [desk.look(asked.chosen, name) for name in names]
    question = asked.question(looks[0].record.grid)
    # Of the names, not of the looks: an offer that nobody takes holds no maps.
    link = desk.offer_figure(lambda: draw_looks([desk.look(asked.chosen, name) for name in names], question))
    parts = [panels(look, question, asked.paint(), link=link if look is looks[-1] else "") for look in looks]
    return f'<div class="dv-looks">{"".join(parts)}</div>'


def build(desk: Desk, chosen: gradio.State, page: gradio.Blocks) -> None:
    """The tab's controls, and what happens when they are used."""
    first, second = desk.start[1:]
    names = [offer.name for offer in desk.models.lookers]
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=310):
            one = gradio.Dropdown(names, value=first, label="Model", info="Who looks at the picture.")
            two = gradio.Dropdown(
                [NONE, *names], value=second or NONE, label="Beside it", info="A second model to compare with, or none."
            )
            upload = upload_zone()
            picked = picker(desk, one, two, chosen)
        with gradio.Column(scale=3, min_width=330):
            with gradio.Row():
                layer, head, mean = _where([desk.look(desk.start[0], name) for name in (first, second) if name])
            view = gradio.HTML(_EMPTY, js_on_load=_CLICK + KEEP_NEWEST, elem_id="dv-view")
            said = gradio.HTML("")
            who, row, column = _who(desk.look(desk.start[0], first))
            drawing, rules = _drawing(), _rollout()
    dials = [layer, head, mean, who, row, column, *drawing, *rules]
    again: dict[str, Any] = {
        "fn": numbered(answering(desk, 1)(lambda *values: draw(desk, *values))),
        "inputs": [chosen, one, two, *dials],
        **QUICK,
    }
    again |= {"outputs": [view, said]}
    for dial in dials:
        dial.input(**again, trigger_mode="always_last")
    page.load(**again)
    picked.then(**again)
    for model in (one, two):
        fit = answering(desk, 4)(lambda *values: _fit(desk, *values))
        model.input(fit, [chosen, one, two], [layer, head, row, column, said], **QUICK).then(**again)

    def clicked(chosen: Chosen, name: str, event: gradio.EventData) -> tuple[str, int, int]:
        """The patch under the pointer asks."""
        rows, columns = desk.look(chosen, name).record.grid
        down, across = (min(max(float(share), 0.0), 0.999) for share in (event.down, event.across))
        return _PATCH_ASKS, int(down * rows) + 1, int(across * columns) + 1

    upload.upload(uploaded, None, [chosen], **QUICK).then(**again)
    view.click(answering(desk, 3)(clicked), [chosen, one], [who, row, column, said], **QUICK).then(**again)


def _fit(desk: Desk, chosen: Chosen, first: str, second: str) -> tuple[Any, ...]:
    """Dials that reach as far as the models do."""
    looks = [desk.look(chosen, name) for name in (first, second) if name != NONE]
    rows, columns = looks[0].record.grid
    layers, heads = max(len(look.record.layers) for look in looks), max(look.heads for look in looks)
    return tuple(gradio.update(**reach(count)) for count in (layers, heads, rows, columns))


def reach(count: int) -> dict[str, Any]:
    """How far a dial goes that counts from 1. One without a choice is not shown: a slider needs two places."""
    return {"maximum": max(2, count), "visible": count > 1}


def _where(looks: Sequence[Look]) -> tuple[gradio.Slider, gradio.Slider, gradio.Checkbox]:
    layers, heads = max(len(look.record.layers) for look in looks), max(look.heads for look in looks)
    info = "Which block's attention; 1 is nearest to the picture."
    layer = gradio.Slider(1, value=layers, step=1, label="Layer", info=info, **reach(layers))
    info = "Which head, where they are not averaged."
    head = gradio.Slider(1, value=1, step=1, label="Head", info=info, **reach(heads))
    mean = gradio.Checkbox(True, label="Average the heads", info="One map for the whole layer.")
    return layer, head, mean


def _who(look: Look) -> tuple[gradio.Radio, gradio.Slider, gradio.Slider]:
    rows, columns = look.record.grid
    with gradio.Row():
        who = gradio.Radio(
            [_MODEL_ASKS, _PATCH_ASKS],
            value=_MODEL_ASKS,
            label="Who asks",
            info="The model: what its answer is read from, [CLS] or the mean. A patch: click one on the picture.",
        )
        info = "Of the patch that asks, from the top."
        row = gradio.Slider(1, value=1, step=1, label="Row", info=info, **reach(rows))
        info = "Of the patch, from the left."
        column = gradio.Slider(1, value=1, step=1, label="Column", info=info, **reach(columns))
    return who, row, column


def _drawing() -> tuple[gradio.Slider, gradio.Dropdown, gradio.Slider]:
    with gradio.Accordion("How it is drawn", open=False), gradio.Row():
        strength = gradio.Slider(0, 1.2, value=1, step=0.05, label="Overlay", info="Strength of the colours.")
        colours = gradio.Dropdown(
            list(COLOURS), value=COLOURS[0], label="Colour map", info="Maps with negative entries stay blue and red."
        )
        mass = gradio.Slider(
            0.05, 1, value=1, step=0.05, label="Threshold", info="Colour the fewest patches with this share of the map."
        )
    return strength, colours, mass


def _rollout() -> tuple[gradio.Radio, gradio.Radio, gradio.Slider, gradio.Slider]:
    with gradio.Accordion("How attention is followed (rollout)", open=False):
        with gradio.Row():
            fusion = gradio.Radio(list(FUSIONS), value="mean", label="Fusion", info="How heads become one map.")
            sign = gradio.Radio(
                list(SIGNS),
                value="clamp",
                label="Sign",
                info="What a differential map stands for: see docs/attention.md.",
            )
        with gradio.Row():
            discard = gradio.Slider(0, 0.95, value=0, step=0.05, label="Discard", info="Lowest share to leave out.")
            residual = gradio.Slider(0, 0.95, value=0.5, step=0.05, label="Residual", info="Weight of the identity.")
    return fusion, sign, discard, residual
