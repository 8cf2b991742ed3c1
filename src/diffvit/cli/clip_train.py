"""``diffvit clip train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, Output, flags_of
from diffvit.cli.train import default_folder, resumed
from diffvit.config import ClipConfig, resolve

if TYPE_CHECKING:
    from diffvit.training.run_dir import RunDir

    Settings = dict[str, Any]
else:
    Settings = flags_of(ClipConfig, without=frozenset({"captions", "objective"}))


def train(
    config: Annotated[Path | None, Parameter(help="YAML file with settings; see configs/clip_cifar10.yaml.")] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Run folder; default runs/DATA-clip-...")] = None,
    resume: Annotated[Path | None, Parameter(group=COMMAND, help="Run folder of a stopped run to resume.")] = None,
    quiet: Annotated[
        bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress and no summary.")
    ] = False,
    output: Output = OUTPUT,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train a small CLIP of our own: images of classes against captions; the captions are set in the file."""
    flags = settings or {}
    resolved = resumed(resume, out, config, flags, ClipConfig) if resume else resolve(config, flags, kind=ClipConfig)
    place = resume or out or default_folder(resolved, "clip-")

    from diffvit.clip.small.task import ContrastiveTask
    from diffvit.training.loop import train as run_training
    from diffvit.training.memory import keep_freed_memory
    from diffvit.training.progress import make_progress

    keep_freed_memory()
    progress = make_progress(quiet)
    run = run_training(resolved, out=place, resume=resume is not None, progress=progress, task=ContrastiveTask())
    if int(os.environ.get("RANK", "0")):
        return  # of many processes the first one reports

    from diffvit.reporting.render import run_report

    report = run_report(run)
    if not quiet:
        _summary(run, report)
    if output.json:
        show.as_json({**run.result, "run": run.path, "report": report})


def _summary(run: RunDir, report: Path) -> None:
    result = run.result
    show.pairs(
        {
            "zero-shot, class names": show.percent(result["zero_shot_accuracy"]),
            "zero-shot, unseen names": show.percent(result["unseen_names_accuracy"]),
            "run folder": run.path,
            "report": report,
            "next": f"diffvit clip classify IMAGE --model {run.path} --labels A,B,C",
        }
    )
