"""Output of ``diffvit attention``: figures or map files for each image, and one self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from diffvit import __version__
from diffvit.attention import figures
from diffvit.attention.attribute import METHODS, attribute
from diffvit.attention.capture import Record, capture_with_logits
from diffvit.attention.inputs import LoadedModel, Sample
from diffvit.attention.metrics import HIT, coverage, mass_mask, mass_on_object, pointing_game
from diffvit.attention.rollout import rollout
from diffvit.attention.statistics import averaged, head_statistics, position_similarity
from diffvit.errors import ConfigError, few
from diffvit.files import write_file
from diffvit.models.vit import VisionTransformer
from diffvit.reporting import plots
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import read_run
from diffvit.reporting.style import to_png, to_svg
from diffvit.reporting.texts import data_uri, render

FORMATS = ("png", "svg", "npz")
PAGE = "index.html"
_SIGNED = ("attnlrp", "input-x-gradient", "integrated-gradients", "occlusion")  # drawn in two hues in every image


@dataclass(frozen=True)
class MapOptions:
    """Which maps are drawn, and how.

    Args:
        layers: which blocks; None for all.
        kind: which map of a differential head: ``effective``, ``positive`` or ``negative``.
        query: row and column of the query patch; None for what the model pools.
        rollout: also draw attention rollout.
        rollout_options: arguments of :func:`diffvit.attention.rollout.rollout`.
        mass: share of the mass that a threshold mask keeps; None for no masks.
        format: ``png``, ``svg``, or ``npz``: the maps themselves, for other programs.
        methods: of :data:`diffvit.attention.attribute.METHODS`, to draw too.
        target: name or index of the class that they explain; None for each image's predicted class.
    """

    layers: list[int] | None = None
    kind: str = "effective"
    query: tuple[int, int] | None = None
    rollout: bool = False
    rollout_options: dict[str, Any] = field(default_factory=dict)
    mass: float | None = None
    format: str = "png"
    methods: Sequence[str] = ()
    target: str | None = None


def write_report(
    model: LoadedModel, samples: Sequence[Sample], options: MapOptions, out: Path, *, command: str = ""
) -> tuple[Path, list[Path], list[dict[str, Any]]]:
    """Draw the maps of each image, the figures about the model, and the page. Each image is one forward pass.

    Args:
        model: the model.
        samples: at least one.
        options: what to draw.
        out: folder for the page and its files; existing files of these names are replaced.
        command: to repeat it, for the page.

    Returns:
        The HTML page, the other files, and plain values of each image: its ``name``, ``label``, ``prediction`` and
        ``probability`` if the model classifies, ``pointing`` and ``mass`` of the last layer's map if the object's mask
        is known; with methods the ``target`` they explain, its ``target_probability``, and the scores of each,
        ``attribution``.

    Raises:
        ConfigError: no image, an unknown format, layer, kind, query or class, options without a meaning, or no classes.
        EnvironmentFault: a file cannot be written.
    """
    if not samples:
        hint = "Name image files, or take some of the test set with --index 0-7."
        raise ConfigError("attention", "no image given", hint)
    if options.format not in FORMATS:
        raise ConfigError("--format", f"no such format (found {options.format!r} vs {', '.join(FORMATS)})")
    writer = _Writer(out, options.format)
    sections, facts, statistics, overview, shown, tokens, differential = [], [], [], [], "", 0, False
    for number, sample in enumerate(samples):
        record, logits = capture_with_logits(model.model, model.normalised(sample.pixels[None]), layers=options.layers)
        facts.append(_facts(model, sample, record, logits))
        statistics.append(head_statistics(record))
        title, maps = _title(facts[-1]), _saliency(record, options)
        file = f"{number:02d}-{_safe(sample.name)}"
        found = _attribute(model, sample, logits, options, facts[-1])
        sections.append((title, _draw_image(writer, file, sample, record, options, facts[-1], maps, found)))
        shown, saliency, differential = *maps[-1], record.differential
        overview.append((title, sample.pixels, saliency))
        tokens = record.prefix + record.grid[0] * record.grid[1]
    name = model.name
    made = figures.contact_sheet(overview, title=f"{shown}: {name}")
    common = [writer.figure("overview", made, "Every image beside its saliency map")]
    common += _draw_model(writer, model, averaged(statistics), len(samples), tokens)
    about = {"name": model.name, "pool": model.model.pool, "differential": differential}
    about |= {"subtitle": f"{model.source}; diffvit {__version__}".removeprefix("; "), "command": command}
    about |= {"query": options.query, "rollout": options.rollout, "methods": options.methods}
    page = writer.save(PAGE, render("attention/page.html", **about, sections=sections, common=common).encode())
    return page, writer.files[:-1], facts


class _Writer:
    """Saves figures in the chosen format and keeps what the page shows."""

    def __init__(self, out: Path, form: str) -> None:
        self.out, self.form = out, form
        self.files: list[Path] = []

    def figure(self, name: str, made: Figure, alt: str, text: str = "") -> dict[str, str]:
        """A figure for the page; also as a file, unless the format is npz."""
        if self.form == "svg":
            return self.image(f"{name}.svg", to_svg(made), "image/svg+xml", alt, text)
        return self.image(f"{name}.png", to_png(made), "image/png", alt, text)

    def image(self, name: str, content: bytes, mime: str, alt: str, text: str = "") -> dict[str, str]:
        """As :meth:`figure`, of a file's content."""
        if self.form != "npz":
            self.save(name, content)
        return {"alt": alt, "text": text, "uri": data_uri(content, mime)}

    def save(self, name: str, content: bytes) -> Path:
        """Write one file."""
        self.files.append(write_file(self.out / name, content))
        return self.files[-1]


