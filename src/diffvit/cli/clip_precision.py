"""``diffvit clip precision``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output, numbers_of, refuse_folder
from diffvit.clip.precision_settings import BATCH_SIZES, FOLDER, Plan
from diffvit.config import resolve
from diffvit.errors import ConfigError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.encoder import Load

PLAN = Plan()
SIZES = ",".join(map(str, BATCH_SIZES))


def loader() -> Load:
    """What reads a file of CLIP weights: OpenAI's RN50, archive or state dict."""
    from diffvit.clip.load import load_clip

    return lambda path: load_clip("RN50", "openai", path).model


def precision(
    *,
    batch_sizes: Annotated[str, Parameter(group=COMMAND, help="Images per pass, with commas.")] = SIZES,
    budget: Annotated[float, Parameter(group=COMMAND, help="Seconds for everything together.")] = PLAN.budget,
    images: Annotated[int, Parameter(group=COMMAND, help="Pictures the drift is measured on.")] = PLAN.images,
    data_dir: DataDir = None,
    weights: Annotated[Path | None, Parameter(group=COMMAND, help="CLIP RN50 weights; random without.")] = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    threads: Annotated[
        int | None, Parameter(group=COMMAND, show_default="0", help="CPU threads; 0 is all usable cores.")
    ] = None,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for precision.json, the plot and report.md.")] = FOLDER,
    quiet: Annotated[bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """CLIP's image encoder in several precisions: speed, memory, drift of the embeddings.

    Strict FP32, TF32 (CUDA), FP16, BF16 and autocast, each in two memory formats. A precision counts only where it was
    observed in the products of the pass.
    """
    plan = Plan(numbers_of("--batch-sizes", batch_sizes), budget, images)
    refuse_folder(out)
    given = {name: value for name, value in (("device", device), ("threads", threads)) if value is not None}
    config = resolve(None, given)

    from diffvit.clip.precision import run
    from diffvit.clip.precision_report import REPORT, drift_table, speed_tables, update
    from diffvit.measuring import write
    from diffvit.training.environment import resolve_device

    result = run(
        plan,
        data_dir=data_dir,
        weights=weights,
        load=loader(),
        device=resolve_device(config.device),
        threads=config.threads,
        tell=lambda line: None if quiet else print(line, file=sys.stderr, flush=True),
    )
    if all(row["reason"] for row in result["rows"]):
        why = f"{budget:g} seconds were too short to time a single pass"
        raise ConfigError("--budget", why, "Nothing was written; give more, or smaller --batch-sizes.")
    for found in (*speed_tables(result), drift_table(result)):
        show.table(found.columns, found.rows)
    write(result, out)
    update(out)
    show.line(f"report  {out / REPORT}")
    if output.json:
        show.as_json({**result, "report": out / REPORT})
