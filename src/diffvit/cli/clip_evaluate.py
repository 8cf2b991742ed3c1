"""``diffvit clip evaluate``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.clip_options import (
    CLIP,
    PICTURES,
    SUPERVISED,
    ClipChoice,
    Lines,
    PicturesChoice,
    SupervisedChoice,
    summed,
)
from diffvit.cli.options import COMMAND, OUTPUT, Output, refuse_folder

ALL = 20  # classes in the table; of more, so many of the worst and best together
Result = Mapping[str, Any]


def evaluate(
    where: Annotated[str, Parameter(name="WHERE", help="cifar10, or a folder with a folder per class.")],
    /,
    *,
    templates: Annotated[
        str, Parameter(group=COMMAND, help="openai-80, openai-7, single, or a file with {} in each line.")
    ] = "openai-80",
    labels_file: Annotated[
        Path | None, Parameter(group=COMMAND, help="Names for the classes, one per line in the folders' order.")
    ] = None,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Folder for evaluate.json and per_class.csv.")] = None,
    choice: ClipChoice = CLIP,
    beside: SupervisedChoice = SUPERVISED,
    pictures: PicturesChoice = PICTURES,
    output: Output = OUTPUT,
) -> None:
    """Accuracy on labelled pictures: CLIP zero-shot and, if asked, a supervised ResNet-50 on the same.

    Folders named by WordNet ids, as in ImageNet's validation layout, get its names. What was computed for a picture is
    kept in the user's cache: an interrupted call goes on, a repeated one reads.
    """
    beside.check()
    if out is not None:
        refuse_folder(out)

    from diffvit.clip.evaluation.evaluate import evaluate as run
    from diffvit.clip.evaluation.evaluate import subject_of
    from diffvit.clip.templates import load_labels, load_templates

    prompts = load_templates(templates)
    names = None if labels_file is None else load_labels(None, labels_file)
    subject = subject_of(pictures.open(where), names, supervised=beside.supervised is not None)
    clip = choice.load()
    resnet = beside.load(choice.place)
    found = run(clip, resnet, subject, prompts, watch=Lines)
    result = found.result
    if result["unreadable"] == result["images"]:
        raise summed(found.faults)
    show.warn(found.classifier.warnings)
    _tell(result)
    if out is not None:
        result["files"] = _write(out, result)
        show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    if output.json:
        show.as_json(result)
    if found.faults:
        raise summed(found.faults, "Everything else is above.")


def _tell(result: Result) -> None:
    used, classes = result["templates"], result["classes"]
    unreadable = f", {result['unreadable']:,} unreadable" if result["unreadable"] else ""
    show.pairs(
        {
            "data": f"{result['data']}, {result['images']:,} pictures{unreadable}, {len(classes):,} classes",
            "templates": f"{used['name']} ({used['count']}), as in: {used['first']}",
            "labels": f"{len(classes):,} ({result['labels_computed']:,} computed now, the others cached)",
        }
    )
    if result["left_out"]:
        names = ", ".join(result["left_out"][:10]) + (", ..." if len(result["left_out"]) > 10 else "")
        why = "ImageNet has no class for it, and no model is asked"
        show.line(f"note: left out: {names} ({len(result['left_out']):,}): {why}")
    for group in result["same_names"]:
        show.line(f"note: classes {' and '.join(map(str, group))} have the same name, {classes[group[0]]}")
    for model in result["models"]:
        show.line()
        show.pairs(_figures(model))
    show.line()
    _table(result["models"], classes)


def _figures(model: Result) -> dict[str, str]:
    """A model and how good it is."""
    speed = f", {model['images_per_second']:.1f} images/s" if model["images_per_second"] else ""
    among = f"{show.percent(model['low'])} to {show.percent(model['high'])}"
    size = f"{model['parameters'] / 1e6:.1f}M parameters"
    return {
        "model": f"{model['model']}, {size}, {model['dtype']} on {model['device']}",
        "weights": model["weights"],
        "preprocessing": model["preprocessing"],
        "pictures": f"{model['images']:,} ({model['computed']:,} computed now, the others cached{speed})",
        "accuracy": f"{show.percent(model['accuracy'])} (95% interval {among})",
        **({} if model["top5"] is None else {"top-5": show.percent(model["top5"])}),
        "calibration error": show.percent(model["calibration_error"]),
        "mean confidence": show.percent(model["mean_confidence"]),
    }


def _table(models: Sequence[Result], classes: Sequence[str]) -> None:
    """Each class; of many, those that the first model does worst and best at."""
    from diffvit.reporting.tables import reading_order

    first = models[0]["per_class"]
    with_images = [place for place in reading_order(classes) if first[place]["images"]]
    chosen, title = with_images, "each class"
    if len(classes) > ALL:
        order = sorted(with_images, key=lambda place: first[place]["accuracy"])
        half = ALL // 2
        chosen = order if len(order) <= ALL else [*order[:half], *order[-half:]]
        title = f"the worst and the best of {len(classes):,} classes, by {models[0]['model']}"
    rows = [
        [
            classes[place],
            f"{first[place]['images']:,}",
            *(
                f"{show.percent(each['accuracy'])} ({show.percent(each['low'])} to {show.percent(each['high'])})"
                for each in (model["per_class"][place] for model in models)
            ),
        ]
        for place in chosen
    ]
    show.line(title)  # the table's own title would be folded to its width
    show.table(["class", "pictures", *(model["model"] for model in models)], rows)


def _write(out: Path, result: Result) -> list[Path]:
    """The result, and a line per model and class."""
    from diffvit.training.files import disk_faults, replace, to_json

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["model", "class", "wordnet_id", "images", "accuracy", "low", "high"])
    ids = result["wordnet_ids"] or [""] * len(result["classes"])
    for model in result["models"]:
        for wordnet_id, row in zip(ids, model["per_class"], strict=True):
            figures = [row[name] for name in ("images", "accuracy", "low", "high")]
            writer.writerow([model["model"], row["class"], wordnet_id, *figures])
    files = {"evaluate.json": to_json(dict(result)), "per_class.csv": table.getvalue().encode()}
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]
