"""``diffvit clip``: which CLIP, ``train``, ``classify`` and ``precision``; the others are in a module of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from diffvit.cli import show
from diffvit.cli.options import (
    COMMAND,
    OUTPUT,
    DataDir,
    Output,
    Quiet,
    Resume,
    flags_of,
    numbers_of,
    refuse_folder,
)
from diffvit.cli.train import default_folder, resumed, run_and_report
from diffvit.config import ClipConfig, resolve
from diffvit.errors import ConfigError, InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.load import Clip
    from diffvit.training.run_dir import RunDir

    Settings = dict[str, Any]
else:
    Settings = flags_of(ClipConfig, without=frozenset({"captions", "objective"}))

app = App(name="clip", help_format="plaintext")
for _name, _help in (
    ("evaluate", "Measure zero-shot accuracy on a labelled folder, ImageNet or CIFAR-10."),
    ("compare", "Compare CLIP with a supervised model by class, as one page."),
    ("published", "Compute all results that need published weights."),
):
    app.command(f"diffvit.cli.clip_evaluate:{_name}", name=_name, help=_help)


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class ClipChoice:
    """A CLIP and where it runs."""

    model: str = "RN50"
    """open_clip's architecture name, or a small CLIP trained with diffvit: cifar10-clip or a run folder."""
    pretrained: str = "openai"
    """Tag of the weights; with --weights FILE, the tag of what the file holds, or none."""
    weights: Path | None = None
    """Weights from a file: OpenAI's archive, .pt, .safetensors."""
    device: Annotated[Device | None, Parameter(show_default="auto")] = None
    """Where to run."""

    @property
    def place(self) -> str:
        """The device: flag > environment > default."""
        return resolve(None, {} if self.device is None else {"device": self.device}).device

    def load(self) -> Clip:
        """The model, in a process that keeps freed memory: each batch asks for the same large blocks again."""
        from diffvit.clip.load import load_clip
        from diffvit.clip.small.load import is_own, load_small
        from diffvit.kernels import accelerate
        from diffvit.training.memory import keep_freed_memory

        keep_freed_memory()
        if self.weights is None and is_own(self.model):
            clip = load_small(self.model, device=self.place)
            accelerate(clip.model)
            return clip
        pretrained = None if self.pretrained == "none" else self.pretrained
        return load_clip(self.model, pretrained, self.weights, device=self.place)


CLIP = ClipChoice()


def summed(faults: Sequence[InputError], kept: str = "") -> InputError:
    """The first of the faults, how many more there are, and what was done all the same."""
    first = faults[0]
    more = f"{len(faults) - 1} more could not be read either." if len(faults) > 1 else ""
    return InputError(first.what, first.why, f"{more} {kept}".strip())


@app.command(usage="Usage: diffvit clip train [CONFIG.yaml] [OPTIONS]")
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
    """Train a small CLIP of our own: images against captions."""
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


