"""``diffvit clip evaluate``, and ``compare`` and ``published``, which are options of it."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.clip_options import (
    CLIP,
    PICTURES,
    SHIFTS,
    SUPERVISED,
    ClipChoice,
    Lines,
    PicturesChoice,
    ShiftsChoice,
    SupervisedChoice,
    summed,
)
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output, refuse_folder
from diffvit.errors import ConfigError, EnvironmentFault, InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.evaluate import Evaluation
    from diffvit.clip.labelled import Labelled
    from diffvit.clip.load import Clip, Supervised

ALL = 20  # rows of a table; of more, so many of both ends together
TEMPLATES = ("openai-80", "openai-7", "single")  # of a comparison; the first makes it
Result = Mapping[str, Any]
Where = Annotated[str, Parameter(name="WHERE", help="cifar10, or a folder with a folder per class.")]
TemplateSets = Annotated[
    list[str] | None,
    Parameter(
        group=COMMAND,
        negative="",
        show_default=False,
        help="openai-80, openai-7, single, or a file with {} in each line; a comparison takes several.",
    ),
]


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class PublishedChoice:
    """What else is done with published weights."""

    v1_weights: Path | None = None
    """With --published: torchvision's ResNet-50, IMAGENET1K_V1, from a file."""
    v2_weights: Path | None = None
    """The same of IMAGENET1K_V2."""
    budget: float = 240.0
    """With --published: seconds for the precisions."""


PUBLISHED = PublishedChoice()


