"""The tab that draws an object among clutter, whose place is known, and asks whether attention stays on it."""

from __future__ import annotations

from typing import Any

import gradio
import torch
from torch import Tensor

from diffvit.app.desk import Desk, scene
from diffvit.app.explorer import Look, Question
from diffvit.app.panels import Paint, html_table, panels
from diffvit.app.web.answers import KEEP_NEWEST, QUICK, answering, numbered
from diffvit.app.web.look_tab import NONE
from diffvit.attention.metrics import coverage
from diffvit.attention.rollout import rollout
from diffvit.attention.scores import mask_scores
from diffvit.attention.subject import Picture, fit
from diffvit.data.shapes import CLASSES
from diffvit.reporting.tables import Table, percent

_FIRST, _SECOND = "shapes-vit", "shapes-diffvit"
_SAID = (
    "Pointing: does the highest patch lie on the object. Mass: the share of the map's positive part on it; a map that "
    "looks at nothing gets the object's share of the picture. Overlap: of the object and the fewest patches that hold "
    "half of the mass (intersection over union)."
)


def build(desk: Desk, page: gradio.Blocks) -> None:
    """The tab."""
    names = [offer.name for offer in desk.models.classifiers]
    deepest = max(offer.depth for offer in desk.models.classifiers)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=300):
            first = gradio.Dropdown(names, value=_FIRST, label="Model", info="Trained on shapes, to make sense here.")
            second = gradio.Dropdown([NONE, *names], value=_SECOND, label="Beside it", info="A second model, or none.")
            label = gradio.Dropdown(list(CLASSES), value=CLASSES[5], label="Object", info="What is to be recognised.")
            number = gradio.Slider(0, 999, value=3, step=1, label="Picture", info="Another number, another picture.")
            clutter = gradio.Slider(
                0, 1, value=0.3, step=0.05, label="Clutter", info="Share of the background that distractors cover."
            )
            noise = gradio.Slider(0, 0.5, value=0.1, step=0.02, label="Noise", info="Of the pixels, of full scale.")
            layer = gradio.Slider(1, deepest, value=4, step=1, label="Layer", info="Whose map is shown and scored.")
        with gradio.Column(scale=3, min_width=330):
            view = gradio.HTML("", js_on_load=KEEP_NEWEST, elem_id="dv-shapes")
            said = gradio.HTML("")
    controls = [first, second, label, number, clutter, noise, layer]
    answer: dict[str, Any] = {
        "fn": numbered(answering(desk, 1)(lambda *values: draw(desk, *values))),
        **{"inputs": controls, "outputs": [view, said], **QUICK},
    }
    for control in controls:
        control.input(**answer, trigger_mode="always_last")
    page.load(**answer)


def draw(
    desk: Desk, first: str, second: str, label: str, number: float, clutter: float, noise: float, layer: float
) -> str:
    """The picture, both models' maps and their scores, as HTML.

    Raises:
        DiffvitError: no such model, or a dial out of range.
    """
    index = int(number) * len(CLASSES) + (CLASSES.index(label) if label in CLASSES else 0)
    question, parts = Question(layer=int(layer) - 1), []
    for name in [first] + ([second] if second not in (NONE, first) else []):
        subject = desk.models.subject(name)
        drawn = scene(index, size=subject.side or 32, clutter=clutter, noise=noise)
        pixels = torch.from_numpy(fit(drawn.pixels.numpy(), subject, drawn.name))
        look = desk.explorer.look(subject, Picture(drawn.name, pixels, drawn.label, drawn.mask))
        assert drawn.mask is not None
        note = html_table(scores(look, question, drawn.mask), f"Scores of {name}")
        parts.append(panels(look, question, Paint(), note=note, clickable=False))
    return f'<div class="dv-looks">{"".join(parts)}</div><p class="dv-said">{_SAID}</p>'


def scores(look: Look, question: Question, mask: Tensor) -> Table:
    """How well a look's maps stay on the object; a map that looks at nothing beside them.

    Args:
        look: of the picture.
        question: which layer.
        mask: where the object is, (height, width).
    """
    at = look.layer(question)
    heats = {f"layer {at + 1}": look.record.to_patches(at).mean(dim=1), "rollout": rollout(look.record)}
    if look.record.differential:
        heats[f"layer {at + 1}, A1 alone"] = look.record.to_patches(at, "positive").mean(dim=1)
        heats["rollout, A1 alone"] = rollout(look.record, sign="positive")
    rows = []
    for name, heat in heats.items():
        found = {key: float(value[0]) for key, value in mask_scores(heat, mask[None]).items()}
        points = "yes" if found["pointing"] == 1 else "no" if found["pointing"] == 0 else "in part"
        rows.append([name, points, percent(found["mass"], 1), percent(found["iou"], 1)])
    share = float(coverage(mask[None], look.record.grid).mean())
    rows.append(["a map that looks at nothing", "–", percent(share, 1), "–"])
    return Table(["Map", "Points at the object", "Mass on it", "Overlap"], rows)
