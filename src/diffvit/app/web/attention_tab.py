"""The tab that shows the attention of one model or two on an image: choice of image, controls, and the maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import gradio

from diffvit.app.explorer import Explorer, ForwardPass, MapSelection
from diffvit.app.images import ALL, FILTERS, ImageRef
from diffvit.app.panels import COLOURS, OverlayStyle, download, html, inline, panel
from diffvit.app.web.controls import NO_MODEL, QUICK, VIEW_SCRIPT, handler, upload_zone, uploaded
from diffvit.attention.attribute import METHODS
from diffvit.attention.rollout import FUSIONS, SIGNS
from diffvit.errors import DiffvitError, InputError, few

ALL_CLASSES = "all classes"
_POOLED, _PATCH = "the model", "a patch"  # values of the control "Query token"
_NO_METHOD, _PREDICTED = "none", "the predicted class"
_PLACES = ("layer", "head", "row", "column")  # controls whose range the chosen models decide
_PAGE = 12  # thumbnails


def draw(explorer: Explorer, image: ImageRef, first: str, second: str, asked: Mapping[str, Any]) -> str:
    """The panels of the first model and the second (or :data:`NO_MODEL`) as HTML.

    ``asked`` has the value of each other control by its name in :func:`build`. Layer, head, row and column count from
    0; row and column refer to the first model's patches.
    """
    names = [first] + ([second] if second not in (NO_MODEL, first) else [])
    results = [explorer.run(image, name) for name in names]
    rows, columns = results[0].record.grid
    position = ((asked["row"] + 0.5) / rows, (asked["column"] + 0.5) / columns) if asked["query"] == _PATCH else None
    rollout: dict[str, Any] = {name: asked[name] for name in ("fusion", "sign", "discard", "residual")}
    head = None if asked["average"] else int(asked["head"])
    method = None if asked["method"] == _NO_METHOD else asked["method"]
    target = None if asked["target"] == _PREDICTED else asked["target"]
    selection = MapSelection(int(asked["layer"]), head, position, rollout, method, target)
    style = OverlayStyle(asked["strength"], asked["colours"], asked["mass"])
    # The offer refers to names, not to forward passes: one that nobody downloads keeps no maps in memory.
    link = explorer.offer_figure(lambda form: download([explorer.run(image, name) for name in names], selection, form))
    panels = []
    for each in results:
        lacks = target is not None and target not in each.model.classes
        note = (
            html("line", text=f"{each.model.name} has no class {target}: no attribution.") if lacks and method else ""
        )
        panels.append(panel(each, selection, style, note=note, link=link if each is results[-1] else ""))
    shown = {"image": f"{image.kind}:{image.key}:{image.model}", "first": first, "second": second, **asked}
    return html("models", panels=panels, address=urlencode(shown))


def build(explorer: Explorer, image: gradio.State, page: gradio.Blocks) -> None:
    """Add the tab with its events; ``image`` holds the :class:`ImageRef` that is shown, in other tabs too."""
    ref, name, second_name = explorer.start
    names = [info.name for info in explorer.models.vits]
    with gradio.Row():
        first = gradio.Dropdown(names, value=name, label="Model", info="Its test images are below.", min_width=250)
        chosen, info = second_name or NO_MODEL, "For comparison."
        second = gradio.Dropdown([NO_MODEL, *names], value=chosen, label="Second model", info=info, min_width=250)
    unknown = gradio.HTML("", padding=False)  # what is wrong with the page's address
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=310):
            upload = upload_zone()
            picked, refill = _test_image_picker(explorer, first, second, image)
        with gradio.Column(scale=3, min_width=330, elem_classes="dv-result"):
            layers, heads, rows, columns = _sizes([explorer.run(ref, each) for each in (name, second_name) if each])
            with gradio.Row():
                info = "Layer to show; 0 is the first."
                layer = gradio.Slider(0, value=layers - 1, step=1, label="Layer", info=info, **slider_range(layers))
                info = "Head to show, if heads are not averaged."
                head = gradio.Slider(0, value=0, step=1, label="Head", info=info, **slider_range(heads))
                average = gradio.Checkbox(True, label="Average the heads", info="One map for the whole layer.")
            view = gradio.HTML("", js_on_load=VIEW_SCRIPT, elem_id="dv-view")
            error = gradio.HTML("")
            with gradio.Row():
                info = "What each patch contributes to a class; see docs/attention.md."
                method = gradio.Dropdown([_NO_METHOD, *METHODS], value=_NO_METHOD, label="Attribution", info=info)
                info = "The class that the attribution explains."
                target = gradio.Dropdown(_targets(explorer, name), value=_PREDICTED, label="Explained class", info=info)
            with gradio.Row():
                info = "The model: the token it classifies from ([CLS]), or the mean over the patches."
                query = gradio.Radio([_POOLED, _PATCH], value=_POOLED, label="Query token", info=info)
                info = "Row of the query patch, from the top; or click the patch."
                row = gradio.Slider(0, value=0, step=1, label="Row", info=info, **slider_range(rows))
                info = "Column of the query patch, from the left."
                column = gradio.Slider(0, value=0, step=1, label="Column", info=info, **slider_range(columns))
            controls: dict[str, Any] = {"layer": layer, "head": head, "average": average, "method": method}
            controls |= {"target": target, "query": query, "row": row, "column": column}
            controls |= {**_style_controls(), **_rollout_controls()}

    def redrawn(image: ImageRef, first: str, second: str, *values: Any) -> str:
        return draw(explorer, image, first, second, dict(zip(controls, values, strict=True)))

    redraw: dict[str, Any] = {
        "fn": handler(explorer, 1, numbered=True)(redrawn),
        "inputs": [image, first, second, *controls.values()],
        "outputs": [view, error],
        **QUICK,
    }

    def fitted(image: ImageRef, first: str, second: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Updates that let the sliders reach as far as the chosen models do, and offer the first one's classes."""
        results = [explorer.run(image, name) for name in (first, second) if name != NO_MODEL]
        updates: dict[str, Any] = {}
        for name, count in zip(_PLACES, _sizes(results), strict=True):
            updates[name] = gradio.update(value=min(int(asked[name]), count - 1), **slider_range(count))
        classes = _targets(explorer, first)
        chosen = asked["target"] if asked["target"] in classes else _PREDICTED
        return updates | {"target": gradio.update(choices=classes, value=chosen)}

    def set_ranges(image: ImageRef, first: str, second: str, *asked: Any) -> tuple[Any, ...]:
        return tuple(fitted(image, first, second, dict(zip((*_PLACES, "target"), asked, strict=True))).values())

    def restore(request: gradio.Request) -> tuple[Any, ...]:
        """What the page's address says, see :func:`draw`; what it leaves out stays, as does what is not possible."""
        asked, wrong = request.query_params, list[str]()
        shown, found = explorer.start[0], dict[str, Any]()
        for name, control in {"first": first, "second": second, **controls}.items():
            found[name] = control.value
            if name in asked:
                try:
                    found[name] = _value_of(name, control, asked[name])
                except InputError as error:
                    wrong.append(str(error))
        try:
            if "image" in asked:
                kind, key, owner = [*asked["image"].split(":", 2), "", ""][:3]
                if kind != "upload" and not (key.isdecimal() and len(key) < 10):
                    raise InputError("address", f"image is none (found {asked['image'][:40]!r} vs test:7:MODEL)")
                shown = ImageRef(kind, key if kind == "upload" else int(key), owner)
            explorer.run(shown, found["first"])
        except DiffvitError as error:  # an image that is gone
            wrong.append(str(error))
            shown = explorer.start[0]
        updates = fitted(shown, found["first"], found["second"], found)
        wrong += [
            f"address: {controls[name].label} is not possible here (found {str(asked[name])[:40]!r})."
            for name, update in updates.items()
            if name in asked and update["value"] != found[name]
        ]
        return shown, *(found | updates).values(), html("alert", text=" ".join(wrong))

    def click(image: ImageRef, name: str, event: gradio.EventData) -> tuple[str, int, int]:
        """Make the patch under the pointer the query."""
        rows, columns = explorer.run(image, name).record.grid
        down, across = (min(max(float(share), 0.0), 0.999) for share in (event.down, event.across))
        return _PATCH, int(down * rows), int(across * columns)

    ranges: dict[str, Any] = {
        "fn": handler(explorer, 5)(set_ranges),
        "inputs": [image, first, second, layer, head, row, column, target],
        "outputs": [layer, head, row, column, target, error],
        **QUICK,
    }
    for control in controls.values():
        control.input(**redraw, trigger_mode="always_last")
    every = [image, first, second, *controls.values()]
    restored = page.load(handler(explorer, len(every) + 1)(restore), None, [*every, unknown, error], **QUICK)
    restored.then(**refill).then(**redraw)
    picked.then(**redraw)
    upload.upload(uploaded, None, [image], **QUICK).then(**redraw)
    for model in (first, second):
        model.input(**ranges).then(**redraw)
    view.click(handler(explorer, 3)(click), [image, first], [query, row, column, error], **QUICK).then(**redraw)


