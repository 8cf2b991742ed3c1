"""Models on labelled pictures: each picture is encoded once, and every figure comes from the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffvit.clip.evaluation.answers import summary
from diffvit.clip.evaluation.encoded import Encoded
from diffvit.clip.evaluation.encoders import Encoder, of_clip, of_resnet50
from diffvit.clip.evaluation.imagenet import groups_for
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.sides import Watch, answered, supervised_side, zero_shot_side
from diffvit.clip.load import Clip, ResNet50
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import Classifier, zero_shot_classifier
from diffvit.errors import ConfigError, InputError


@dataclass(frozen=True)
class Subject:
    """The pictures and what may be answered.

    Args:
        labelled: its classes carry the names that are put into prompts.
        groups: for each class, its places among ImageNet's 1000; None where no supervised model is asked.
        left_out: classes that a supervised model could not answer, and no model is asked.
    """

    labelled: Labelled
    groups: list[list[int]] | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Evaluated:
    """The figures, ready for JSON, and the pictures that could not be read."""

    result: dict[str, Any]
    classifier: Classifier
    faults: list[InputError]


def subject_of(labelled: Labelled, names: Sequence[str] | None = None, *, supervised: bool = False) -> Subject:
    """The classes that all models can answer.

    Args:
        labelled: the pictures.
        names: for the prompts, one per class; by default the classes' own.
        supervised: whether ImageNet's 1000 classes must answer too.

    Raises:
        ConfigError: the number of names is another than that of the classes, or ImageNet's classes do not fit.
    """
    if names is not None and len(names) != len(labelled.classes):
        found = f"{len(names):,} vs {len(labelled.classes):,}"
        raise ConfigError("--labels-file", f"must name every class of {labelled.name}, in the folders' order ({found})")
    named = labelled if names is None else replace(labelled, classes=tuple(names))
    if not supervised:
        return Subject(named, None, ())
    return restricted(named, *groups_for(labelled))


def restricted(labelled: Labelled, places: Sequence[int], groups: list[list[int]]) -> Subject:
    """The pictures of these classes only, and what stands for each."""
    left_out = tuple(name for place, name in enumerate(labelled.classes) if place not in set(places))
    return Subject(labelled.only(places) if left_out else labelled, groups, left_out)


def evaluate(
    clip: Clip, resnet: ResNet50 | None, subject: Subject, templates: Templates, *, watch: Watch | None = None
) -> Evaluated:
    """CLIP zero-shot, and the supervised ResNet-50 where there is one, on the same pictures.

    A picture that cannot be read is left out of every model's figures, and is named among the faults.

    Raises:
        ConfigError: class names that CLIP cannot tell apart, or none with a word that it knows.
        InputError: a model's features are not finite.
    """
    labelled = subject.labelled
    classifier = zero_shot_classifier(clip, labelled.classes, templates, progress=watch and watch("labels"))
    used: list[Clip | ResNet50] = [clip]
    sides = [zero_shot_side(of_clip(clip), clip, classifier)]
    if resnet:
        sides.append(supervised_side(of_resnet50(resnet), subject.groups or []))
        used.append(resnet)
    found = answered(sides, labelled, watch=watch)
    models = [
        {**_facts(side.encoder, encoded, model), **summary(answers, labelled.classes)}
        for side, model, encoded, answers in zip(sides, used, found.encoded, found.answers, strict=True)
    ]
    ids = labelled.wordnet_ids
    result = {
        **{"data": labelled.name, "images": len(labelled), "unreadable": models[0]["unreadable"]},
        **{"classes": list(labelled.classes), "wordnet_ids": None if ids is None else list(ids)},
        **{"left_out": list(subject.left_out), "same_names": [list(group) for group in classifier.twins]},
        "templates": {"name": templates.name, "count": len(templates.texts), "first": templates.texts[0]},
        "labels_computed": classifier.computed,
        **{"unknown_words": list(classifier.unknown), "cut_labels": list(classifier.cut)},
        "models": models,
        "failed": [{"image": _text(fault.what), "error": _text(str(fault))} for fault in found.faults],
    }
    return Evaluated(result, classifier, found.faults)


def _facts(encoder: Encoder, encoded: Encoded, model: Clip | ResNet50) -> dict[str, Any]:
    """What was used, and what it cost."""
    first = next(model.model.parameters())
    return {
        **{"model": encoder.name, "weights": model.source, "preprocessing": encoder.preprocessing.words},
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        **{"dtype": str(first.dtype).removeprefix("torch."), "device": str(first.device)},
        **{"computed": encoded.computed, "seconds": encoded.seconds},
        "images_per_second": encoded.computed / encoded.seconds if encoded.computed else None,
    }


def _text(line: str) -> str:
    """Also of a file's name that is no UTF-8: its bytes as escapes."""
    return line.encode(errors="backslashreplace").decode()
