"""``diffvit attention``."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from diffvit.cli import show
from diffvit.cli.options import OUTPUT, SWITCH, DeviceFlag, Output, refuse_folder, settings_of, size_of
from diffvit.errors import ConfigError, InputError, check_choice, sides

_FIRST = "0-3"  # of the test set, where no image is named


@Parameter(name="*", group=Group("Model and images", sort_key=2))
@dataclass(frozen=True)
class Selection:
    """Which model, and which images."""

    index: str | None = None
    """Test images by index, as 0-7 or 3,12; default 0-3 if no image is given."""
    split: Literal["test", "validation", "train"] = "test"
    """Split that --index refers to."""
    data: str | None = None
    """Data source; by default the run's own."""
    data_dir: Path | None = None
    """Folder of the data; default DIFFVIT_DATA for CIFAR-10, else the folder recorded in the run."""
    pretrained: str | None = None
    """A pretrained ViT instead of a run: timm's name (vit_small_patch16_224.dino), hf:NAME or hf:FOLDER,
    torchvision:NAME or open_clip:ARCHITECTURE/TAG; then all arguments are images."""
    weights: Path | None = None
    """Weights file to read instead of downloading: DINO's own or timm's, .pth or .safetensors; or a DINOv2 in .onnx."""
    size: str | None = None
    """Side of a run's input, or HEIGHT,WIDTH, pixels, if not the one trained for; positions are interpolated. For
    pretrained models the shorter side of an image, by default its own, at most 480."""


@Parameter(name="*", group=Group("Maps", sort_key=3))
@dataclass(frozen=True)
class Drawing:
    """Which maps are drawn, and how."""

    layers: str | None = None
    """Blocks to draw, as 0,3 or 0-2, -1 for the last; default all."""
    query: str | None = None
    """The query patch, as ROW,COLUMN; by default what the model pools: [CLS], or the mean over the patches."""
    kind: Literal["effective", "positive", "negative"] = "effective"
    """Map of a differential head: A1 - lambda A2 (effective), A1 (positive) or A2 (negative)."""
    mass: float | None = None
    """Mark the fewest patches that together hold this share of the last layer's attention (DINO: 0.6)."""
    form: Annotated[Literal["png", "svg", "npz"], Parameter(name="--format")] = "png"
    """Figures as png or svg, or npz: the maps themselves, for other programs."""


@Parameter(name="*", group=Group("Rollout", sort_key=4))
@dataclass(frozen=True)
class Rollout:
    """Options of attention rollout."""

    rollout: Annotated[bool, SWITCH] = False
    """Draw attention rollout through all layers (arXiv 2005.00928)."""
    fusion: Literal["mean", "max", "min"] = "mean"
    """How the heads' maps are combined."""
    discard: float = 0.0
    """Share of each row's lowest entries to discard."""
    residual: float = 0.5
    """Weight of the identity, for the residual branch."""
    start: int | None = None
    """First layer of the rollout."""
    sign: Literal["clamp", "positive", "abs", "signed"] = "clamp"
    """How rollout uses signed (differential) maps; see docs/attention.md."""


@Parameter(name="*", group=Group("Attribution", sort_key=5))
@dataclass(frozen=True)
class Attribution:
    """What each patch contributes to a class's logit."""

    method: str | None = None
    """Methods, as attnlrp,grad-cam, or all; drawn over each image, and scored with --score; see docs/attention.md."""
    target: str | None = None
    """Class to explain, by name or index; by default the one that the model predicts for each image."""


