"""The tab that shows the attention of one model or two on an image: choice of image, controls, and the maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio

from diffvit.app.explorer import Explorer, ForwardPass, MapSelection
from diffvit.app.images import ALL, FILTERS, ImageRef
from diffvit.app.panels import COLOURS, OverlayStyle, draw_figure, html, inline, panel
from diffvit.app.web.controls import NO_MODEL, QUICK, VIEW_SCRIPT, handler, upload_zone, uploaded
from diffvit.attention.rollout import FUSIONS, SIGNS
from diffvit.errors import DiffvitError

ALL_CLASSES = "all classes"
_POOLED, _PATCH = "the model", "a patch"  # values of the control "Query token"
_PAGE = 12  # thumbnails


def draw(explorer: Explorer, image: ImageRef, first: str, second: str, *controls: Any) -> str:
    """The panels of the first model and the second (or :data:`NO_MODEL`) as HTML.

    ``controls`` are the values of the other controls in their order: of the map, the query, the drawing and rollout.
    Layer, head, row and column are counted from 1; row and column refer to the first model's patches.
    """
    layer, head, average, query, row, column, strength, colours, mass, *rules = controls
    names = [first] + ([second] if second not in (NO_MODEL, first) else [])
    results = [explorer.run(image, name) for name in names]
    rows, columns = results[0].record.grid
    position = ((row - 0.5) / rows, (column - 0.5) / columns) if query == _PATCH else None
    rollout: dict[str, Any] = dict(zip(("fusion", "sign", "discard", "residual"), rules, strict=True))
    selection = MapSelection(int(layer) - 1, None if average else int(head) - 1, position, rollout)
    style = OverlayStyle(strength, colours if colours in COLOURS else COLOURS[0], mass)
    # The offer refers to names, not to forward passes: one that nobody downloads keeps no maps in memory.
    link = explorer.offer_figure(lambda: draw_figure([explorer.run(image, name) for name in names], selection))
    panels = [panel(each, selection, style, link=link if each is results[-1] else "") for each in results]
    return html("models", panels=panels)


def build(explorer: Explorer, image: gradio.State, page: gradio.Blocks) -> None:
    """Add the tab with its events; ``image`` holds the :class:`ImageRef` that is shown, in other tabs too."""
    ref, name, second_name = explorer.start
    names = [info.name for info in explorer.models.vits]
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=310):
            first = gradio.Dropdown(names, value=name, label="Model")
            second = gradio.Dropdown(
                [NO_MODEL, *names], value=second_name or NO_MODEL, label="Second model", info="For comparison."
            )
            upload = upload_zone()
            picked = _test_image_picker(explorer, first, second, image)
        with gradio.Column(scale=3, min_width=330):
            layers, heads, rows, columns = _sizes([explorer.run(ref, each) for each in (name, second_name) if each])
            with gradio.Row():
                info = "Layer to show; 1 is the first."
                layer = gradio.Slider(1, value=layers, step=1, label="Layer", info=info, **slider_range(layers))
                info = "Head to show, if heads are not averaged."
                head = gradio.Slider(1, value=1, step=1, label="Head", info=info, **slider_range(heads))
                average = gradio.Checkbox(True, label="Average the heads", info="One map for the whole layer.")
            view = gradio.HTML("", js_on_load=VIEW_SCRIPT, elem_id="dv-view")
            error = gradio.HTML("")
            with gradio.Row():
                info = "The model: the token it classifies from ([CLS]), or the mean over the patches."
                query = gradio.Radio([_POOLED, _PATCH], value=_POOLED, label="Query token", info=info)
                info = "Row of the query patch, from the top; or click the patch."
                row = gradio.Slider(1, value=1, step=1, label="Row", info=info, **slider_range(rows))
                info = "Column of the query patch, from the left."
                column = gradio.Slider(1, value=1, step=1, label="Column", info=info, **slider_range(columns))
            controls = [layer, head, average, query, row, column, *_style_controls(), *_rollout_controls()]
    redraw: dict[str, Any] = {
        "fn": handler(explorer, 1, numbered=True)(lambda *values: draw(explorer, *values)),
        "inputs": [image, first, second, *controls],
        "outputs": [view, error],
        **QUICK,
    }

    def set_ranges(image: ImageRef, first: str, second: str) -> tuple[Any, ...]:
        """Let the sliders reach as far as the chosen models do."""
        results = [explorer.run(image, name) for name in (first, second) if name != NO_MODEL]
        return tuple(gradio.update(**slider_range(count)) for count in _sizes(results))

    def click(image: ImageRef, name: str, event: gradio.EventData) -> tuple[str, int, int]:
        """Make the patch under the pointer the query."""
        rows, columns = explorer.run(image, name).record.grid
        down, across = (min(max(float(share), 0.0), 0.999) for share in (event.down, event.across))
        return _PATCH, int(down * rows) + 1, int(across * columns) + 1

    for control in controls:
        control.input(**redraw, trigger_mode="always_last")
    page.load(**redraw)
    picked.then(**redraw)
    upload.upload(uploaded, None, [image], **QUICK).then(**redraw)
    for model in (first, second):
        changed = model.input(
            handler(explorer, 4)(set_ranges), [image, first, second], [layer, head, row, column, error], **QUICK
        )
        changed.then(**redraw)
    view.click(handler(explorer, 3)(click), [image, first], [query, row, column, error], **QUICK).then(**redraw)


def _sizes(results: Sequence[ForwardPass]) -> tuple[int, int, int, int]:
    """The largest numbers of layers and heads; rows and columns of the first model's patches."""
    layers = max(len(each.record.layers) for each in results)
    return layers, max(each.heads for each in results), *results[0].record.grid