def _facts(model: LoadedModel, sample: Sample, record: Record, logits: Tensor | None) -> dict[str, Any]:
    """What is known of an image, the prediction, and the last map's scores if the object's mask is known."""
    facts: dict[str, Any] = {"name": sample.name, "label": sample.label}
    if model.classes and logits is not None:
        probabilities = logits.softmax(dim=1)[0]
        best = int(probabilities.argmax())
        facts |= {"prediction": model.classes[best], "probability": float(probabilities[best])}
    return facts | _on_object(record.to_patches(-1).mean(dim=1), sample)


def _on_object(saliency: Tensor, sample: Sample) -> dict[str, float]:
    """Scores of a (1, rows, columns) map against the object's mask, if that is known."""
    if sample.mask is None:
        return {}
    cover = coverage(sample.mask[None], (saliency.shape[1], saliency.shape[2])).to(saliency.dtype)
    return {"pointing": float(pointing_game(saliency, cover)), "mass": float(mass_on_object(saliency, cover))}


def _attribute(
    model: LoadedModel, sample: Sample, logits: Tensor | None, options: MapOptions, facts: dict[str, Any]
) -> dict[str, Tensor]:
    """Each method's map, (rows, columns); what is explained and the maps' scores are added to the facts."""
    target = None if options.target is None else model.class_index(options.target)
    explained = [method for method in options.methods if METHODS[method].of_class]
    if explained and logits is None:
        why = f"{model.name} has no classes to explain (found {few(explained)})"
        raise ConfigError("--method", why, "Take attention or rollout, which explain none.")
    if explained and logits is not None:
        target = int(logits.argmax()) if target is None else target
        facts["target"] = model.classes[target] if model.classes else f"class {target}"
        facts["target_probability"] = float(logits.softmax(dim=1)[0, target])
    images = model.normalised(sample.pixels[None])
    maps = {method: attribute(model.model, images, method, target) for method in options.methods}
    if maps and sample.mask is not None:
        facts["attribution"] = {method: _on_object(saliency, sample) for method, saliency in maps.items()}
    return {method: saliency[0] for method, saliency in maps.items()}


def _title(facts: dict[str, Any]) -> str:
    predicted = f", predicted {facts['prediction']} ({facts['probability']:.0%})" if "prediction" in facts else ""
    return f"{facts['name']}{': ' + facts['label'] if facts['label'] else ''}{predicted}"