def attention(
    things: Annotated[
        tuple[str, ...],
        Parameter(name="RUN IMAGE", show_default=False, help="A run, then image files, folders or patterns."),
    ] = (),
    /,
    *,
    score: Annotated[bool, SWITCH, Parameter(help="Score the maps on the test set: a table and plots.")] = False,
    score_images: Annotated[int, Parameter(help="Number of test images to score.")] = 500,
    out: Annotated[Path | None, Parameter(help="Output folder; default RUN/attention, or attention-NAME.")] = None,
    device: DeviceFlag = None,
    what: Selection = Selection(),
    draw: Drawing = Drawing(),
    follow: Rollout = Rollout(),
    explain: Attribution = Attribution(),
    output: Output = OUTPUT,
) -> None:
    """Draw attention maps of every head and layer, with rollout, attribution to patches and scores."""
    pretrained = what.pretrained is not None or what.weights is not None
    if pretrained and what.index is not None:
        raise ConfigError("--index", "selects a run's test images; a pretrained model has none", "Name image files.")
    if not pretrained and not things:
        hint = "As in: diffvit attention cifar10-vit --index 0-7"
        raise ConfigError("attention", "no model given (a RUN, or --pretrained NAME)", hint)
    reference = None if pretrained else things[0]
    files = things if pretrained else things[1:]
    layers = None if draw.layers is None else _numbers("--layers", draw.layers)
    query = None if draw.query is None else _pair("--query", draw.query)
    index = None if what.index is None else _numbers("--index", what.index)
    if score and reference is None:
        raise ConfigError("--score", "needs a run: a pretrained model has no labelled images here")
    if score_images < 1:
        raise ConfigError("--score-images", f"must be at least 1 (found {score_images})")
    if follow.rollout and layers is not None:
        hint = "Give one of them; --start says where to begin."
        raise ConfigError("--rollout", "follows every layer: --layers leaves some out", hint)
    if explain.target is not None and (score or explain.method is None):
        why = f"goes with --method, and without --score (found {explain.target!r})"
        raise ConfigError("--target", why, "Scores are of the class that the model predicts.")
    size = size_of(what.size)
    if pretrained and isinstance(size, tuple):
        raise ConfigError("--size", f"is one side for a pretrained model, which keeps an image's shape (found {size})")
    side = size if pretrained and isinstance(size, int) else None  # of the image as it is
    place = settings_of(device=device).device

    from diffvit.attention import METHODS, inputs, report, scores

    wanted = [] if explain.method is None else [part.strip() for part in explain.method.split(",")]
    methods = list(METHODS) if wanted == ["all"] else list(dict.fromkeys(wanted))
    for method in methods:
        check_choice("method", method, METHODS)
    model = inputs.load_model(reference, pretrained=what.pretrained, weights=what.weights, size=size, device=place)
    own = Path(reference or "", "attention") if model.folder else Path(f"attention-{model.name}")
    if model.resized:
        own = own.with_name(f"{own.name}-{'x'.join(map(str, sides(model.model.settings['image_size'])))}")
    out = own if out is None else out
    refuse_folder(out)  # before the images are read and the maps computed
    bad: list[InputError] = []
    data: dict[str, Any] = {"split": what.split, "data": what.data, "data_dir": what.data_dir}
    result: dict[str, Any] = {"model": model.name}
    if files or index is not None or not score:
        samples, bad = inputs.read_samples(files, model, size=side)
        if reference is not None and not files and index is None:
            index = _numbers("--index", _FIRST)
            show.line(f"no image named: taking --index {_FIRST}")
        if index is not None:
            samples += inputs.samples_of(inputs.labelled_images(model, **data), index)
        rules = {name: value for name, value in vars(follow).items() if name != "rollout"}
        options = report.MapOptions(
            layers, draw.kind, query, follow.rollout, rules, draw.mass, draw.form, methods, explain.target
        )
        if samples or not bad:
            command = shlex.join(["diffvit", *sys.argv[1:]])
            page, written, pictures = report.write_report(model, samples, options, out, command=command)
            _print_images(pictures)
            show.line(f"page    {page}")
            show.line(f"files   {len(written)} in {out}")
            result |= {"page": page, "files": written, "pictures": pictures}
    if score:
        scored, tables, written = scores.write_scores(model, out, count=score_images, methods=methods, **data)
        for title, columns, rows in tables:
            show.table(columns, rows, title=title)
        show.line(f"scores  {', '.join(map(str, written))}")
        result |= {"scores": scored}
    output.as_json(result | {"bad": [{"image": each.what, "why": each.why} for each in bad]})
    show.refuse_bad("attention", bad, len(result.get("pictures", ())), f"The others are in {out}.")


def _print_images(images: list[dict[str, Any]]) -> None:
    names = {"label": "label", "prediction": "prediction", "probability": "probability", "target": "explained"}
    names |= {"target_probability": "its probability", "pointing": "peak on object", "mass": "mass on object"}
    columns = [key for key in names if any(image.get(key) not in (None, "") for image in images)]
    rows = [[image["name"], *(_cell(key, image.get(key)) for key in columns)] for image in images]
    show.table(["image", *(names[key] for key in columns)], rows)
    scored = [(image["name"], *each) for image in images for each in image.get("attribution", {}).items()]
    rows = [[name, method, *(_cell(key, of[key]) for key in ("pointing", "mass"))] for name, method, of in scored]
    if rows:
        show.table(["image", "method", names["pointing"], names["mass"]], rows, title="Attribution")


def _cell(key: str, value: Any) -> str:
    if key == "pointing" and value is not None:
        return {1.0: "yes", 0.0: "no"}.get(value, str(value))
    return show.percent(value) if isinstance(value, float | None) else value


def _numbers(flag: str, text: str) -> list[int]:
    """``0-3,7`` as [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        single, span = re.fullmatch(r"\s*(-?\d{1,9})\s*", part), re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", part)
        if single:
            found.append(int(single[1]))
        elif span and int(span[1]) <= int(span[2]) < int(span[1]) + 10_000:
            found += range(int(span[1]), int(span[2]) + 1)
        else:
            raise ConfigError(flag, f"is not a list of numbers (found {text!r} vs for example 0-3,7)")
    return list(dict.fromkeys(found))


def _pair(flag: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if not found:
        raise ConfigError(flag, f"is not a patch (found {text!r} vs ROW,COLUMN, counted from 0)")
    return int(found[1]), int(found[2])
