"""``diffvit clip published``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.clip_compared import ALL_OF_THEM, SHIFT_PICTURES, changes_of, tell, write
from diffvit.cli.clip_options import ClipChoice, Lines, summed
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output, refuse_folder
from diffvit.clip.precision_settings import Plan
from diffvit.errors import EnvironmentFault, InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.evaluation.labelled import Labelled
    from diffvit.clip.evaluation.shifts import Shift
    from diffvit.clip.load import Clip

PLAN = Plan()
TEMPLATES = ("openai-80", "openai-7", "single")


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class Files:
    """Weights from files; what is not given is fetched."""

    weights: Path | None = None
    """OpenAI's RN50."""
    v1_weights: Path | None = None
    """torchvision's ResNet-50, IMAGENET1K_V1."""
    v2_weights: Path | None = None
    """torchvision's ResNet-50, IMAGENET1K_V2."""


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class Amount:
    """How much is done."""

    limit: int | None = None
    """At most so many pictures of each class."""
    shift_pictures: int = SHIFT_PICTURES
    """To how many pictures of ImageNet the changes are done."""
    budget: float = PLAN.budget
    """Seconds for the precisions."""
    templates: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None
    """Sets of them; by default openai-80, openai-7 and single."""


FILES, AMOUNT = Files(), Amount()


def published(
    imagenet: Annotated[Path, Parameter(name="IMAGENET", help="Its validation pictures, a folder per WordNet id.")],
    /,
    *,
    files: Files = FILES,
    amount: Amount = AMOUNT,
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    out: Annotated[Path, Parameter(group=COMMAND, help="Folder for the reports.")] = Path("reports/clip-published"),
    output: Output = OUTPUT,
) -> None:
    """Every figure that needs published weights: CLIP's RN50 beside both ResNet-50s on ImageNet and on CIFAR-10.

    A page for each comparison, and CLIP's image encoder in several precisions. What was computed for a picture is kept
    in the user's cache: an interrupted call goes on. Where CIFAR-10 is not at hand it is left out, and said.
    """
    refuse_folder(out)

    from diffvit.clip.evaluation.labelled import open_labelled

    changes = changes_of(ALL_OF_THEM, amount.shift_pictures)
    pictures = open_labelled(imagenet)
    if pictures.wordnet_ids is None:
        why = "is not ImageNet's layout: its folders are not all named by WordNet ids of ImageNet-1k"
        raise InputError(str(imagenet), why, "Give its validation set with a folder per class, as n01440764.")
    pictures = pictures if amount.limit is None else pictures.at_most(amount.limit)
    clip = ClipChoice(weights=files.weights, device=device).load()
    faults: dict[str, InputError] = {}
    for version, file in (("tv-v2", files.v2_weights), ("tv-v1", files.v1_weights)):
        place = out / f"imagenet-{version}"
        faults |= _compared(clip, (version, file), pictures, (amount, changes), place, str(imagenet))
    try:
        small = open_labelled("cifar10", data_dir=data_dir)
    except EnvironmentFault as fault:
        show.line(f"note: without CIFAR-10: {fault}")
    else:
        small = small if amount.limit is None else small.at_most(amount.limit)
        _compared(clip, ("tv-v2", files.v2_weights), small, (amount, ()), out / "cifar10-tv-v2", "cifar10")
    _precisions(clip, imagenet, amount.budget, out / "precision")
    show.line(f"reports  {out}; take them into the page with: make docs")
    if output.json:
        show.as_json({"out": out, "failed": [str(fault) for fault in faults.values()]})
    if faults:
        raise summed(list(faults.values()), "Everything else is above.")


def _compared(
    clip: Clip,
    resnet: tuple[str, Path | None],
    pictures: Labelled,
    done: tuple[Amount, Sequence[Shift]],
    out: Path,
    where: str,
) -> dict[str, InputError]:
    """One comparison, told and written; what could not be read, by picture."""
    from diffvit.clip.evaluation.compare import common_classes, compare
    from diffvit.clip.load import load_resnet50
    from diffvit.clip.templates import load_templates

    (version, file), (amount, changes) = resnet, done
    other = load_resnet50(version, file, device=str(clip.device))
    prompts = [load_templates(name) for name in amount.templates or TEMPLATES]
    subject = common_classes(pictures, other)
    found = compare(clip, other, subject, prompts, shifts=changes, shift_pictures=amount.shift_pictures, watch=Lines)
    tell(found.result)
    command = f"diffvit clip compare {where} --model RN50 --supervised {version} --out {out}"
    write(out, found, subject.labelled, changes, command)
    show.line()
    return {fault.what: fault for fault in found.faults}


def _precisions(clip: Clip, pictures: Path, budget: float, out: Path) -> None:
    """The image encoder in several precisions, with these weights, on these pictures."""
    from diffvit.clip.precision import run
    from diffvit.clip.precision_report import REPORT, drift_table, update
    from diffvit.measuring import write as write_result

    plan = Plan(PLAN.batch_sizes, budget, PLAN.images)
    source = Path(clip.source)  # of which the name is told
    device = clip.device.type
    result = run(plan, data_dir=pictures, weights=source, load=lambda _: clip.model, device=device, tell=_note)
    found = drift_table(result)
    show.table(found.columns, found.rows)
    write_result(result, out)
    update(out)
    show.line(f"report  {out / REPORT}")


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
