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
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Report folder; default A/../compare-A-B.")] = None,
    committed: Annotated[
        Path | None,
        Parameter(group=COMMAND, help="Folder with rows.csv and epochs.csv of earlier runs to include."),
    ] = None,
    output: Output = OUTPUT,
) -> None:
    """Compare finished runs: print a table and write a report with curves, lambdas and classes."""
    from diffvit.reporting.render import compare as render

    report = render(runs, out=out, committed=committed)
    show.table(["figure", *(str(row["run"]) for row in report.rows)], figures(report.rows))
    show.line(f"report  {report.path}")
    if output.json:
        show.as_json({"rows": report.rows, "report": report.path})


def figures(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line per figure, a column per run."""
    shown = {
        "attention": ("attention", "{}"),
        "data": ("data", "{}"),
        "epochs": ("epochs", "{}"),
        "seed": ("seed", "{}"),
        "test accuracy": ("test_accuracy", "{:.2%}"),
        "validation accuracy": ("val_accuracy", "{:.2%}"),
        **({"top-5": ("test_top5", "{:.2%}")} if any(row.get("test_top5") for row in rows) else {}),
        "test loss": ("test_loss", "{:.4f}"),
        "parameters": ("parameters", "{:,.0f}"),
        "FLOPs per image": ("flops_per_image", "{:,.0f}"),
        "images/s in training": ("images_per_second", "{:,.0f}"),
        "training seconds": ("train_seconds", "{:,.0f}"),
    }

    def cell(value: Any, form: str) -> str:
        return show.NONE if value is None else form.format(value)

    return [[name, *(cell(row.get(key), form) for row in rows)] for name, (key, form) in shown.items()]