@app.command(usage="Usage: diffvit clip classify IMAGE... --labels A,B,... [OPTIONS]")
def classify(
    images: Annotated[list[Path], Parameter(name="IMAGE", negative="", help="Image files, folders or patterns.")],
    /,
    *,
    labels: Annotated[
        str | None, Parameter(group=COMMAND, help="Candidate labels, as cat,dog; imagenet-1k for its 1000 names.")
    ] = None,
    labels_file: Annotated[Path | None, Parameter(group=COMMAND, help="File with one label per line.")] = None,
    templates: Annotated[
        str, Parameter(group=COMMAND, help="openai-80, openai-7, single, or a file with {} in each line.")
    ] = "openai-80",
    top: Annotated[int, Parameter(group=COMMAND, help="Number of labels to print per image.")] = 5,
    out: Annotated[Path | None, Parameter(group=COMMAND, help="Folder for a figure and a JSON file.")] = None,
    choice: ClipChoice = CLIP,
    output: Output = OUTPUT,
) -> None:
    """Classify images zero-shot with your own labels; prints the most probable labels."""
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")

    from diffvit.clip.classify import figures, name_pictures
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.clip.zero_shot import zero_shot_classifier
    from diffvit.data.images import read_each
    from diffvit.files import to_json, write_files
    from diffvit.reporting.texts import render

    given, prompts = load_labels(labels, labels_file), load_templates(templates)
    clip = choice.load()
    pictures, faults = read_each(images, lambda pixels, _: clip.preprocessing.square(pixels))
    if not pictures:
        raise summed(faults)
    made = zero_shot_classifier(clip, given, prompts, progress=show.Lines("labels"))
    show.warn(made.warnings)
    named = name_pictures(clip, made, pictures, top)
    result: dict[str, Any] = {
        "model": clip.name,
        "pretrained": clip.pretrained,
        **clip.facts,
        "templates": {"name": prompts.name, "count": len(prompts.texts)},
        "labels": len(given),
        "labels_computed": made.computed,
        "same_names": [list(group) for group in made.twins],
        "unknown_words": list(made.unknown),
        "cut_labels": list(made.cut),
        "images": [{"image": str(each.path), "top": [list(pair) for pair in each.top]} for each in named],
        "failed": [{"image": fault.what, "error": fault.line} for fault in faults],
    }
    show.line(render("clip/pages/classify.txt", **result, first=prompts.texts[0], names=given).rstrip())
    for each in named:
        rows = [[label, show.percent(chance)] for label, chance in each.top]
        show.table(["label", "probability"], rows, title=str(each.path))
    if out is not None:
        title = f"{clip.name} ({clip.pretrained or 'own weights'}), zero-shot"
        note = f"{len(given):,} labels, templates {prompts.name}; {clip.preprocessing.words}"
        files = {**figures(named, title=title, note=note), "classify.json": to_json(result)}
        result["files"] = write_files(out, files, "The answers are above.")
        show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    output.as_json(result)
    if faults:
        raise summed(faults, "The other images are above.")


@app.command
def precision(
    *,
    batch_sizes: Annotated[str, Parameter(group=COMMAND, help="Batch sizes, separated by commas.")] = "1,8,32",
    budget: Annotated[float, Parameter(group=COMMAND, help="Total time budget, seconds.")] = 240.0,
    images: Annotated[int, Parameter(group=COMMAND, help="Number of images for the drift from FP32.")] = 32,
    data_dir: DataDir = None,
    weights: Annotated[Path | None, Parameter(group=COMMAND, help="CLIP RN50 weights; default random weights.")] = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    threads: Annotated[
        int | None, Parameter(group=COMMAND, show_default="0", help="CPU threads; 0 is all usable cores.")
    ] = None,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for precision.json, the plot and report.md.")] = Path(
        "reports/clip-precision"
    ),
    quiet: Annotated[bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """CLIP's image encoder in several precisions: speed, memory, drift of the embeddings.

    Strict FP32, TF32 (CUDA), FP16, BF16 and autocast, each in two memory formats. A precision counts only where it was
    observed in the products of the pass.
    """
    sizes = numbers_of("--batch-sizes", batch_sizes)
    refuse_folder(out)
    given = {name: value for name, value in (("device", device), ("threads", threads)) if value is not None}
    config = resolve(None, given)

    from diffvit.clip import precision as measured
    from diffvit.clip.load import load_clip
    from diffvit.clip.precision_report import drift_table, speed_tables, write
    from diffvit.training.environment import resolve_device

    plan = measured.Plan(sizes, budget, images)
    result = measured.run(
        plan,
        data_dir=data_dir,
        clip=load_clip("RN50", "openai", weights).model if weights else None,
        weights=weights.name if weights else "",
        device=resolve_device(config.device),
        threads=config.threads,
        tell=lambda line: None if quiet else print(line, file=sys.stderr, flush=True),
    )
    if all(row["reason"] for row in result["rows"]):
        why = f"{budget:g} seconds were too short to time a single pass"
        raise ConfigError("--budget", why, "Nothing was written; give more, or smaller --batch-sizes.")
    for found in (*speed_tables(result), drift_table(result)):
        show.table(found.columns, found.rows)
    report = write(result, out)
    show.line(f"report  {report}")
    output.as_json({**result, "report": report})
