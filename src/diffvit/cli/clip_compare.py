"""``diffvit clip compare``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.clip_compared import ALL_OF_THEM, SHIFT_PICTURES, changes_of, tell, write
from diffvit.cli.clip_options import CLIP, PICTURES, ClipChoice, Lines, PicturesChoice, summed
from diffvit.cli.options import COMMAND, OUTPUT, Output, refuse_folder


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

    changes = changes_of(shifts, shift_pictures)
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
    show.warn(found.warnings)
    tell(result)
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
    result["files"] = write(out, found, subject.labelled, changes, shlex.join([*command, "--out", str(out)]))
    show.line(f"report  {result['files'][0]}")
    if output.json:
        show.as_json(result)
    if found.faults:
        raise summed(found.faults, "Everything else is above.")
