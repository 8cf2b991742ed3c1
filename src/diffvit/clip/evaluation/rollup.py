"""A comparison rolled up: categories gathered under what WordNet has above them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffvit.clip.evaluation.answers import Answers
from diffvit.clip.evaluation.imagenet import cifar10_synsets
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.sides import decided, paired
from diffvit.clip.evaluation.wordnet import Superclass, find_wordnet, read_wordnet, superclasses

_FEW = 20  # classes: so few are divided until no group holds more than half of them, or three
NO_IDS = "the classes are not named by WordNet ids"
NO_WORDNET = "WordNet is not installed (Debian's package wordnet-base, or WNSEARCHDIR)"


def groups_of(labelled: Labelled) -> tuple[tuple[Superclass, ...], str]:
    """The groups of these classes, and why there are none (empty where there are some).

    Args:
        labelled: the pictures; only classes with WordNet ids, or CIFAR-10's, have groups.

    Raises:
        InputError: the installed WordNet is damaged or of another version.
    """
    ids = _ids(labelled)
    if ids is None:
        return (), NO_IDS
    if (source := find_wordnet()) is None:
        return (), NO_WORDNET
    largest = max(3, (len(ids) + 1) // 2) if len(ids) <= _FEW else None
    return superclasses(read_wordnet(source), ids, largest=largest), ""


def rolled_up(answers: Sequence[Answers], groups: Sequence[Superclass], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The difference of two models in each group of classes that has pictures.

    Args:
        answers: of the two models.
        groups: of :func:`groups_of`.
        classes: names in label order.

    Returns:
        For each ``superclass``, ``id``, ``classes`` what :func:`~diffvit.clip.evaluation.sides.paired` gives,
        and ``decided``, for all groups together.
    """
    rows = [
        {
            **{"superclass": group.name, "id": group.id, "classes": [classes[place] for place in group.members]},
            **paired(answers, group.members),
        }
        for group in groups
    ]
    return decided([row for row in rows if row["images"]])


def _ids(labelled: Labelled) -> Sequence[str] | None:
    """WordNet ids of the classes; None where they are not known."""
    known = cifar10_synsets()
    if labelled.wordnet_ids is None and set(labelled.classes) <= known.keys():
        return [known[name] for name in labelled.classes]
    return labelled.wordnet_ids
