"""Which of ImageNet's 1000 classes stand for the classes of a data set: what a supervised model may be asked."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.templates import imagenet_names
from diffvit.data.cifar10_rows import CLASSES
from diffvit.errors import ConfigError

_FILE = "cifar10_imagenet.json"


def cifar10_members() -> dict[str, list[str]]:
    """For each class of CIFAR-10 the WordNet ids of ImageNet-1k that are kinds of it; deer has none."""
    return {name: list(entry["members"]) for name, entry in _cifar10().items()}


def cifar10_synsets() -> dict[str, str]:
    """For each class of CIFAR-10 the WordNet id of what it is."""
    return {name: entry["synset"] for name, entry in _cifar10().items()}


def _cifar10() -> dict[str, Any]:
    text = resources.files("diffvit.clip.evaluation").joinpath(_FILE).read_text(encoding="utf-8")
    return json.loads(text)


def groups_for(labelled: Labelled) -> tuple[list[int], list[list[int]]]:
    """The classes that a model of ImageNet's 1000 classes can answer, and for each its places among those.

    WordNet ids have one place each. Classes that are all CIFAR-10's have the places of :func:`cifar10_members`. Any
    other class has the place of the one OpenAI name that is the same but for capitals; names that two places have stand
    for neither.

    Raises:
        ConfigError: no class, or only one where there are several, can be answered; or two have the same place.
        EnvironmentFault: timm or open_clip is missing.
    """
    groups = _groups(labelled)
    places = [place for place, group in enumerate(groups) if group]
    found = [groups[place] for place in places]
    if not places or (len(places) == 1 and len(groups) > 1):
        names = ", ".join(labelled.classes[:5]) + (", ..." if len(labelled.classes) > 5 else "")
        why = f"shares {'one class' if places else 'no class'} with ImageNet (found {names})"
        allowed = "Allowed are folders named by WordNet ids (n01440764), CIFAR-10's classes, or ImageNet's own names."
        raise ConfigError(labelled.name, why, allowed)
    taken: dict[int, int] = {}
    for place, group in zip(places, found, strict=True):
        for one in group:
            if one in taken:
                pair = f"{labelled.classes[taken[one]]} and {labelled.classes[place]}"
                raise ConfigError(labelled.name, f"has two classes for one of ImageNet's ({pair})", "Rename one.")
            taken[one] = place
    return places, found


def _groups(labelled: Labelled) -> list[list[int]]:
    """The places for each class, none for one that cannot be answered."""
    order = {wordnet_id: place for place, wordnet_id in enumerate(imagenet_wordnet_ids())}
    if labelled.wordnet_ids is not None:
        return [[order[wordnet_id]] for wordnet_id in labelled.wordnet_ids]
    if set(labelled.classes) <= set(CLASSES):
        members = cifar10_members()
        return [sorted(order[wordnet_id] for wordnet_id in members[name]) for name in labelled.classes]
    named: dict[str, list[int]] = {}
    for place, name in enumerate(imagenet_names()):
        named.setdefault(name.casefold(), []).append(place)
    return [found if len(found := named.get(name.casefold(), [])) == 1 else [] for name in labelled.classes]
