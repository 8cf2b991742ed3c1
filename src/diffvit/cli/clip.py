"""``diffvit clip``: ``classify`` here, the others in modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.clip_options import CLIP, ClipChoice, Lines, summed
from diffvit.cli.options import COMMAND, OUTPUT, Output
from diffvit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from diffvit.clip.classify import Named
    from diffvit.clip.load import Clip
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
app.command(
    "diffvit.cli.clip_evaluate:evaluate",
    name="evaluate",
    help="Accuracy on labelled pictures: a folder, ImageNet's layout, CIFAR-10.",
)
app.command(
    "diffvit.cli.clip_evaluate:compare",
    name="compare",
    help="CLIP beside a supervised model, by category, as one page.",
)
app.command(
    "diffvit.cli.clip_evaluate:published",
    name="published",
    help="Every figure that needs published weights, in one go.",
)


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
    top: Annotated[int, Parameter(group=COMMAND, help="Labels to name per image.")] = 5,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Folder for a figure and a JSON file.")] = None,
    choice: ClipChoice = CLIP,
    output: Output = OUTPUT,
) -> None:
    """Name what is on images with labels of your own (zero-shot): the likeliest with their probabilities."""
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")

    from diffvit.clip.classify import name_pictures, read_pictures
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.clip.zero_shot import zero_shot_classifier

    given, prompts = load_labels(labels, labels_file), load_templates(templates)
    clip = choice.load()
    pictures, faults = read_pictures(images, clip.preprocessing)
    if not pictures:
        raise summed(faults)
    classifier = zero_shot_classifier(clip, given, prompts, progress=Lines("labels"))
    show.warn(classifier.warnings)
    named = name_pictures(clip, classifier, pictures, top)
    result = _result(clip, classifier, named, faults)
    _tell(clip, classifier, named)
    if out is not None:
        result["files"] = _write(out, named, result)
        show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    if output.json:
        show.as_json(result)
    if faults:
        raise summed(faults, "The other images are above.")


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
        **{"unknown_words": list(classifier.unknown), "cut_labels": list(classifier.cut)},
        "images": [each.values() for each in named],
        "failed": [{"image": fault.what, "error": str(fault)} for fault in faults],
    }


def _write(out: Path, named: Sequence[Named], result: dict[str, Any]) -> list[Path]:
    """Figures of a few images each, and the result."""
    from diffvit.clip.classify import PER_FIGURE, draw_named
    from diffvit.files import disk_faults, replace, to_json
    from diffvit.reporting.style import to_png

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


def _dtype(clip: Clip) -> str:
    return str(clip.dtype).removeprefix("torch.")