def _sizes(results: Sequence[ForwardPass]) -> tuple[int, int, int, int]:
    """The largest numbers of layers and heads; rows and columns of the first model's patches."""
    layers = max(len(each.record.layers) for each in results)
    return layers, max(each.heads for each in results), *results[0].record.grid


def slider_range(count: int) -> dict[str, Any]:
    """Options of a slider that counts from 0. It needs two values; one without a choice is hidden."""
    return {"maximum": max(1, count - 1), "visible": count > 1}


def _targets(explorer: Explorer, name: str) -> list[str]:
    """What a model's attribution can explain: the predicted class, or one by name."""
    return [_PREDICTED, *([] if explorer.models.info(name).pretrained else explorer.models.load(name).classes)]


def _value_of(name: str, control: Any, text: str) -> Any:
    """The value of a control that an address gives as text.

    Raises:
        InputError: the text is no value of this control.
    """
    value, choices = control.value, [choice for _, choice in getattr(control, "choices", None) or []]
    found: Any = text
    if isinstance(value, bool):
        choices, found = [True, False], {"True": True, "False": False}.get(text)
    elif not isinstance(value, str):
        most = 999 if name in _PLACES else control.maximum  # of a place the models decide
        found = _number(text)
        whole = name not in _PLACES or found == found // 1
        choices = [found] if whole and control.minimum <= found <= most else [f"{control.minimum:g} to {most:g}"]
    if found not in choices and name != "target":
        allowed = few([str(choice) for choice in choices])
        raise InputError("address", f"{control.label} is not possible (found {text[:40]!r} vs {allowed})")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _style_controls() -> dict[str, gradio.Slider | gradio.Dropdown]:
    with gradio.Accordion("Colours and threshold", open=False), gradio.Row():
        strength = gradio.Slider(0, 1.2, value=1, step=0.05, label="Overlay", info="Strength of the colours.")
        info = "Maps with negative entries stay blue and red."
        colours = gradio.Dropdown(list(COLOURS), value=COLOURS[0], label="Colour map", info=info)
        info = "Colour the fewest patches with this share."
        mass = gradio.Slider(0.05, 1, value=1, step=0.05, label="Threshold", info=info)
    return {"strength": strength, "colours": colours, "mass": mass}