def evaluate(
    where: Where,
    /,
    *,
    compare: Annotated[
        bool, Parameter(group=COMMAND, negative="", help="Compare both models by category, as one page.")
    ] = False,
    published: Annotated[
        bool, Parameter(group=COMMAND, negative="", help="Do all that needs published weights; WHERE is ImageNet.")
    ] = False,
    templates: TemplateSets = None,
    labels_file: Annotated[
        Path | None, Parameter(group=COMMAND, help="Names for the classes, one per line in the folders' order.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=COMMAND, help="Folder for the files; a comparison's is clip-compare by default."),
    ] = None,
    choice: ClipChoice = CLIP,
    beside: SupervisedChoice = SUPERVISED,
    pictures: PicturesChoice = PICTURES,
    shifts: ShiftsChoice = SHIFTS,
    files: PublishedChoice = PUBLISHED,
    output: Output = OUTPUT,
) -> None:
    """Accuracy on labelled pictures: CLIP zero-shot and, if asked, a supervised model on the same.

    Folders named by WordNet ids, as in ImageNet's validation layout, get its names. What was computed for a picture is
    kept in the user's cache: an interrupted call goes on, a repeated one reads.
    """
    if published and (compare or labels_file or beside != SUPERVISED):
        hint = "Leave out --compare, --labels-file, --supervised and --supervised-weights."
        raise ConfigError("--published", "compares with both ResNet-50s by itself", hint)
    if files != PUBLISHED and not published:
        raise ConfigError("--v1-weights, --v2-weights, --budget", "are for --published alone", "Leave them out.")
    if shifts != SHIFTS and not (compare or published):
        raise ConfigError("--shifts, --shift-pictures", "are for a comparison alone", "Add --compare.")
    if published:
        _published(where, choice, pictures, shifts, files, templates, out or PUBLISHED_FOLDER, output)
        return
    if not compare:
        beside.check()
    out = out or (Path("clip-compare") if compare else None)
    if out is not None:
        refuse_folder(out)

    from diffvit.clip.evaluate import evaluate as run
    from diffvit.clip.labelled import imagenet_groups
    from diffvit.clip.templates import load_labels, load_templates

    changes = shifts.made() if compare else ()
    prompts = [load_templates(name) for name in templates or (TEMPLATES if compare else TEMPLATES[:1])]
    names = None if labels_file is None else load_labels(None, labels_file)
    labelled = pictures.open(where)
    if names is not None:
        labelled.renamed(names)  # refused before weights are read or fetched
    name = beside.name(compare=compare)
    if name and not beside.own(name):
        imagenet_groups(labelled)
    other = beside.load(name, choice.place)
    found = run(
        choice.load(),
        labelled,
        prompts,
        supervised=other,
        names=names,
        compare=compare,
        shifts=changes,
        shift_images=shifts.shift_pictures,
        watch=Lines,
    )
    result = found.result
    if result["unreadable"] == result["images"]:
        raise summed(found.faults)
    show.warn(found.warnings)
    if compare:
        from diffvit.clip.compare_page import write

        _tell_comparison(result)
        assert out is not None
        repeat = _repeat(where, choice, beside, pictures, shifts, templates, out)
        result["files"] = write(out, found, changes, repeat)
        show.line(f"report  {result['files'][0]}")
    else:
        _tell(result)
        if out is not None:
            result["files"] = _write(out, result)
            show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    if output.json:
        show.as_json(result)
    if found.faults:
        raise summed(found.faults, "Everything else is above.")


def compare(
    where: Where,
    /,
    *,
    templates: TemplateSets = None,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for the report.")] = Path("clip-compare"),
    choice: ClipChoice = CLIP,
    beside: SupervisedChoice = SUPERVISED,
    pictures: PicturesChoice = PICTURES,
    shifts: ShiftsChoice = SHIFTS,
    output: Output = OUTPUT,
) -> None:
    """CLIP beside a supervised model on the same pictures: by category, with intervals and galleries, as one page.

    The same as ``diffvit clip evaluate WHERE --compare``.
    """
    evaluate(
        where,
        compare=True,
        templates=templates,
        out=out,
        choice=choice,
        beside=beside,
        pictures=pictures,
        shifts=shifts,
        output=output,
    )


PUBLISHED_FOLDER = Path("reports/clip-published")


def published(
    imagenet: Annotated[str, Parameter(name="IMAGENET", help="Its validation pictures, a folder per WordNet id.")],
    /,
    *,
    weights: Annotated[Path | None, Parameter(group=COMMAND, help="OpenAI's RN50 from a file.")] = None,
    files: PublishedChoice = PUBLISHED,
    limit: Annotated[int | None, Parameter(group=COMMAND, help="At most so many pictures of each class.")] = None,
    shift_pictures: Annotated[
        int, Parameter(group=COMMAND, help="To how many pictures of ImageNet the changes are done.")
    ] = SHIFTS.shift_pictures,
    templates: TemplateSets = None,
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for the reports.")] = PUBLISHED_FOLDER,
    output: Output = OUTPUT,
) -> None:
    """Every figure that needs published weights: CLIP's RN50 beside both ResNet-50s on ImageNet and on CIFAR-10.

    A page for each comparison, and CLIP's image encoder in several precisions. What was computed for a picture is kept
    in the user's cache: an interrupted call goes on. Where CIFAR-10 is not at hand it is left out, and said. The same
    as ``diffvit clip evaluate IMAGENET --published``.
    """
    choice, shifts = ClipChoice(weights=weights, device=device), ShiftsChoice(shift_pictures=shift_pictures)
    pictures = PicturesChoice(limit=limit, data_dir=data_dir)
    _published(imagenet, choice, pictures, shifts, files, templates, out, output)


def _published(
    imagenet: str,
    choice: ClipChoice,
    pictures: PicturesChoice,
    shifts: ShiftsChoice,
    files: PublishedChoice,
    templates: Sequence[str] | None,
    out: Path,
    output: Output,
) -> None:
    refuse_folder(out)
    shifts.made()  # refused before anything is read

    from diffvit.clip.compare_page import write
    from diffvit.clip.evaluate import evaluate as run
    from diffvit.clip.load import load_resnet50
    from diffvit.clip.templates import load_templates

    labelled = pictures.open(imagenet)
    if labelled.wordnet_ids is None:
        why = "is not ImageNet's layout: its folders are not all named by WordNet ids of ImageNet-1k"
        raise InputError(imagenet, why, "Give its validation set with a folder per class, as n01440764.")
    clip = choice.load()
    prompts = [load_templates(name) for name in templates or TEMPLATES]

    def compared(of: Labelled, where: str, version: str, folder: Path, done: ShiftsChoice) -> Evaluation:
        other: Supervised = load_resnet50(
            version, files.v1_weights if version == "tv-v1" else files.v2_weights, device=str(clip.device)
        )
        how: Any = {"shifts": done.made(), "shift_images": done.shift_pictures, "watch": Lines}
        found = run(clip, of, prompts, supervised=other, compare=True, **how)
        _tell_comparison(found.result)
        write(
            folder,
            found,
            done.made(),
            f"diffvit clip compare {where} --model RN50 --supervised {version} --out {folder}",
        )
        show.line()
        return found

    faults: dict[str, InputError] = {}
    for version in ("tv-v2", "tv-v1"):
        found = compared(labelled, imagenet, version, out / f"imagenet-{version}", shifts)
        faults |= {fault.what: fault for fault in found.faults}
    try:
        small = pictures.open("cifar10")
    except EnvironmentFault as fault:
        show.line(f"note: without CIFAR-10: {fault}")
    else:
        compared(small, "cifar10", "tv-v2", out / "cifar10-tv-v2", replace(shifts, shifts="none"))
    _precisions(clip, Path(imagenet), files.budget, out / "precision")
    show.line(f"reports  {out}; take them into the page with: make docs")
    if output.json:
        show.as_json({"out": out, "failed": [str(fault) for fault in faults.values()]})
    if faults:
        raise summed(list(faults.values()), "Everything else is above.")


def _precisions(clip: Clip, pictures: Path, budget: float, out: Path) -> None:
    """The image encoder in several precisions, with these weights, on these pictures."""
    from diffvit.clip.precision import Plan, run
    from diffvit.clip.precision_report import drift_table, write

    result = run(
        Plan(budget=budget),
        data_dir=pictures,
        clip=clip.model,
        weights=Path(clip.source).name,
        device=clip.device.type,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    found = drift_table(result)
    show.table(found.columns, found.rows)
    show.line(f"report  {write(result, out)}")


def _repeat(
    where: str,
    choice: ClipChoice,
    beside: SupervisedChoice,
    pictures: PicturesChoice,
    shifts: ShiftsChoice,
    templates: Sequence[str] | None,
    out: Path,
) -> str:
    """The command that repeats a comparison, without the options that are as usual."""
    given = {
        **{"--model": (choice.model, ""), "--pretrained": (choice.pretrained, CLIP.pretrained)},
        **{"--weights": (choice.weights, None), "--supervised": (beside.supervised or "tv-v2", "")},
        **{"--supervised-weights": (beside.supervised_weights, None), "--split": (pictures.split, "test")},
        **{"--limit": (pictures.limit, None), "--shifts": (shifts.shifts, SHIFTS.shifts)},
        "--shift-pictures": (shifts.shift_pictures, SHIFTS.shift_pictures),
    }
    command = ["diffvit", "clip", "compare", where]
    command += [part for flag, (value, usual) in given.items() if value != usual for part in (flag, str(value))]
    command += [part for name in templates or [] for part in ("--templates", name)]
    return shlex.join([*command, "--out", str(out)])


def _tell(result: Result) -> None:
    used, classes = result["templates"], result["classes"]
    unreadable = f", {result['unreadable']:,} unreadable" if result["unreadable"] else ""
    show.pairs(
        {
            "data": f"{result['data']}, {result['images']:,} pictures{unreadable}, {len(classes):,} classes",
            "templates": f"{used['name']} ({used['count']}), as in: {used['first']}",
            "labels": f"{len(classes):,} ({result['labels_computed']:,} computed now, the others cached)",
        }
    )
    if result["left_out"]:
        names = ", ".join(result["left_out"][:10]) + (", ..." if len(result["left_out"]) > 10 else "")
        why = "ImageNet has no class for it, and no model is asked"
        show.line(f"note: left out: {names} ({len(result['left_out']):,}): {why}")
    for group in result["same_names"]:
        show.line(f"note: classes {' and '.join(map(str, group))} have the same name, {classes[group[0]]}")
    for model in result["models"]:
        show.line()
        speed = f", {model['images_per_second']:.1f} images/s" if model["images_per_second"] else ""
        among = f"{show.percent(model['low'])} to {show.percent(model['high'])}"
        size = f"{model['parameters'] / 1e6:.1f}M parameters"
        show.pairs(
            {
                "model": f"{model['model']}, {size}, {model['dtype']} on {model['device']}",
                "weights": model["weights"],
                "preprocessing": model["preprocessing"],
                "pictures": f"{model['images']:,} ({model['computed']:,} computed now, the others cached{speed})",
                "accuracy": f"{show.percent(model['accuracy'])} (95% interval {among})",
                **({} if model["top5"] is None else {"top-5": show.percent(model["top5"])}),
                "calibration error": show.percent(model["calibration_error"]),
                "mean confidence": show.percent(model["mean_confidence"]),
            }
        )
    show.line()
    _class_table(result["models"], classes)


def _class_table(models: Sequence[Result], classes: Sequence[str]) -> None:
    """Each class; of many, those that the first model does worst and best at."""
    from diffvit.reporting.tables import reading_order

    first = models[0]["per_class"]
    chosen, title = [place for place in reading_order(classes) if first[place]["images"]], "each class"
    if len(classes) > ALL:
        order = sorted(chosen, key=lambda place: first[place]["accuracy"])
        chosen = order if len(order) <= ALL else [*order[: ALL // 2], *order[-ALL // 2 :]]
        title = f"the worst and the best of {len(classes):,} classes, by {models[0]['model']}"
    rows = []
    for place in chosen:
        of = [model["per_class"][place] for model in models]
        cells = [f"{show.percent(m['accuracy'])} ({show.percent(m['low'])} to {show.percent(m['high'])})" for m in of]
        rows.append([classes[place], f"{first[place]['images']:,}", *cells])
    show.line(title)  # the table's own title would be folded to its width
    show.table(["class", "pictures", *(model["model"] for model in models)], rows)


def _write(out: Path, result: Result) -> list[Path]:
    """The result, and a line per model and class."""
    from diffvit.files import disk_faults, replace, to_json

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["model", "class", "wordnet_id", "images", "accuracy", "low", "high"])
    ids = result["wordnet_ids"] or [""] * len(result["classes"])
    for model in result["models"]:
        for wordnet_id, row in zip(ids, model["per_class"], strict=True):
            figures = [row[name] for name in ("images", "accuracy", "low", "high")]
            writer.writerow([model["model"], row["class"], wordnet_id, *figures])
    files = {"evaluate.json": to_json(dict(result)), "per_class.csv": table.getvalue().encode()}
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]


def _tell_comparison(result: Result) -> None:
    from diffvit.clip.compare_page import decided_note, in_order, shift_statements, statements

    one, two = result["models"]
    show.pairs(
        {
            "data": f"{result['data']}, {result['images']:,} pictures, {len(result['classes']):,} classes",
            "first": f"{one['model']}: {show.percent(one['accuracy'])}",
            "second": f"{two['model']}: {show.percent(two['accuracy'])}",
        }
    )
    for line in statements(result):
        show.line(line)
    for title, key, rows in (
        ("category", "class", in_order(result["per_class"])),
        ("superclass", "superclass", in_order(result["superclasses"])),
    ):
        if not rows:
            show.line(f"note: no superclasses: {result['no_superclasses']}")
            continue
        shown = list(rows) if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]
        columns = [title, "pictures", "first", "second", "difference", "95% interval", "decided"]
        show.table(columns, [[row[key], *_difference(row)] for row in shown])
        show.line(decided_note(rows))
    for line in shift_statements(result["shifts"], one["model"], two["model"]) if result["shifts"] else ():
        show.line(line)


def _difference(row: Result) -> list[str]:
    return [
        *(f"{row['images']:,}", show.percent(row["first"]), show.percent(row["second"])),
        *(f"{100 * row['difference']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"),
        "yes" if row["decided"] else "no",
    ]
