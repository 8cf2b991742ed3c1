"""``diffvit clip evaluate``, and ``compare`` and ``published``, which are options of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.clip import CLIP, ClipChoice, summed
from diffvit.cli.options import COMMAND, OUTPUT, Output, refuse_folder
from diffvit.errors import ConfigError, EnvironmentFault, InputError

if TYPE_CHECKING:
    from diffvit.clip.labelled import Labelled
    from diffvit.clip.load import Supervised

RESNET50 = "tv-v2"  # beside CLIP in a comparison where no other model is named
ALL = 20  # rows of a table; of more, so many of both ends together
TEMPLATES = ("openai-80", "openai-7", "single")  # of a comparison; the first makes it
Result = Mapping[str, Any]
Where = Annotated[str, Parameter(name="WHERE", help="cifar10, or a folder with a folder per class.")]
_Switch = Parameter(negative="", show_default=False)


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class Options:
    """What is evaluated, on which pictures."""

    compare: Annotated[bool, _Switch] = False
    """Compare both models by category, as one page."""
    published: Annotated[bool, _Switch] = False
    """All results that need published weights; WHERE is ImageNet."""
    supervised: str | None = None
    """Evaluate this model on the same pictures: tv-v1, tv-v2 or a ResNet-50 by timm's name, or a ViT run."""
    supervised_weights: Path | None = None
    """The ResNet-50's weights from a file."""
    templates: Annotated[tuple[str, ...], _Switch] = ()
    """openai-80, openai-7, single, or a file with {} in each line; a comparison takes several."""
    labels_file: Path | None = None
    """Names for the classes, one per line in the folders' order."""
    limit: int | None = None
    """Largest number of pictures per class, spread evenly over it."""
    split: Literal["test", "train"] = "test"
    """Which images of cifar10."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; default DIFFVIT_DATA."""
    shifts: str = "all"
    """For a comparison, image corruptions: all, none, or some of edges,grey,blur,jpeg,noise,inversion."""
    shift_pictures: int = 500
    """Number of pictures that are corrupted, spread over the classes; 5 severities each."""
    v1_weights: Path | None = None
    """With --published: torchvision's ResNet-50, IMAGENET1K_V1, from a file."""
    v2_weights: Path | None = None
    """The same for IMAGENET1K_V2."""
    budget: float = 240.0
    """With --published: time budget for measuring precisions, seconds."""
    out: Path | None = None
    """Folder for the files; by default a comparison's is clip-compare, with --published reports/clip-published."""

    def check(self) -> None:
        """Refuse options that would have no effect.

        Raises:
            ConfigError: naming them.
        """
        given = {name for name, value in vars(self).items() if value != vars(USUAL)[name]}
        if self.published and given & {"compare", "labels_file", "supervised", "supervised_weights"}:
            hint = "Leave out --compare, --labels-file, --supervised and --supervised-weights."
            raise ConfigError("--published", "compares with both ResNet-50s by itself", hint)
        if given & {"v1_weights", "v2_weights", "budget"} and not self.published:
            raise ConfigError("--v1-weights, --v2-weights, --budget", "are for --published alone", "Leave them out.")
        if given & {"shifts", "shift_pictures"} and not (self.compare or self.published):
            raise ConfigError("--shifts, --shift-pictures", "are for a comparison alone", "Add --compare.")
        if self.supervised_weights and not (self.supervised or self.compare):
            raise ConfigError("--supervised-weights", "needs --supervised", "Say what they are: tv-v1 or tv-v2.")
        if self.shift_pictures < 1:
            raise ConfigError("--shift-pictures", f"must be at least 1 (found {self.shift_pictures})")

    def pictures(self, where: str) -> Labelled:
        """The pictures."""
        from diffvit.clip.labelled import open_labelled

        labelled = open_labelled(where, split=self.split, data_dir=self.data_dir)
        return labelled if self.limit is None else labelled.at_most(self.limit)


USUAL = Options()


