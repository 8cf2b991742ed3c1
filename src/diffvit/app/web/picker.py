"""Pictures of the test set to choose from: by class, by who mistakes them, a page of thumbnails at a time."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio

from diffvit.app.desk import Chosen, Desk
from diffvit.app.panels import inline
from diffvit.app.test_sets import ALL, FILTERS
from diffvit.app.web.answers import QUICK, answering
from diffvit.errors import DiffvitError

EVERY = "every class"
_PAGE = 12  # thumbnails
_SELECT = """
element.addEventListener('click', event => {
  const thumb = event.target.closest('[data-index]');
  if (thumb) trigger('select', {index: Number(thumb.dataset.index), owner: thumb.parentElement.dataset.owner});
});
"""


def picker(desk: Desk, first: gradio.Dropdown, second: gradio.Dropdown, chosen: gradio.State) -> Any:
    """The controls; returns what happens when a picture is picked, to be followed by ``.then``.

    Args:
        desk: models and pictures.
        first: the model whose test set it is.
        second: the model that is compared with.
        chosen: is given the picture.
    """
    name = desk.start[1]
    found = gradio.State(None)  # places that were chosen; None for all
    at = gradio.State(0)
    with gradio.Row():
        label = gradio.Dropdown(_classes(desk, name), value=EVERY, label="Test images", info="Of which class.")
        which = gradio.Dropdown(
            list(FILTERS), value=ALL, label="Which", info="Sorting 10,000 takes some seconds, once."
        )
    thumbs = gradio.HTML(thumbnails(desk, name, _first(desk, name), 0), js_on_load=_SELECT, elem_id="dv-thumbs")
    with gradio.Row():
        back, on = (gradio.Button(f"{word} images", size="sm", min_width=120) for word in ("Previous", "Next"))
    said = gradio.HTML("")
    shown = [found, at, thumbs, said]

    def choose(name: str, beside: str, label: str, which: str) -> tuple[list[int], int, str]:
        other = beside if beside in [offer.name for offer in desk.models.lookers] else None
        places = desk.sets.choose(name, other, None if label == EVERY else label, which)
        return places, 0, thumbnails(desk, name, places, 0)

    def turn(by: int, name: str, places: list[int] | None, at: int) -> tuple[int, str]:
        places = _first(desk, name) if places is None else places
        at = min(max(at + by, 0), max(0, (len(places) - 1) // _PAGE))
        return at, thumbnails(desk, name, places, at)

    def renew(name: str) -> tuple[Any, str, None, int, str]:
        places = _first(desk, name)
        return gradio.update(choices=_classes(desk, name), value=EVERY), ALL, None, 0, thumbnails(desk, name, places, 0)

    def pick(event: gradio.EventData) -> Chosen:
        return Chosen("test", int(event.index), str(event.owner))

    for control in (label, which):
        control.input(answering(desk, 3)(choose), [first, second, label, which], shown, api_visibility="private")
    for button, step in ((back, -1), (on, 1)):
        handler = answering(desk, 2)(lambda *asked, step=step: turn(step, *asked))
        button.click(handler, [first, found, at], [at, thumbs, said], **QUICK)
    first.input(answering(desk, 5)(renew), [first], [label, which, found, at, thumbs, said], **QUICK)
    return thumbs.select(answering(desk, 1)(pick), None, [chosen, said], **QUICK)


def _classes(desk: Desk, name: str) -> list[str]:
    return [EVERY, *(() if desk.models.offer(name).pretrained else desk.models.subject(name).classes)]


def _first(desk: Desk, name: str) -> list[int]:
    """All of them; none where the data is not here."""
    try:
        return list(range(len(desk.sets.images(name))))
    except DiffvitError:
        return []


def thumbnails(desk: Desk, name: str, places: list[int], page: int) -> str:
    """A page of small pictures to click; a line where there are none."""
    try:
        images = desk.sets.images(name)
    except DiffvitError as error:
        return f'<p class="dv-said">{escape(str(error))}</p>'
    if not places:
        return '<p class="dv-said">No test image is like that.</p>'
    few = places[page * _PAGE : (page + 1) * _PAGE]
    buttons = [
        f'<button type="button" data-index="{place}" aria-label="Test image {place}, {escape(label)}">'
        f'<img src="{inline(images.pixels[place].permute(1, 2, 0).numpy())}" alt="" title="{place}: {escape(label)}">'
        f"<span>{escape(label)}</span></button>"
        for place in few
        for label in [images.classes[int(images.labels[place])]]
    ]
    said = f"{page * _PAGE + 1:,} to {page * _PAGE + len(few):,} of {len(places):,}, {escape(images.name)}"
    return f'<div class="dv-thumbs" data-owner="{escape(name)}">{"".join(buttons)}</div><p class="dv-said">{said}</p>'
