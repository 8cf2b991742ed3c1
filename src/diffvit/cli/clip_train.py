"""``diffvit clip train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, Output, Quiet, Resume, flags_of
from diffvit.cli.train import default_folder, resumed, run_and_report
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
    resume: Resume = None,
    quiet: Quiet = False,
    output: Output = OUTPUT,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train a small CLIP of our own: images of classes against captions; the captions are set in the file."""
    flags = settings or {}
    resolved = resumed(resume, out, config, flags, ClipConfig) if resume else resolve(config, flags, kind=ClipConfig)
    place = resume or out or default_folder(resolved, "clip-")

    from diffvit.clip.small.task import ContrastiveTask

    run_and_report(resolved, place, resume is not None, quiet, output, _summary, ContrastiveTask())


def _summary(run: RunDir, report: Path) -> dict[str, Any]:
    return {
        "zero-shot, class names": show.percent(run.result["zero_shot_accuracy"]),
        "zero-shot, unseen names": show.percent(run.result["unseen_names_accuracy"]),
        "run folder": run.path,
        "report": report,
        "next": f"diffvit clip classify IMAGE --model {run.path} --labels A,B,C",
    }
