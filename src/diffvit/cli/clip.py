"""``diffvit clip``: ``classify`` here, ``precision`` in a module of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, Output
from diffvit.config import resolve
from diffvit.errors import ConfigError, InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.load import Clip
    from diffvit.clip.pictures import Named
    from diffvit.clip.zero_shot import Classifier

app = App(name="clip", help_format="plaintext")

app.command(
    "diffvit.cli.clip_precision:precision", name="precision", help="Measure the image encoder in several precisions."
)
app.command(
    "diffvit.cli.clip_train:train",
    name="train",
    help="Train a small CLIP of our own: images against captions.",
    usage="Usage: diffvit clip train [CONFIG.yaml] [OPTIONS]",
)

_NO_TAG = "none"


@app.command(usage="Usage: diffvit clip classify IMAGE... --labels A,B,... [OPTIONS]")
def classify(
    images: Annotated[list[Path], Parameter(name="IMAGE", negative="", help="JPEG, PNG, GIF, BMP or WebP files.")],
    /,
    *,
    labels: Annotated[
        str | None, Parameter(group=COMMAND, help="What there may be, as cat,dog; imagenet-1k for its 1000 names.")
    ] = None,
    labels_file: Annotated[Path | None, Parameter(group=COMMAND, help="The same from a file, one per line.")] = None,
    templates: Annotated[
        str, Parameter(group=COMMAND, help="openai-80, openai-7, single, or a file with {} in each line.")
    ] = "openai-80",
    model: Annotated[str, Parameter(group=COMMAND, help="open_clip's name of the architecture.")] = "RN50",
    pretrained: Annotated[
        str, Parameter(group=COMMAND, help="Which of its weights; of a --weights FILE, what it holds (or none).")
    ] = "openai",
    weights: Annotated[
        Path | None, Parameter(group=COMMAND, help="Weights from a file: OpenAI's archive, .pt, .safetensors.")
    ] = None,
    top: Annotated[int, Parameter(group=COMMAND, help="Labels to name per image.")] = 5,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Folder for a figure and a JSON file.")] = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Name what is on images with labels of your own (zero-shot): the likeliest with their probabilities."""
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")
    place = resolve(None, {} if device is None else {"device": device}).device

    from diffvit.clip.load import load_clip
    from diffvit.clip.pictures import name_pictures, read_pictures
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.clip.zero_shot import zero_shot_classifier

    given, prompts = load_labels(labels, labels_file), load_templates(templates)
    clip = load_clip(model, None if pretrained == _NO_TAG else pretrained, weights, device=place)
    pictures, faults = read_pictures(images, clip.preprocessing)
    if not pictures:
        raise _summed(faults, kept=False)
    classifier = zero_shot_classifier(clip, given, prompts, progress=_Lines())
    named = name_pictures(clip, classifier, pictures, top)
    result = _result(clip, classifier, named, faults)
    _tell(clip, classifier, named)
    if out is not None:
        result["files"] = _write(out, named, result)
        show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    if output.json:
        show.as_json(result)
    if faults:
        raise _summed(faults, kept=True)


def _tell(clip: Clip, classifier: Classifier, named: Sequence[Named]) -> None:
    count = sum(parameter.numel() for parameter in clip.model.parameters())
    prompts = classifier.templates
    show.pairs(
        {
            "model": f"{clip.name}, {count / 1e6:.1f}M parameters, {_dtype(clip)} on {clip.device}",
            "weights": f"{clip.pretrained or 'of unknown training'}, from {clip.source}",
            "preprocessing": clip.preprocessing.words,
            "templates": f"{prompts.name} ({len(prompts.texts)}), as in: {prompts.texts[0]}",
            "labels": f"{len(classifier.labels):,} ({classifier.computed:,} computed now, the others cached)",
        }
    )
    for group in classifier.twins:
        show.line(f"note: classes {' and '.join(map(str, group))} have the same name, {classifier.labels[group[0]]}")
    for each in named:
        rows = [[label, show.percent(chance)] for label, chance in each.top]
        show.table(["label", "probability"], rows, title=str(each.picture.path))


def _result(clip: Clip, classifier: Classifier, named: Sequence[Named], faults: Sequence[InputError]) -> dict[str, Any]:
    return {
        "model": clip.name,
        "pretrained": clip.pretrained,
        "weights": clip.source,
        "dtype": _dtype(clip),
        "device": str(clip.device),
        "preprocessing": clip.preprocessing.words,
        "templates": {"name": classifier.templates.name, "count": len(classifier.templates.texts)},
        "labels": len(classifier.labels),
        "labels_computed": classifier.computed,
        "same_names": [list(group) for group in classifier.twins],
        "images": [each.values() for each in named],
        "failed": [{"image": fault.what, "error": str(fault)} for fault in faults],
    }


def _write(out: Path, named: Sequence[Named], result: dict[str, Any]) -> list[Path]:
    """Figures of a few images each, and the result."""
    from diffvit.clip.pictures import PER_FIGURE, draw_named
    from diffvit.reporting.style import to_png
    from diffvit.training.files import disk_faults, replace, to_json

    title = f"{result['model']} ({result['pretrained'] or 'own weights'}), zero-shot"
    note = f"{result['labels']:,} labels, templates {result['templates']['name']}; {result['preprocessing']}"
    files: list[Path] = []
    with disk_faults(out, "The answers are above."):
        out.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(named), PER_FIGURE):
            name = "classify.png" if len(named) <= PER_FIGURE else f"classify-{first // PER_FIGURE + 1:02}.png"
            made = draw_named(named[first : first + PER_FIGURE], title=title, note=note)
            replace(out / name, to_png(made))
            files.append(out / name)
        replace(out / "classify.json", to_json(result))
    return [*files, out / "classify.json"]


def _summed(faults: Sequence[InputError], *, kept: bool) -> InputError:
    """The first of the faults, and how many more there are."""
    first = faults[0]
    more = f"{len(faults) - 1} more could not be read either." if len(faults) > 1 else ""
    return InputError(first.what, first.why, f"{more} {'The other images are above.' if kept else ''}".strip())


def _dtype(clip: Clip) -> str:
    return str(clip.dtype).removeprefix("torch.")


class _Lines:
    """A line on standard error at most every two seconds, while text features are computed."""

    def __init__(self) -> None:
        self.start, self.last = time.monotonic(), 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.last >= 2 and now - self.start >= 2:
            self.last = now
            print(f"labels: {done:,} of {total:,} ({now - self.start:.0f} s)", file=sys.stderr, flush=True)
