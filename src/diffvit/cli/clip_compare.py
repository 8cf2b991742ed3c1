"""``diffvit clip compare``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffvit.benchmarks.results import refuse_folder
from diffvit.cli import show
from diffvit.cli.clip_options import CLIP, PICTURES, ClipChoice, Lines, PicturesChoice, summed
from diffvit.cli.options import COMMAND, OUTPUT, Output

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

    prompts = [load_templates(name) for name in templates or ["openai-80", "openai-7", "single"]]
    labelled = pictures.open(where)
    if supervised_weights is None and is_own(supervised):
        other = load_own(supervised, device=choice.place)
    else:
        other = load_resnet50(supervised, supervised_weights, device=choice.place)
    subject = common_classes(labelled, other)
    clip = choice.load()
    found = run(clip, other, subject, prompts, watch=Lines)
    result = found.result
    _tell(result)
    command = ["diffvit", "clip", "compare", where, "--model", choice.model, "--supervised", supervised]
    command += ["--limit", str(pictures.limit)] if pictures.limit else []
    result["files"] = _write(out, result, subject.labelled, shlex.join([*command, "--out", str(out)]))
    show.line(f"report  {result['files'][0]}")
    if output.json:
        show.as_json(result)
    if found.faults:
        raise summed(found.faults, "Everything else is above.")


def _tell(result: dict[str, Any]) -> None:
    from diffvit.clip.evaluation.compare_page import in_order, statements

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
    rows = in_order(result["per_class"])
    rows = rows if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]
    show.table(
        ["category", "pictures", "first", "second", "difference", "95% interval"],
        [
            [
                row["class"],
                f"{row['images']:,}",
                *(show.percent(row[name]) for name in ("first", "second")),
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
            ]
            for row in rows
        ],
    )


def _write(out: Path, result: dict[str, Any], labelled: Any, command: str) -> list[Path]:
    """The page, the plot, the figures and a line per category."""
    from diffvit.clip.evaluation.compare_page import forest, in_order, page_of
    from diffvit.reporting.rows import write_csv
    from diffvit.reporting.style import to_png
    from diffvit.training.files import disk_faults, replace, to_json

    one, two = (model["model"] for model in result["models"])
    with disk_faults(out, "The figures are above."):
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "compare.html", page_of(result, labelled, command).encode())
        replace(out / "categories.png", to_png(forest(in_order(result["per_class"]), one, two)))
        replace(out / "compare.json", to_json(result))
        write_csv(out / "categories.csv", result["per_class"])
    return [out / name for name in ("compare.html", "categories.png", "compare.json", "categories.csv")]