def evaluate(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """Accuracy on labelled pictures: CLIP zero-shot and, if asked, a supervised model on the same.

    Folders named by WordNet ids, as in ImageNet's validation layout, get its names. What was computed for a picture is
    kept in the user's cache: an interrupted call goes on, a repeated one reads.
    """
    options.check()
    result, faults = (_published if options.published else _evaluated)(where, options, choice)
    output.as_json(result)
    if faults:
        raise summed(faults, "Everything else is above.")


def compare(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """``diffvit clip evaluate WHERE --compare``."""
    evaluate(where, options=replace(options, compare=True), choice=choice, output=output)


def published(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """``diffvit clip evaluate WHERE --published``: CIFAR-10 is left out, and said, where it is not at hand."""
    evaluate(where, options=replace(options, published=True), choice=choice, output=output)


def _evaluated(where: str, options: Options, choice: ClipChoice) -> tuple[dict[str, Any], list[InputError]]:
    """Evaluate or compare, tell it and write the files; the result, and the pictures that could not be read."""
    out = options.out or (Path("clip-compare") if options.compare else None)
    if out is not None:
        refuse_folder(out)

    from diffvit.clip.compare_page import comparison_files
    from diffvit.clip.evaluate import evaluate as run
    from diffvit.clip.shifts import KINDS, shifts
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.files import write_files
    from diffvit.reporting.texts import render

    kinds = {"all": KINDS, "none": ()}.get(options.shifts, [kind.strip() for kind in options.shifts.split(",")])
    changes = shifts(kinds) if options.compare else ()
    usual = TEMPLATES if options.compare else TEMPLATES[:1]
    prompts = [load_templates(name) for name in options.templates or usual]
    names = None if options.labels_file is None else load_labels(None, options.labels_file)
    labelled = options.pictures(where)
    if names is not None:
        labelled.renamed(names)  # refused before weights are read or fetched
    supervised = _supervised(options, labelled, choice.place)
    how: Any = {"shifts": changes, "shift_images": options.shift_pictures, "watch": show.Lines}
    found = run(choice.load(), labelled, prompts, supervised=supervised, names=names, compare=options.compare, **how)
    result = found.result
    if result["unreadable"] == result["images"]:
        raise summed(found.faults)
    show.warn(found.warnings)
    if options.compare:
        _tell_comparison(result)
        files = comparison_files(found, changes, shlex.join(["diffvit", *sys.argv[1:]]))
    else:
        show.line(render("clip/pages/evaluate.txt", **result))
        _class_table(result["models"], result["classes"])
        files = _files(result)
    if out is not None:
        result["files"] = written = write_files(out, files, "The figures are above.")
        show.line(f"report  {written[0]}" if options.compare else f"files  {', '.join(map(str, written))}")
    return result, found.faults


def _supervised(options: Options, labelled: Labelled, device: str) -> Supervised | None:
    """The model beside CLIP; a comparison has a ResNet-50 by default."""
    from diffvit.clip.labelled import imagenet_groups
    from diffvit.clip.load import load_resnet50, load_vit
    from diffvit.clip.small.load import is_own
    from diffvit.kernels import accelerate

    name = options.supervised or (RESNET50 if options.compare else None)
    if name is None:
        return None
    if options.supervised_weights or not is_own(name):
        imagenet_groups(labelled)  # refused before weights are read or fetched
        return load_resnet50(name, options.supervised_weights, device=device)
    supervised = load_vit(name, device=device)
    accelerate(supervised.model)
    return supervised


def _published(where: str, options: Options, choice: ClipChoice) -> tuple[dict[str, Any], list[InputError]]:
    """Three comparisons, and the image encoder in several precisions."""
    out = options.out or Path("reports/clip-published")
    refuse_folder(out)

    from diffvit.clip.precision import Plan
    from diffvit.clip.precision import run as precisions
    from diffvit.clip.precision_report import drift_table, write

    if options.pictures(where).wordnet_ids is None:
        why = "is not ImageNet's layout: its folders are not all named by WordNet ids of ImageNet-1k"
        raise InputError(where, why, "Give its validation set with a folder per class, as n01440764.")
    faults: dict[str, InputError] = {}
    for data, version, file in (
        ("imagenet", "tv-v2", options.v2_weights),
        ("imagenet", "tv-v1", options.v1_weights),
        ("cifar10", "tv-v2", options.v2_weights),
    ):
        place, shifts = (where, options.shifts) if data == "imagenet" else (data, "none")
        asked = replace(options, compare=True, out=out / f"{data}-{version}", split="test", shifts=shifts)
        asked = replace(asked, supervised=version, supervised_weights=file)
        try:
            faults |= {fault.what: fault for fault in _evaluated(place, asked, choice)[1]}
        except EnvironmentFault as fault:
            if data == "imagenet":
                raise
            show.line(f"note: without CIFAR-10: {fault.line}")
        show.line()
    clip = choice.load()
    result = precisions(
        Plan(budget=options.budget),
        data_dir=Path(where),
        clip=clip.model,
        weights=Path(clip.source).name,
        device=clip.device.type,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    drifts = drift_table(result)
    show.table(drifts.columns, drifts.rows)
    show.line(f"report  {write(result, out / 'precision')}")
    show.line(f"reports  {out}; take them into the page with: make docs")
    return {"out": out, "failed": [fault.line for fault in faults.values()]}, list(faults.values())


# What is said


def _ends(rows: Sequence[Any]) -> list[Any]:
    """All rows; of many, those at both ends."""
    return list(rows) if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]


def _class_table(models: Sequence[Result], classes: Sequence[str]) -> None:
    """Each class; of many, those that the first model does worst and best at."""
    from diffvit.reporting.tables import reading_order

    first = models[0]["per_class"]
    chosen, title = [place for place in reading_order(classes) if first[place]["images"]], "each class"
    if len(classes) > ALL:
        chosen = _ends(sorted(chosen, key=lambda place: first[place]["accuracy"]))
        title = f"the worst and the best of {len(classes):,} classes, by {models[0]['model']}"
    show.line(title)  # the table's own title would be folded to its width
    rows = []
    for place in chosen:
        of = [model["per_class"][place] for model in models]
        cells = [f"{show.percent(m['accuracy'])} ({show.percent(m['low'])} to {show.percent(m['high'])})" for m in of]
        rows.append([classes[place], f"{first[place]['images']:,}", *cells])
    show.table(["class", "pictures", *(model["model"] for model in models)], rows)


def _files(result: Result) -> dict[str, bytes]:
    """The result, and a line per model and class."""
    from diffvit.files import to_csv, to_json

    ids = result["wordnet_ids"] or [""] * len(result["classes"])
    figures = ("images", "accuracy", "low", "high")
    rows = [
        {"model": model["model"], "class": row["class"], "wordnet_id": id, **{name: row[name] for name in figures}}
        for model in result["models"]
        for id, row in zip(ids, model["per_class"], strict=True)
    ]
    return {"evaluate.json": to_json(dict(result)), "per_class.csv": to_csv(rows)}


def _tell_comparison(result: Result) -> None:
    from diffvit.clip.compare_page import decided_note, in_order, shift_statements, statements
    from diffvit.reporting.texts import render

    said = statements(result) + shift_statements(result)
    show.line(render("clip/pages/compare.txt", **result, said=said).rstrip())
    columns = ["pictures", "first", "second", "difference", "95% interval", "decided"]
    for title, key, of in (("category", "class", "per_class"), ("superclass", "superclass", "superclasses")):
        if rows := in_order(result[of]):
            cells = [
                [
                    *(row[key], f"{row['images']:,}", show.percent(row["first"]), show.percent(row["second"])),
                    *(f"{100 * row['difference']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"),
                    "yes" if row["decided"] else "no",
                ]
                for row in _ends(rows)
            ]
            show.table([title, *columns], cells)
            show.line(decided_note(rows))
