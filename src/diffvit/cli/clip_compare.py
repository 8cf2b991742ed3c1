"""``diffvit clip compare``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffvit.benchmarks.results import refuse_folder
from diffvit.cli import show
from diffvit.cli.clip_options import CLIP, PICTURES, ClipChoice, Lines, PicturesChoice, summed
from diffvit.cli.options import COMMAND, OUTPUT, Output
from diffvit.errors import ConfigError

if TYPE_CHECKING:
    from diffvit.clip.evaluation.compare import Comparison
    from diffvit.clip.evaluation.labelled import Labelled
    from diffvit.clip.evaluation.shifts import Shift

ALL_OF_THEM, NONE_OF_THEM = "all", "none"
SHIFT_PICTURES = 500
ALL = 20  # categories in the terminal's table; of more, so many of both ends together


def compare(
    where: Annotated[str, Parameter(name="WHERE", help="cifar10, or a folder with a folder per class.")],
    /,
    *,
    supervised: Annotated[
        str, Parameter(group=COMMAND, help="tv-v1, tv-v2 or timm's name of a ResNet-50; or a ViT of ours.")
    ] = "tv-v2",
    supervised_weights: Annotated[Path | None, Parameter(group=COMMAND, help="The ResNet-50's weights.")] = None,
    templates: Annotated[
        list[str] | None,
        Parameter(group=COMMAND, negative="", help="Sets of them; the first makes the comparison.", show_default=False),
    ] = None,
    shifts: Annotated[
        str, Parameter(group=COMMAND, help="all, none, or some of edges,grey,blur,jpeg,noise,inversion.")
    ] = ALL_OF_THEM,
    shift_pictures: Annotated[
        int, Parameter(group=COMMAND, help="To how many pictures, spread over the classes; 5 severities of each.")
    ] = SHIFT_PICTURES,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for the report.")] = Path("clip-compare"),
    choice: ClipChoice = CLIP,
    pictures: PicturesChoice = PICTURES,
    output: Output = OUTPUT,
) -> None:
    """CLIP beside a supervised model on the same pictures: by category, with intervals and galleries, as one page.

    What was computed for a picture is kept in the user's cache: an interrupted call goes on, a repeated one reads.
    """
    refuse_folder(out)

    from diffvit.clip.evaluation.compare import common_classes
    from diffvit.clip.evaluation.compare import compare as run
    from diffvit.clip.evaluation.own import load_own
    from diffvit.clip.load import load_resnet50
    from diffvit.clip.small.load import is_own
    from diffvit.clip.templates import load_templates

    changes = _changes(shifts, shift_pictures)
    prompts = [load_templates(name) for name in templates or ["openai-80", "openai-7", "single"]]
    labelled = pictures.open(where)
    if supervised_weights is None and is_own(supervised):
        other = load_own(supervised, device=choice.place)
    else:
        other = load_resnet50(supervised, supervised_weights, device=choice.place)
    subject = common_classes(labelled, other)
    clip = choice.load()
    found = run(clip, other, subject, prompts, shifts=changes, shift_pictures=shift_pictures, watch=Lines)
    result = found.result
    _tell(result)
    given = {
        **{"--model": (choice.model, ""), "--pretrained": (choice.pretrained, CLIP.pretrained)},
        **{"--weights": (choice.weights, None), "--supervised": (supervised, "")},
        **{"--supervised-weights": (supervised_weights, None), "--split": (pictures.split, "test")},
        **{"--limit": (pictures.limit, None), "--shifts": (shifts, ALL_OF_THEM)},
        **{"--shift-pictures": (shift_pictures, SHIFT_PICTURES)},
    }
    command = ["diffvit", "clip", "compare", where]
    command += [part for flag, (value, usual) in given.items() if value != usual for part in (flag, str(value))]
    command += [part for name in templates or [] for part in ("--templates", name)]
    result["files"] = _write(out, found, subject.labelled, changes, shlex.join([*command, "--out", str(out)]))
    show.line(f"report  {result['files'][0]}")
    if output.json:
        show.as_json(result)
    if found.faults:
        raise summed(found.faults, "Everything else is above.")


def _tell(result: dict[str, Any]) -> None:
    from diffvit.clip.evaluation.compare_page import in_order, shift_statements, statements

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
    _differences("category", "class", in_order(result["per_class"]))
    if result["superclasses"]:
        _differences("superclass", "superclass", in_order(result["superclasses"]))
    else:
        show.line(f"note: no superclasses: {result['no_superclasses']}")
    if result["shifts"]:
        for line in shift_statements(result["shifts"], one["model"], two["model"]):
            show.line(line)


def _differences(title: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row, or for those at both ends."""
    shown = list(rows) if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]
    show.table(
        [title, "pictures", "first", "second", "difference", "95% interval"],
        [
            [
                row[key],
                f"{row['images']:,}",
                *(show.percent(row[name]) for name in ("first", "second")),
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
            ]
            for row in shown
        ],
    )


def _changes(kinds: str, pictures: int) -> tuple[Shift, ...]:
    """The shifts asked for."""
    from diffvit.clip.evaluation.shifts import KINDS, shifts

    if pictures < 1:
        raise ConfigError("--shift-pictures", f"must be at least 1 (found {pictures})")
    if kinds == NONE_OF_THEM:
        return ()
    return shifts(KINDS if kinds == ALL_OF_THEM else [kind.strip() for kind in kinds.split(",")])


def _write(out: Path, found: Comparison, labelled: Labelled, changes: Sequence[Shift], command: str) -> list[Path]:
    """The page, the plots, the figures, and a line per category, superclass and change."""
    from diffvit.clip.evaluation.compare_page import in_order, page_of
    from diffvit.clip.evaluation.compare_plots import forest, shift_curves
    from diffvit.reporting.csv_files import to_csv
    from diffvit.reporting.style import to_png
    from diffvit.training.files import disk_faults, replace, to_json

    result = found.result
    one, two = (model["model"] for model in result["models"])
    files = {
        "compare.html": page_of(found, labelled, changes, command).encode(),
        "compare.json": to_json(result),
        "categories.csv": to_csv(result["per_class"]),
        "categories.png": to_png(forest(in_order(result["per_class"]), one, two)),
    }
    if above := result["superclasses"]:
        named = [{**row, "classes": "; ".join(row["classes"])} for row in above]
        files |= {"superclasses.csv": to_csv(named)}
        files |= {"superclasses.png": to_png(forest(in_order(above), one, two, key="superclass"))}
    if changed := result["shifts"]:
        rows = [{"shift": "none", "severity": 0, "words": "", **changed["original"]}, *changed["cells"]]
        files |= {"shifts.csv": to_csv(rows), "shifts.png": to_png(shift_curves(changed, one, two))}
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]
