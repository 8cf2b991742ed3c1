"""``diffvit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, Output


def compare(
    runs: Annotated[list[Path], Parameter(name="RUN", negative="", help="Run folders, one or more.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Report folder; default compare-A-B beside A.")] = None,
    committed: Annotated[
        Path | None,
        Parameter(group=COMMAND, help="Folder with rows.csv and epochs.csv of earlier runs, to take part too."),
    ] = None,
    output: Output = OUTPUT,
) -> None:
    """Put finished runs side by side: a table here, and a report with curves, lambdas and classes."""
    from diffvit.reporting.render import compare as render

    report = render(runs, out=out, committed=committed)
    show.table(["figure", *(str(row["run"]) for row in report.rows)], figures(report.rows))
    show.line(f"report  {report.path}")
    if output.json:
        show.as_json({"rows": report.rows, "report": report.path})


def figures(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line per figure, a column per run."""

    def count(value: Any) -> str:
        return show.NONE if value is None else f"{value:,.0f}"

    shown = {
        "attention": ("attention", str),
        "data": ("data", str),
        "epochs": ("epochs", str),
        "seed": ("seed", str),
        "test accuracy": ("test_accuracy", show.percent),
        "validation accuracy": ("val_accuracy", show.percent),
        "top-5": ("test_top5", show.percent),
        "test loss": ("test_loss", lambda value: show.NONE if value is None else f"{value:.4f}"),
        "parameters": ("parameters", count),
        "FLOPs per image": ("flops_per_image", count),
        "images/s in training": ("images_per_second", count),
        "training seconds": ("train_seconds", count),
    }
    shown = {name: each for name, each in shown.items() if name != "top-5" or any(row.get(each[0]) for row in rows)}
    return [[name, *(form(row.get(key)) for row in rows)] for name, (key, form) in shown.items()]
