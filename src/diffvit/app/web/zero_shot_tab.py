"""The tab that names a picture by words of one's own, with CLIP, beside a supervised model."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio
import torch

from diffvit.app.clips import TEMPLATES, Clips
from diffvit.app.desk import Chosen, Desk
from diffvit.app.panels import bars, inline
from diffvit.app.web.answers import QUICK, answering
from diffvit.app.web.look_tab import NONE
from diffvit.app.web.upload_zone import upload_zone, uploaded
from diffvit.errors import ConfigError

MOST_LABELS, MOST_LETTERS = 40, 80
_LABELS = "airplane, car, bird, cat, deer, dog, frog, horse, ship, truck"
_SAID = (
    "Each label is put into the templates (“a photo of a {}.”); the picture is given to the label whose texts lie "
    "nearest. The small CLIP knows the words that its captions had, so labels far from CIFAR-10 mean little to it."
)


def labels_of(text: str) -> tuple[str, ...]:
    """Labels from a line or lines of text.

    Raises:
        ConfigError: none, too many, too long, or one twice.
    """
    from diffvit.clip.templates import load_labels

    parts = [part.strip() for line in text.splitlines() for part in line.split(",")]
    given = ",".join(part for part in parts if part)
    labels = [part for part in given.split(",") if part]
    if not 2 <= len(labels) <= MOST_LABELS:
        raise ConfigError("labels", f"give 2 to {MOST_LABELS}, with commas between them (found {len(labels)})")
    long = next((label for label in labels if len(label) > MOST_LETTERS), None)
    if long is not None:
        raise ConfigError("labels", f"one is too long ({len(long)} vs at most {MOST_LETTERS} letters)")
    return load_labels(given)


def name_it(desk: Desk, clips: Clips, chosen: Chosen, asked: tuple[str, str, str, str]) -> str:
    """The picture with what CLIP and a supervised model call it, as HTML.

    Args:
        desk: models and pictures.
        clips: the CLIP models.
        chosen: which picture.
        asked: the CLIP's name, the labels, the templates, the supervised model's name.

    Raises:
        DiffvitError: no such model or picture, or labels that cannot be, or that the CLIP cannot read or tell apart.
    """
    from diffvit.clip.zero_shot import classify

    name, text, templates, beside = asked
    clip, classifier = clips.classifier(name, labels_of(text), templates)
    square = clip.preprocessing.square(desk.whole(chosen).pixels.numpy())
    images = clip.preprocessing.normalised(torch.from_numpy(square[None]))
    values, order = classify(clip, classifier, images)[0].sort(descending=True, stable=True)
    named = [(classifier.labels[place], chance) for place, chance in zip(order.tolist(), values.tolist(), strict=True)]
    picture = f'<img src="{inline(square.transpose(1, 2, 0))}" alt="The picture as {escape(name)} sees it">'
    parts = [_side(f"{name}, zero-shot", f"{len(named)} labels, templates {templates}", picture + bars(named))]
    if beside != NONE:
        look = desk.look(chosen, beside)
        shown = inline(look.picture.pixels.permute(1, 2, 0).numpy())
        picture = f'<img src="{shown}" alt="The picture as {escape(beside)} sees it">'
        parts.append(_side(beside, "supervised: the classes it was trained on", picture + bars(look.chances)))
    warned = "".join(f'<p class="dv-said dv-warning">{escape(line)}</p>' for line in classifier.warnings)
    return f'{warned}<div class="dv-sides">{"".join(parts)}</div><p class="dv-said">{escape(_SAID)}</p>'


def _side(title: str, words: str, content: str) -> str:
    return (
        f'<section class="dv-model" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f'<p class="dv-said">{escape(words)}</p><div class="dv-named">{content}</div></section>'
    )


def build(desk: Desk, chosen: gradio.State, openai: Path | None) -> None:
    """The tab.

    Args:
        desk: models and pictures.
        chosen: the picture that the first tab chose.
        openai: OpenAI's weights for RN50, where they are on this machine.
    """
    clips = Clips(desk, openai)
    names = [offer.name for offer in desk.models.classifiers]
    twin = next((name for name in names if name.endswith("clip-twin")), names[0])
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=310):
            gradio.HTML('<p class="dv-said">The picture is the one chosen under Look, or one of yours:</p>')
            upload = upload_zone()
            text = gradio.Textbox(
                _LABELS, lines=3, label="Labels", info=f"What there may be, 2 to {MOST_LABELS}, with commas between."
            )
            name = gradio.Dropdown(
                clips.names, value=clips.names[0], label="CLIP", info="Which model reads the labels."
            )
            templates = gradio.Dropdown(
                list(TEMPLATES), value=TEMPLATES[0], label="Templates", info="The sentences a label is put into."
            )
            beside = gradio.Dropdown(
                [NONE, *names], value=twin, label="Supervised model", info="Its own classes, for comparison."
            )
            button = gradio.Button("Name the picture", variant="primary")
        with gradio.Column(scale=3, min_width=330):
            said = gradio.HTML("")
            view = gradio.HTML('<p class="dv-said">Press “Name the picture”.</p>', elem_id="dv-named")

    def answer(chosen: Chosen, name: str, text: str, templates: str, beside: str) -> str:
        return name_it(desk, clips, chosen, (name, text, templates, beside))

    asked: dict[str, Any] = {
        **{"fn": answering(desk, 1)(answer), "inputs": [chosen, name, text, templates, beside]},
        **{"outputs": [view, said], "api_visibility": "private"},
    }
    gradio.on([button.click, text.submit], **asked)
    upload.upload(uploaded, None, [chosen], **QUICK).then(**asked)
