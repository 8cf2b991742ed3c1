"""CLIP zero-shot beside a supervised model on the same pictures: by category, by picture, by template set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffvit.clip.evaluation.answers import Answers, answers_of, summary
from diffvit.clip.evaluation.encoders import Encoder, of_clip, of_resnet50
from diffvit.clip.evaluation.evaluate import Subject, restricted
from diffvit.clip.evaluation.imagenet import groups_for
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.own import OwnViT, of_own, own_groups
from diffvit.clip.evaluation.rollup import groups_of, rolled_up
from diffvit.clip.evaluation.shifted import under_shifts
from diffvit.clip.evaluation.shifts import Shift
from diffvit.clip.evaluation.sides import (
    Answered,
    Side,
    Watch,
    answered,
    decided,
    paired,
    supervised_side,
    zero_shot_side,
)
from diffvit.clip.load import Clip, ResNet50
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.errors import InputError

_PER_CLASS = 2  # pictures of one class in a gallery
_SHOWN = 12


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Args:
        result: figures, ready for JSON: ``models``, ``per_class``, ``overall``, ``superclasses``, ``templates``,
            ``shifts``, ``galleries``.
        shifted: the pictures that shifts were done to.
        faults: of pictures that could not be read.
        warnings: of what CLIP cannot read of the class names.
    """

    result: dict[str, Any]
    shifted: Labelled
    faults: list[InputError]
    warnings: list[str]


def common_classes(labelled: Labelled, supervised: ResNet50 | OwnViT) -> Subject:
    """The classes that both models can answer; pictures of the others are left out.

    Raises:
        ConfigError: there are none.
    """
    own = isinstance(supervised, OwnViT)
    return restricted(labelled, *(own_groups(supervised, labelled.classes) if own else groups_for(labelled)))


def compare(
    clip: Clip,
    supervised: ResNet50 | OwnViT,
    subject: Subject,
    templates: Sequence[Templates],
    *,
    shifts: Sequence[Shift] = (),
    shift_pictures: int = 500,
    watch: Watch | None = None,
) -> Comparison:
    """Both models on the subject's pictures.

    Args:
        clip: the zero-shot model.
        supervised: the other.
        subject: of :func:`common_classes`.
        templates: the first makes the comparison; the accuracy with each of the others is told beside it.
        shifts: done to a part of the pictures; none for none.
        shift_pictures: how many these are, spread over the classes.
        watch: who is told how far it is.

    Raises:
        ConfigError: class names that CLIP cannot tell apart, or none with a word that it knows.
        InputError: a model's features are not finite, no picture can be read, or the installed WordNet is damaged.
    """
    labelled = subject.labelled
    groups, no_groups = groups_of(labelled)
    encoder = of_clip(clip)
    classifiers = [
        zero_shot_classifier(clip, labelled.classes, each, progress=watch and watch(f"labels, {each.name}"))
        for each in templates
    ]
    ways = [zero_shot_side(encoder, clip, classifier) for classifier in classifiers]
    other = of_own(supervised) if isinstance(supervised, OwnViT) else of_resnet50(supervised)
    sides = [ways[0], supervised_side(other, subject.groups or [])]
    found = answered(sides, labelled, watch=watch)
    one, two = answers = found.answers
    if not bool(one.readable.any()):
        raise found.faults[0]
    galleries = [gallery(one, two), gallery(two, one)]
    few = labelled.spread(shift_pictures, one.readable.nonzero()[:, 0].tolist())
    result = {
        **{"data": labelled.name, "images": len(labelled), "unreadable": int((~one.readable).sum())},
        **{"classes": list(labelled.classes), "left_out": list(subject.left_out)},
        **{"unknown_words": list(classifiers[0].unknown), "cut_labels": list(classifiers[0].cut)},
        "models": [
            {**_facts(side.encoder, model), **summary(each, labelled.classes)}
            for side, model, each in zip(sides, (clip, supervised), answers, strict=True)
        ],
        "overall": paired(answers),
        "per_class": decided(
            [{"class": name, **paired(answers, [place])} for place, name in enumerate(labelled.classes)]
        ),
        **{"superclasses": rolled_up(answers, groups, labelled.classes), "no_superclasses": no_groups},
        "templates": [_with_templates(each, way, found, one) for each, way in zip(templates, ways, strict=True)],
        "shifts": under_shifts(sides, few, shifts, watch=watch) if shifts else None,
        **{"galleries": galleries, "answers": _kept(answers, galleries, labelled)},
        "computed": [encoded.computed for encoded in found.encoded],
        "failed": [{"image": fault.what, "error": str(fault)} for fault in found.faults],
    }
    return Comparison(result, few, found.faults, classifiers[0].warnings)


def gallery(winner: Answers, loser: Answers) -> list[int]:
    """Pictures that the one gets right and the other does not, those first where they are furthest apart.

    At most :data:`_SHOWN`, and :data:`_PER_CLASS` of a class.
    """
    places = ((winner.rank == 0) & (loser.rank > 0) & winner.readable).nonzero()[:, 0]
    order = places[(loser.truth[places] - winner.truth[places]).argsort(stable=True)].tolist()
    chosen: list[int] = []
    counts: dict[int, int] = {}
    for place in order:
        label = int(winner.labels[place])
        if counts.get(label, 0) < _PER_CLASS and len(chosen) < _SHOWN:
            counts[label] = counts.get(label, 0) + 1
            chosen.append(place)
    return chosen


def _with_templates(templates: Templates, way: Side, found: Answered, seen: Answers) -> dict[str, Any]:
    answers = answers_of(way.chances(found.encoded[0].rows), seen.labels, seen.readable)
    accuracy = float((answers.rank[seen.readable] == 0).double().mean())
    return {"name": templates.name, "count": len(templates.texts), "accuracy": accuracy}


def _facts(encoder: Encoder, model: Clip | ResNet50 | OwnViT) -> dict[str, Any]:
    return {"model": encoder.name, "weights": model.source, "preprocessing": encoder.preprocessing.words}


def _kept(answers: Sequence[Answers], galleries: Sequence[Sequence[int]], labelled: Labelled) -> dict[str, Any]:
    """What both models say of each picture in the galleries."""
    kept: dict[str, Any] = {}
    for place in sorted({place for each in galleries for place in each}):
        tops = [
            [
                [labelled.classes[label], chance]
                for label, chance in zip(each.top[place].tolist(), each.chances[place].tolist(), strict=True)
            ]
            for each in answers
        ]
        truth = labelled.classes[labelled.labels[place]]
        kept[str(place)] = {"picture": labelled.places[place], "class": truth, "top": tops}
    return kept
