"""The page's other tabs: comparing runs, zero-shot classification with CLIP, shapes with a known mask, the models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import torch
from torch import Tensor

from diffvit.app.explorer import Explorer, ForwardPass, MapSelection
from diffvit.app.images import ImageRef, shapes_image
from diffvit.app.limits import Cache
from diffvit.app.models import TEMPLATES
from diffvit.app.panels import OverlayStyle, html, inline, panel
from diffvit.app.web.controls import NO_MODEL, QUICK, VIEW_SCRIPT, handler, upload_zone, uploaded
from diffvit.attention.baselines import mask_scores
from diffvit.attention.metrics import coverage
from diffvit.attention.rollout import rollout
from diffvit.data.shapes import CLASSES
from diffvit.errors import ConfigError
from diffvit.reporting import tables
from diffvit.reporting.arms import arms
from diffvit.reporting.render import pictures_of
from diffvit.reporting.rows import read_run
from diffvit.reporting.tables import Table, percent
from diffvit.reporting.texts import statements

MAX_RUNS = 6  # compared at a time
MAX_LABELS, MAX_LABEL_LENGTH = 40, 80
_LABELS = "airplane, car, bird, cat, deer, dog, frog, horse, ship, truck"


def build_compare(explorer: Explorer) -> None:
    """Add the tab that compares finished runs: figures, curves, lambda, confusion, from their run folders."""
    names = [info.name for info in explorer.models.runs]
    if not names:
        gradio.HTML(html("no_runs"))
        return
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=260):
            info = f"Up to {MAX_RUNS}. Runs that differ only in the seed are grouped."
            runs = gradio.CheckboxGroup(names, value=names[:2], label="Runs", info=info)
            button = gradio.Button("Compare", variant="primary")
            error = gradio.HTML("")
        with gradio.Column(scale=3, min_width=330):
            view = gradio.HTML('<p class="dv-text">Choose runs and press Compare.</p>', elem_id="dv-compare")
    cache: Cache[str] = Cache(16)

    def compare(chosen: list[str]) -> str:
        folders = [str(explorer.models.info(name).folder) for name in chosen]
        return cache.get_or_make(tuple(folders), lambda: compare_runs(folders))

    button.click(handler(explorer, 1)(compare), [runs], [view, error], api_visibility="private")


def compare_runs(folders: Sequence[str]) -> str:
    """Tables, statements and plots of finished runs as HTML."""
    if not 1 <= len(folders) <= MAX_RUNS:
        raise ConfigError("runs", f"choose 1 to {MAX_RUNS} (found {len(folders)})")
    grouped = arms([read_run(folder) for folder in folders])
    return html(
        "comparison",
        notes=tables.data_notes(record.row for arm in grouped for record in arm.records),
        claims=statements(grouped),
        figures=tables.side_by_side(grouped),
        plots=[picture for kind in pictures_of(grouped).values() for picture in kind],
    )


def build_zero_shot(explorer: Explorer, image: gradio.State) -> None:
    """Add the tab that classifies ``image``, chosen in the first tab, by the user's own labels with CLIP."""
    names, clips = [info.name for info in explorer.models.own_vits], explorer.models.clip_names
    twin = next((name for name in names if name.endswith("clip-twin")), names[0])
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=310):
            gradio.HTML('<p class="dv-text">The picture is the one chosen under Attention, or one of yours:</p>')
            upload = upload_zone()
            info = f"2 to {MAX_LABELS} candidate labels, separated by commas."
            labels = gradio.Textbox(_LABELS, lines=3, label="Labels", info=info)
            clip = gradio.Dropdown(clips, value=clips[0], label="CLIP", info="The model that compares texts and image.")
            info = "Prompts that each label is inserted into."
            templates = gradio.Dropdown(list(TEMPLATES), value=TEMPLATES[0], label="Templates", info=info)
            info = "For comparison, with the classes it was trained on."
            supervised = gradio.Dropdown([NO_MODEL, *names], value=twin, label="Supervised model", info=info)
            button = gradio.Button("Classify", variant="primary")
        with gradio.Column(scale=3, min_width=330):
            error = gradio.HTML("")
            view = gradio.HTML('<p class="dv-text">Press Classify.</p>', elem_id="dv-named")
    request: dict[str, Any] = {
        "fn": handler(explorer, 1)(lambda *values: classify_image(explorer, *values)),
        "inputs": [image, clip, labels, templates, supervised],
        "outputs": [view, error],
        "api_visibility": "private",
    }
    gradio.on([button.click, labels.submit], **request)
    upload.upload(uploaded, None, [image], **QUICK).then(**request)


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels from lines of text with commas between."""
    from diffvit.clip.templates import load_labels

    labels = [part.strip() for part in ",".join(text.splitlines()).split(",") if part.strip()]
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ConfigError("labels", f"give 2 to {MAX_LABELS}, with commas between them (found {len(labels)})")
    long = next((label for label in labels if len(label) > MAX_LABEL_LENGTH), None)
    if long is not None:
        raise ConfigError("labels", f"one is too long ({len(long)} vs at most {MAX_LABEL_LENGTH} letters)")
    return load_labels(",".join(labels))


def classify_image(
    explorer: Explorer, image: ImageRef, clip_name: str, labels: str, templates: str, supervised: str
) -> str:
    """Probabilities of the labels by CLIP, and of its classes by a supervised model, as HTML."""
    from diffvit.clip.zero_shot import classify

    clip, classifier = explorer.models.classifier(clip_name, parse_labels(labels), templates)
    square = clip.preprocessing.square(explorer.source(image).pixels.numpy())
    images = clip.preprocessing.normalised(torch.from_numpy(square[None]))
    values, order = classify(clip, classifier, images)[0].sort(descending=True, stable=True)
    found = [(classifier.labels[index], value) for index, value in zip(order.tolist(), values.tolist(), strict=True)]
    zero_shot = {"title": f"{clip_name}, zero-shot", "text": f"{len(found)} labels, templates {templates}"}
    pixels = inline(square.transpose(1, 2, 0))
    parts = [html("answer", model=clip_name, image=pixels, probabilities=found, **zero_shot)]
    if supervised != NO_MODEL:
        result = explorer.run(image, supervised)
        labelled = {"title": supervised, "text": "supervised: the classes it was trained on"}
        pixels = inline(result.image.pixels)
        parts.append(html("answer", model=supervised, image=pixels, probabilities=result.probabilities, **labelled))
    return html("models", panels=parts, note="zero-shot", warnings=classifier.warnings)


def build_shapes(explorer: Explorer, page: gradio.Blocks) -> None:
    """Add the tab that draws an object among clutter and scores attention against the object's mask."""
    models = explorer.models.own_vits
    names, depth = [info.name for info in models], max(info.depth for info in models)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=300):
            info = "Choose a model trained on shapes."
            first = gradio.Dropdown(names, value="shapes-vit", label="Model", info=info)
            second = gradio.Dropdown(
                [NO_MODEL, *names], value="shapes-diffvit", label="Second model", info="For comparison."
            )
            controls = [
                first,
                second,
                gradio.Dropdown(list(CLASSES), value=CLASSES[5], label="Object", info="The class of the image."),
                gradio.Slider(0, 999, value=3, step=1, label="Picture", info="Number of the image."),
                gradio.Slider(0, 1, value=0.3, step=0.05, label="Clutter", info="Share of the background covered."),
                gradio.Slider(0, 0.5, value=0.1, step=0.02, label="Noise", info="Standard deviation of pixel noise."),
                gradio.Slider(
                    0, depth - 1, value=3, step=1, label="Layer", info="Layer whose map is shown and scored."
                ),
            ]
        with gradio.Column(scale=3, min_width=330):
            view = gradio.HTML("", js_on_load=VIEW_SCRIPT, elem_id="dv-shapes")
            error = gradio.HTML("")
    redraw: dict[str, Any] = {
        "fn": handler(explorer, 1, numbered=True)(lambda *values: draw_shapes(explorer, *values)),
        "inputs": controls,
        "outputs": [view, error],
        **QUICK,
    }
    for control in controls:
        control.input(**redraw, trigger_mode="always_last")
    page.load(**redraw)