def slider_range(count: int) -> dict[str, Any]:
    """Options of a slider that counts from 1. It needs two values; one without a choice is hidden."""
    return {"maximum": max(2, count), "visible": count > 1}


def _style_controls() -> list[gradio.Slider | gradio.Dropdown]:
    with gradio.Accordion("Colours and threshold", open=False), gradio.Row():
        strength = gradio.Slider(0, 1.2, value=1, step=0.05, label="Overlay", info="Strength of the colours.")
        info = "Maps with negative entries stay blue and red."
        colours = gradio.Dropdown(list(COLOURS), value=COLOURS[0], label="Colour map", info=info)
        info = "Colour the fewest patches with this share."
        mass = gradio.Slider(0.05, 1, value=1, step=0.05, label="Threshold", info=info)
    return [strength, colours, mass]


def _rollout_controls() -> list[gradio.Radio | gradio.Slider]:
    with gradio.Accordion("Attention rollout", open=False):
        with gradio.Row():
            fusion = gradio.Radio(list(FUSIONS), value="mean", label="Fusion", info="How the heads are combined.")
            info = "How signed (differential) maps are treated: see docs/attention.md."
            sign = gradio.Radio(list(SIGNS), value="clamp", label="Sign", info=info)
        with gradio.Row():
            info = "Share of the smallest entries to leave out."
            discard = gradio.Slider(0, 0.95, value=0, step=0.05, label="Discard", info=info)
            residual = gradio.Slider(0, 0.95, value=0.5, step=0.05, label="Residual", info="Weight of the identity.")
    return [fusion, sign, discard, residual]


def _test_image_picker(explorer: Explorer, first: gradio.Dropdown, second: gradio.Dropdown, image: gradio.State) -> Any:
    """Test images of the first model by class and by error, a page of thumbnails at a time.

    Returns the event of a click, which has set ``image`` to the image that was clicked.
    """

    def classes(name: str) -> list[str]:
        pretrained = explorer.models.info(name).pretrained
        return [ALL_CLASSES, *([] if pretrained else explorer.models.load(name).classes)]

    name, page = explorer.start[1], gradio.State(0)
    with gradio.Row():
        info = "Class of the test images below."
        label = gradio.Dropdown(classes(name), value=ALL_CLASSES, label="Class", info=info)
        info = "The first use takes some seconds."
        which = gradio.Dropdown(list(FILTERS), value=ALL, label="Filter", info=info)
    thumbs = gradio.HTML(thumbnails(explorer, name), js_on_load=VIEW_SCRIPT, elem_id="dv-thumbs")
    with gradio.Row():
        back, forward = (gradio.Button(f"{word} images", size="sm", min_width=120) for word in ("Previous", "Next"))
    error = gradio.HTML("")

    def turn(page: int, name: str, second: str, label: str, which: str) -> tuple[int, str]:
        """Show a page of the images that pass the filters, or the nearest there is."""
        other = None if second == NO_MODEL else second
        indices = explorer.test_images.select(name, other, None if label == ALL_CLASSES else label, which)
        page = min(max(page, 0), max(0, (len(indices) - 1) // _PAGE))
        return page, thumbnails(explorer, name, indices, page)

    def reset(name: str) -> tuple[Any, str, int, str]:
        return gradio.update(choices=classes(name), value=ALL_CLASSES), ALL, 0, thumbnails(explorer, name)

    def pick(event: gradio.EventData) -> ImageRef:
        return ImageRef("test", int(event.index), str(event.owner))

    filters, outputs = [first, second, label, which], [page, thumbs, error]
    for control in (label, which):
        first_page = handler(explorer, 2)(lambda *filters: turn(0, *filters))
        control.input(first_page, filters, outputs, api_visibility="private")
    for button, step in ((back, -1), (forward, 1)):
        other_page = handler(explorer, 2)(lambda page, *filters, step=step: turn(page + step, *filters))
        button.click(other_page, [page, *filters], outputs, **QUICK)
    first.input(handler(explorer, 4)(reset), [first], [label, which, *outputs], **QUICK)
    return thumbs.select(handler(explorer, 1)(pick), None, [image, error], **QUICK)


def thumbnails(explorer: Explorer, name: str, indices: Sequence[int] | None = None, page: int = 0) -> str:
    """A page, counted from 0, of a model's test images (of ``indices``, else of all) to click; a line if none."""
    try:
        images = explorer.test_images.images(name)
    except DiffvitError as error:
        return html("line", text=error.line)
    if indices is None:
        indices = range(len(images))
    if not indices:
        return html("line", text="No test image passes the filters.")
    shown = indices[page * _PAGE : (page + 1) * _PAGE]
    labels = [images.classes[int(images.labels[index])] for index in shown]
    thumbs = [(index, label, inline(images.pixels[index])) for index, label in zip(shown, labels, strict=True)]
    first, last = page * _PAGE + 1, page * _PAGE + len(shown)
    text = f"{first:,} to {last:,} of {len(indices):,}, {images.name}"
    return html("thumbnails", images=thumbs, model=name, text=text)