def _rollout_controls() -> dict[str, gradio.Radio | gradio.Slider]:
    with gradio.Accordion("Attention rollout", open=False):
        with gradio.Row():
            fusion = gradio.Radio(list(FUSIONS), value="mean", label="Fusion", info="How the heads are combined.")
            info = "How signed (differential) maps are treated: see docs/attention.md."
            sign = gradio.Radio(list(SIGNS), value="clamp", label="Sign", info=info)
        with gradio.Row():
            info = "Share of the smallest entries to leave out."
            discard = gradio.Slider(0, 0.95, value=0, step=0.05, label="Discard", info=info)
            residual = gradio.Slider(0, 0.95, value=0.5, step=0.05, label="Residual", info="Weight of the identity.")
    return {"fusion": fusion, "sign": sign, "discard": discard, "residual": residual}


def _test_image_picker(
    explorer: Explorer, first: gradio.Dropdown, second: gradio.Dropdown, image: gradio.State
) -> tuple[Any, dict[str, Any]]:
    """Test images of the first model by class and by error, a page of thumbnails at a time.

    Returns the event of a click, which has set ``image`` to the image that was clicked, and what an event takes to show
    the images of another model.
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
    refill = {"fn": handler(explorer, 4)(reset), "inputs": [first], "outputs": [label, which, *outputs], **QUICK}
    first.input(**refill)
    return thumbs.select(handler(explorer, 1)(pick), None, [image, error], **QUICK), refill


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