def draw_shapes(
    explorer: Explorer, first: str, second: str, label: str, number: float, clutter: float, noise: float, layer: float
) -> str:
    """The drawn image, both models' maps and their scores, as HTML."""
    index = int(number) * len(CLASSES) + (CLASSES.index(label) if label in CLASSES else 0)
    selection, panels = MapSelection(layer=int(layer)), []
    for name in [first] + ([second] if second not in (NO_MODEL, first) else []):
        model = explorer.models.load(name)
        image = shapes_image(index, size=model.image_size or 32, clutter=clutter, noise=noise)
        assert image.mask is not None
        result = explorer.forward(model, image)
        table = score_table(result, selection, image.mask)
        note = html("table", columns=table.columns, rows=table.rows, caption=f"Scores of {name}")
        panels.append(panel(result, selection, OverlayStyle(), note=note, clickable=False))
    return html("models", panels=panels, note="shapes")


def score_table(result: ForwardPass, selection: MapSelection, mask: Tensor) -> Table:
    """Scores of the selected layer's mean map, of rollout and of a uniform map against the object's mask."""
    layer, record = result.locate(selection)[0], result.record
    maps = {f"layer {layer}": record.to_patches(layer).mean(dim=1), "rollout": rollout(record)}
    if record.differential:
        maps[f"layer {layer}, A1 alone"] = record.to_patches(layer, "positive").mean(dim=1)
        maps["rollout, A1 alone"] = rollout(record, sign="positive")
    rows = []
    for name, values in maps.items():
        scores = {key: float(value[0]) for key, value in mask_scores(values, mask[None]).items()}
        points = "yes" if scores["pointing"] == 1 else "no" if scores["pointing"] == 0 else "in part"
        rows.append([name, points, percent(scores["mass"], 1), percent(scores["iou"], 1)])
    share = float(coverage(mask[None], record.grid).mean())
    rows.append(["Uniform baseline", "–", percent(share, 1), "–"])
    return Table(["Map", "Points at the object", "Mass on it", "Overlap"], rows)


def build_models(explorer: Explorer) -> None:
    """Add the tab that lists the offered models and says how to get more."""
    rows = []
    for info in (*explorer.models.vits, *explorer.models.clips):
        origin = "others" if info.pretrained else "packaged" if info.folder is None else "run"
        rows.append([info.name, info.description, origin])
    gradio.HTML(html("table", columns=["Model", "What it is", "From"], rows=rows, caption="Available models"))
    gradio.Markdown(Path(__file__).with_name("models.md").read_text(encoding="utf-8"))
