"""``diffvit evaluate``, ``diffvit predict`` and ``diffvit compare``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import (
    OUTPUT,
    PLACE,
    SWITCH,
    DataDir,
    InputSize,
    Output,
    Place,
    refuse_folder,
    size_of,
)
from diffvit.errors import ConfigError, sides
from diffvit.files import to_csv, to_json, write_file

if TYPE_CHECKING:
    from diffvit.training.evaluate import Predictions

Run = Annotated[str, Parameter(help="Run folder, model.safetensors, or the name of a packaged model.")]


def evaluate(
    run: Run,
    /,
    *,
    split: Annotated[Literal["test", "validation", "train"], Parameter(help="Which images.")] = "test",
    data: Annotated[str | None, Parameter(help="Data source; by default the run's own.")] = None,
    data_dir: DataDir = None,
    size: InputSize = None,
    robustness: Annotated[
        bool,
        SWITCH,
        Parameter(help="Also on 1,000 test images that are corrupted, or changed by an adversary."),
    ] = False,
    place: Place = PLACE,
    output: Output = OUTPUT,
) -> None:
    """Evaluate a trained model on labelled images: accuracy, top-5, calibration, precision and recall by class."""
    where = place.resolved()
    if robustness and (split != "test" or data or size):
        hint = "Leave out --split, --data and --size."
        raise ConfigError("--robustness", "is measured on the run's own test images, at its own size", hint)

    from diffvit.training.evaluate import evaluate as score

    shown = partial(_print_figures, OUTPUT if robustness else output)
    found = score(run, split=split, data=data, data_dir=data_dir, size=size_of(size), show=shown, **where)
    if robustness:
        from diffvit.training.robustness import robustness as measure

        held = measure(
            run,
            data_dir=data_dir,
            progress=None if output.json else show.Lines("parts"),
            device=where["device"],
            precision=where["precision"],
        )
        _print_robustness(held)
        output.as_json({**_without_lists(found), "robustness": held})


def _without_lists(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("labels", "predictions")}


def _print_robustness(found: dict[str, Any]) -> None:
    show.line(f"{found['images']:,} test images, as they are: {show.percent(found['accuracy'])}")
    for first, level, words in (("corruption", "severity", "severity {}"), ("attack", "epsilon", "{:g}/255")):
        rows = found[f"{first}s"]
        columns = {words.format(row[level]): None for row in rows}
        cells: dict[str, list[str]] = {}
        for row in rows:
            cells.setdefault(row[first], []).append(show.percent(row["accuracy"]))
        show.table([first, *columns], [[name, *each] for name, each in cells.items()])
    show.line(f"mean corruption error: {show.percent(found['corruption_error'])}")


def _print_figures(output: Output, found: dict[str, Any]) -> None:
    """Print the figures, as they are computed: a run folder that cannot be written to does not lose them."""
    from diffvit.reporting.tables import reading_order

    # Of the images that are the data set's own pixels, where some are not.
    other = found.get("image_size")
    exact = f"{show.percent(found.get('accuracy_exact'))} ({found.get('images_exact', 0):,} images)"
    low, high = (100 * bound for bound in found["accuracy_interval"])
    said = {
        "model": found["run"],
        "images": f"{found['images']:,} ({found['data']}, {found['split']})",
        "image size": "x".join(map(str, sides(other))) + ", not the one trained for" if other else None,
        "note": found.get("data_note"),
        "accuracy": f"{show.percent(found['accuracy'])} ({low:.1f} to {high:.1f}%)",
        "exact images": exact if "accuracy_exact" in found else None,
        "balanced accuracy": show.percent(found["balanced_accuracy"]),
        "macro-F1": show.percent(found["macro_f1"]),
        "top-5": None if found["top5"] is None else show.percent(found["top5"]),
        "calibration error": show.percent(found["calibration_error"]),
        "loss": f"{found['loss']:.4f}",
        "parameters": f"{found['parameters']:,}",
        "FLOPs per image": f"{found['flops_per_image']:,}",
        "images/s": f"{found['images_per_second']:,.0f} ({found['device']}, {found['precision']})",
    }
    show.pairs({name: value for name, value in said.items() if value is not None})
    columns = [found["per_class_precision"], found["per_class_recall"]]
    rows = [
        [found["classes"][at], f"{sum(found['confusion'][at]):,}", *(show.percent(column[at]) for column in columns)]
        for at in reading_order(found["classes"])
    ]
    show.table(["class", "images", "precision", "recall"], rows)
    output.as_json(_without_lists(found))


_FIRST = 1000  # images that are printed; files have all


def predict(
    run: Run,
    images: Annotated[list[str], Parameter(name="IMAGE", help="Image files, folders or patterns.")],
    /,
    *,
    top: Annotated[int, Parameter(help="Classes to name per image.")] = 5,
    out: Annotated[Path | None, Parameter(help="Write the table to this .csv or .jsonl file.")] = None,
    size: InputSize = None,
    place: Place = PLACE,
    quiet: Annotated[bool, SWITCH, Parameter(help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """Classify image files: the most probable classes with their probabilities.

    Files that cannot be read are listed at the end; all others are classified.
    """
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")
    if out is not None and out.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError("--out", f"must end in .csv or .jsonl (found {out})")
    if out is not None:
        refuse_folder(out.parent)
    where = place.resolved()

    from diffvit.training.evaluate import predict as classify

    progress = None if quiet or output.json else show.Lines("images")
    found = classify(run, images, size=size_of(size), skip_bad=True, progress=progress, **where)
    if len(found):
        _print(found, top)
    if out is not None and len(found):
        rows = found.rows(top)
        jsonl = out.suffix.lower() == ".jsonl"
        write_file(out, b"".join(to_json(row, indent=None) for row in rows) if jsonl else to_csv(rows))
    named = zip(found.paths or (), found.top(top), strict=True)
    listed = [{"image": path, "top": best} for path, best in named]
    output.as_json({"images": listed, "bad": [{"image": each.what, "why": each.why} for each in found.bad]})
    written = f" and in {out}" if out is not None else ""
    show.refuse_bad("predict", found.bad, len(found), f"The others are in the table{written}.")


def _print(found: Predictions, top: int) -> None:
    """One line for each image: its path, then the classes that the width has room for; long names are shortened."""
    best, names = found.top(top)[:_FIRST], [str(path) for path in (found.paths or ())[:_FIRST]]
    cells = [[f"{show.shortened(label, 24)} {value:.1%}" for label, value in each] for each in best]
    columns = ["image", *("class" if rank == 1 else f"{rank}." for rank in range(1, len(cells[0]) + 1))]
    show.one_line_table(columns, [[name, *row] for name, row in zip(names, cells, strict=True)])
    if len(found) > _FIRST:
        show.line(f"the first {_FIRST:,} of {len(found):,} images; --out and --json have all")


def compare(
    runs: Annotated[list[Path], Parameter(name="RUN", help="Run folders, one or more.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Report folder; default A/../compare-A-B.")] = None,
    committed: Annotated[
        Path | None, Parameter(help="Folder with rows.csv and epochs.csv of earlier runs to include.")
    ] = None,
    output: Output = OUTPUT,
) -> None:
    """Compare finished runs: print a table and write a report with curves, lambdas and classes."""
    from diffvit.reporting.render import compare as render

    report = render(runs, out=out, committed=committed)
    show.table(report.figures.columns, report.figures.rows)
    show.line(f"report  {report.path}")
    output.as_json({"rows": report.rows, "report": report.path})
