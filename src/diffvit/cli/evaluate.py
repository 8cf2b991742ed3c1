"""``diffvit evaluate`` and ``diffvit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, PLACE, DataDir, Output, Place
from diffvit.errors import ConfigError

Run = Annotated[str, Parameter(help="Run folder, model.safetensors, or the name of a packaged model.")]


def evaluate(
    run: Run,
    /,
    *,
    split: Annotated[Literal["test", "validation", "train"], Parameter(group=COMMAND, help="Which images.")] = "test",
    data: Annotated[str | None, Parameter(group=COMMAND, help="Data source; by default the run's own.")] = None,
    data_dir: DataDir = None,
    place: Place = PLACE,
    output: Output = OUTPUT,
) -> None:
    """Evaluate a trained model on labelled images: accuracy, top-5, calibration, accuracy by class."""
    where = place.resolved()

    from diffvit.reporting.tables import reading_order
    from diffvit.training.evaluate import evaluate as score
    from diffvit.training.memory import keep_freed_memory

    keep_freed_memory()
    found = score(run, split=split, data=data, data_dir=data_dir, **where)
    # Of the images that are the data set's own pixels, where some are not.
    exact = f"{show.percent(found.get('accuracy_exact'))} ({found.get('images_exact', 0):,} images)"
    said = {
        "model": run,
        "images": f"{found['images']:,} ({found['data']}, {split})",
        "note": found.get("data_note"),
        "accuracy": show.percent(found["accuracy"]),
        "exact images": exact if "accuracy_exact" in found else None,
        "top-5": None if found["top5"] is None else show.percent(found["top5"]),
        "calibration error": show.percent(found["calibration_error"]),
        "loss": f"{found['loss']:.4f}",
        "parameters": f"{found['parameters']:,}",
        "FLOPs per image": f"{found['flops_per_image']:,}",
        "images/s": f"{found['images_per_second']:,.0f} ({found['device']}, {found['precision']})",
    }
    show.pairs({name: value for name, value in said.items() if value is not None})
    order, per_class = reading_order(found["classes"]), found["per_class_accuracy"]
    show.table(["class", "accuracy"], [[found["classes"][at], show.percent(per_class[at])] for at in order])
    if output.json:
        show.as_json({key: value for key, value in found.items() if key not in ("labels", "predictions")})


def predict(
    run: Run,
    images: Annotated[list[Path], Parameter(name="IMAGE", negative="", help="JPEG, PNG, GIF, BMP or WebP files.")],
    /,
    *,
    top: Annotated[int, Parameter(group=COMMAND, help="Classes to name per image.")] = 5,
    place: Place = PLACE,
    output: Output = OUTPUT,
) -> None:
    """Classify image files: the most probable classes with their probabilities."""
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")
    where = place.resolved()

    from diffvit.training.evaluate import predict as name

    found = name(run, images, top=top, **where)
    for image in found:
        rows = [[label, show.percent(chance)] for label, chance in image["top"]]
        show.table(["class", "probability"], rows, title=image["image"])
    if output.json:
        show.as_json({"images": found})
