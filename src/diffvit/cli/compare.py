"""``diffvit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import OUTPUT, Output


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
