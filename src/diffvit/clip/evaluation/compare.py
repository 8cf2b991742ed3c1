"""CLIP zero-shot beside a supervised model on the same pictures: by category, by picture, by template set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffvit.clip.evaluation.answers import Answers, answers_of, summary, supervised_chances, zero_shot_chances
from diffvit.clip.evaluation.encoded import encode_all
from diffvit.clip.evaluation.encoders import of_clip, of_resnet50
from diffvit.clip.evaluation.evaluate import Subject, Watch
from diffvit.clip.evaluation.imagenet import groups_for
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.own import OwnViT, of_own, own_groups
from diffvit.clip.load import Clip, ResNet50
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.errors import InputError

RESAMPLES = 10_000
_PER_CLASS = 2  # pictures of one class in a gallery
_SHOWN = 12


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Args:
        result: figures, ready for JSON: ``models``, ``per_class``, ``overall``, ``templates``, ``galleries``.
        faults: of pictures that could not be read.
    """

    result: dict[str, Any]
    faults: list[InputError]


def common_classes(labelled: Labelled, supervised: ResNet50 | OwnViT) -> Subject:
    """The classes that both models can answer; pictures of the others are left out.

    Raises:
        ConfigError: there are none.
    """
    own = isinstance(supervised, OwnViT)
    places, groups = own_groups(supervised, labelled.classes) if own else groups_for(labelled)
    left_out = tuple(name for place, name in enumerate(labelled.classes) if place not in set(places))
    return Subject(labelled.only(places) if left_out else labelled, groups, left_out)


def compare(
    clip: Clip,
    supervised: ResNet50 | OwnViT,
    subject: Subject,
    templates: Sequence[Templates],
    *,
    watch: Watch | None = None,
) -> Comparison:
    """Both models on the subject's pictures.

    Args:
        clip: the zero-shot model.
        supervised: the other.
        subject: of :func:`common_classes`.
        templates: the first makes the comparison; the accuracy with each of the others is told beside it.
        watch: who is told how far it is.

    Raises:
        InputError: a model's features are not finite, or no picture can be read.
    """
    labelled = subject.labelled
    other = of_own(supervised) if isinstance(supervised, OwnViT) else of_resnet50(supervised)
    encoders = [of_clip(clip), other]
    found = [
        encode_all(encoder, labelled, progress=watch and watch(f"pictures, {encoder.name}")) for encoder in encoders
    ]
    readable = ~torch.stack([encoded.rows.isnan().any(dim=1) for encoded in found]).any(dim=0)
    faults = list({fault.what: fault for encoded in found for fault in encoded.faults}.values())
    if not bool(readable.any()):
        raise faults[0]
    labels = torch.tensor(labelled.labels, dtype=torch.int64)
    by_templates: list[Answers] = []
    for each in templates:
        rows = zero_shot_classifier(clip, labelled.classes, each, progress=watch and watch(f"labels, {each.name}"))
        by_templates.append(answers_of(zero_shot_chances(clip, rows, found[0].rows), labels, readable))
    groups = subject.groups or []
    answers = [by_templates[0], answers_of(supervised_chances(found[1].rows, groups), labels, readable)]
    result = {
        **{"data": labelled.name, "images": len(labelled), "unreadable": int((~readable).sum())},
        **{"classes": list(labelled.classes), "left_out": list(subject.left_out)},
        "models": [
            {**_facts(encoder.name, model, encoder.preprocessing.words), **summary(each, labelled.classes)}
            for encoder, model, each in zip(encoders, (clip, supervised), answers, strict=True)
        ],
        "overall": paired(answers, None),
        "per_class": [{"class": name, **paired(answers, place)} for place, name in enumerate(labelled.classes)],
        "templates": [_with_templates(each, found) for each, found in zip(templates, by_templates, strict=True)],
        "galleries": [gallery(answers[0], answers[1]), gallery(answers[1], answers[0])],
        "computed": [encoded.computed for encoded in found],
        "failed": [{"image": fault.what, "error": str(fault)} for fault in faults],
    }
    return Comparison(result | {"answers": _kept(answers, result["galleries"], labelled)}, faults)


def paired(answers: Sequence[Answers], place: int | None, *, seed: int = 0) -> dict[str, Any]:
    """The first model's accuracy minus the second's, with its 95% interval over which pictures were drawn.

    The pictures are drawn anew, pairs together, :data:`RESAMPLES` times (percentile bootstrap; Efron and Tibshirani
    1993, chapter 13). A resample only matters by how many of its pictures the first alone and the second alone get
    right, so those counts are drawn.

    Args:
        answers: of the two models.
        place: a class; None for all of them.
        seed: of the draws.

    Returns:
        ``images``, ``first``, ``second`` (accuracies), ``only_first``, ``only_second`` (counts), ``difference``,
        ``low``, ``high`` (fractions; None without pictures).
    """
    one, two = answers
    seen = one.readable if place is None else one.readable & (one.labels == place)
    right = [each.rank[seen] == 0 for each in (one, two)]
    count = int(seen.sum())
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    found: dict[str, Any] = {"images": count, "only_first": only[0], "only_second": only[1]}
    if not count:
        return found | dict.fromkeys(("first", "second", "difference", "low", "high"))
    shares = [only[0] / count, only[1] / count, (count - sum(only)) / count]
    drawn = np.random.Generator(np.random.Philox(seed)).multinomial(count, shares, size=RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / count, [2.5, 97.5])
    first, second = (int(each.sum()) / count for each in right)
    return found | {
        **{"first": first, "second": second, "difference": (only[0] - only[1]) / count},
        **{"low": float(low), "high": float(high)},
    }


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


def _with_templates(templates: Templates, answers: Answers) -> dict[str, Any]:
    seen = answers.readable
    accuracy = float((answers.rank[seen] == 0).double().mean())
    return {"name": templates.name, "count": len(templates.texts), "accuracy": accuracy}


def _facts(name: str, model: Clip | ResNet50 | OwnViT, words: str) -> dict[str, Any]:
    return {"model": name, "weights": model.source, "preprocessing": words}


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