def _safe(name: str) -> str:
    """A file name from an image's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:60]


def _saliency(record: Record, options: MapOptions) -> list[tuple[str, Tensor]]:
    """The maps that are laid over the image: (name, (rows, columns)); the overview shows the last one."""
    last = record.to_patches(-1, options.kind, options.query)[0].mean(dim=0)
    query = "" if options.query is None else f", patch {options.query[0]},{options.query[1]}"
    found = [(f"layer {record.blocks[-1]}, mean over heads{query}", last)]
    if options.rollout:
        sign = f" ({options.rollout_options.get('sign', 'clamp')})" if record.differential else ""
        found.append((f"rollout{sign}", rollout(record, **options.rollout_options)[0]))
    return found


def _draw_image(
    writer: _Writer,
    name: str,
    sample: Sample,
    record: Record,
    options: MapOptions,
    facts: dict[str, Any],
    saliency: Sequence[tuple[str, Tensor]],
    attributions: Mapping[str, Tensor],
) -> list[dict[str, str]]:
    """The figures of one image, and its maps as a file if the format is npz."""
    title, image, query, mass = _title(facts), sample.pixels, options.query, options.mass
    masks = []
    if mass is not None:
        masks = [(f"{mass:.0%} of the mass of\n{of}", mass_mask(values, mass)) for of, values in saliency]
    if sample.mask is not None:
        masks.append(("the object's true mask", coverage(sample.mask[None], record.grid)[0] >= HIT))
    uniform = {saliency[0][0]: record.uniform(-1, options.kind)}
    if options.rollout_options.get("sign") != "signed":  # whose rows are not shares
        uniform |= {of: 1 / record.layers[-1].positive.shape[-1] for of, _ in saliency[1:]}
    made = figures.overlays(image, saliency, masks=masks, title=title, uniform=uniform)
    drawn = [writer.figure(f"{name}-overlay", made, f"Attention over the image: {title}")]
    if attributions:
        explained = f"\nexplained: {facts['target']} ({facts['target_probability']:.0%})" if "target" in facts else ""
        maps = [(of if METHODS[of].of_class else f"{of} (of no class)", found) for of, found in attributions.items()]
        made = figures.overlays(image, maps, title=title + explained, signed=_SIGNED, unit="value per patch")
        drawn.append(writer.figure(f"{name}-attribution", made, f"Attribution to each patch: {title}{explained}"))
    made = figures.maps_grid(record, 0, image, kind=options.kind, query=query, title=title)
    drawn.append(writer.figure(f"{name}-maps", made, f"Attention map of every head and layer: {title}"))
    if record.differential:
        made = figures.differential_panels(record, 0, image, query=query, title=title)
        alt = f"First map, lambda times the second, and their difference, of every head: {title}"
        drawn.append(writer.figure(f"{name}-differential", made, alt))
    if mass is not None:
        kept = mass_mask(record.to_patches(-1, options.kind, query)[0], mass)
        what = f"{mass:.0%} of the mass of each head of layer {record.blocks[-1]}"
        made = figures.kept_by_heads(image, kept, title=f"{title}: {what}")
        drawn.append(writer.figure(f"{name}-mass", made, f"The patches that hold {what}: {title}"))
    if options.format == "npz":
        more = {**attributions, **({"rollout": saliency[-1][1]} if options.rollout else {})}
        writer.save(f"{name}.npz", maps_file(record, more))
    return drawn


def maps_file(record: Record, more: Mapping[str, Tensor]) -> bytes:
    """The first image's maps, and more of (rows, columns) by name, as npz; docs/attention.md lists the arrays."""
    arrays: dict[str, np.ndarray] = {"grid": np.array(record.grid), "prefix": np.array(record.prefix)}
    arrays["blocks"] = np.array(record.blocks)
    for block, maps in zip(record.blocks, record.layers, strict=True):
        arrays[f"layer_{block}_positive"] = maps.positive[0].numpy()
        if maps.negative is not None and maps.lam is not None:
            arrays[f"layer_{block}_negative"] = maps.negative[0].numpy()
            arrays[f"layer_{block}_lambda"] = maps.lam.numpy()
    arrays |= {name: saliency.numpy() for name, saliency in more.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _draw_model(
    writer: _Writer, model: LoadedModel, statistics: Sequence[Any], images: int, tokens: int
) -> list[dict[str, str]]:
    """The figures about the model as a whole: its heads, its lambdas, its positions."""
    name = model.name
    text = f"Averages over {images} image{'s' if images > 1 else ''} and over the patches as queries."
    made = figures.heads_figure(statistics, tokens, title=f"What the heads of {name} do")
    drawn = [writer.figure("heads", made, "Entropy, distance and shares of every head, by layer", text)]
    own: Any = model.model
    learnt = isinstance(own, VisionTransformer) and own.lambdas()
    lambdas = {each.block: each.lam for each in statistics if each.lam is not None and learnt}
    if lambdas:
        starts = {layer: plots.lambda_init(own.settings, layer) for layer in lambdas}
        made = figures.lambda_figure(lambdas, starts, title=f"Lambda by layer: {name}")
        drawn.append(writer.figure("lambda", made, "Learned lambda of every layer beside its start"))
    if lambdas and model.folder is not None and (model.folder / "result.json").is_file():
        content = plots.lambdas(arms([read_run(model.folder)])[0])  # a PNG whatever the format
        alt = "Lambda of every layer against the epoch"
        drawn.append(writer.image("lambda-training.png", content, "image/png", alt))
    for kind, similarity in position_similarity(model.model).items():
        made = figures.similarity_figure(similarity, title=f"Similarity of {kind} positions: {name}")
        text = "Each small map: the similarity of that patch's position to every patch's."
        drawn.append(writer.figure(f"positions-{kind}", made, f"Similarity of the {kind} position embeddings", text))
    return drawn
