"""CLIP zero-shot, and a supervised model beside it, on labelled images: accuracies, and a comparison by category.

Each image is encoded once per model (:mod:`diffvit.clip.encode`); every figure comes from the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from diffvit.clip.encode import Change, Encoded, Encoder, encode_all, image_encoder
from diffvit.clip.labelled import Labelled, Superclass, imagenet_groups, superclasses
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.predictions import (
    Predictions,
    decided,
    paired,
    predictions_of,
    summary,
    supervised_probabilities,
    zero_shot_probabilities,
)
from diffvit.clip.shifts import Shift
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import Progress, zero_shot_classifier
from diffvit.errors import ConfigError, InputError
from diffvit.reporting.stats import exact_paired

NO_IDS = "the classes are not named by WordNet ids"
_SHOWN, _PER_CLASS = 12, 2  # images of a gallery; of these of one class
Watch = Callable[[str], Progress]  # from what is counted ("pictures, CLIP RN50") to who is told


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` gives.

    Args:
        result: the figures, ready for JSON.
        labelled: the images they are of: those of the classes that all models can answer.
        shifted: the images that shifts were done to.
        faults: of the images that could not be read.
        warnings: of what CLIP cannot read of the class names.
    """

    result: dict[str, Any]
    labelled: Labelled
    shifted: Labelled
    faults: list[InputError]
    warnings: list[str]


@dataclass(frozen=True)
class Model:
    """An encoder, and from its features to the probabilities of the classes; NaN rows stay NaN."""

    encoder: Encoder
    probabilities: Callable[[Float32[Tensor, "n width"]], Float32[Tensor, "n classes"]]


@dataclass(frozen=True)
class Predicted:
    """Predictions and features of each model; an image that one could not read counts for none."""

    predictions: list[Predictions]
    encoded: list[Encoded]
    faults: list[InputError]


def answerable(labelled: Labelled, supervised: Supervised | None) -> tuple[list[int], list[list[int]]]:
    """The places of the classes that a supervised model can answer too, and for each its places among the model's own.

    Raises:
        ConfigError: the model knows none of the classes.
    """
    classes = labelled.classes
    if supervised is None:
        return list(range(len(classes))), []
    known = supervised.classes
    if known is None:
        return imagenet_groups(labelled)
    places = [place for place, name in enumerate(classes) if name in known]
    if not places:
        found = f"{', '.join(classes[:3])}, ... vs {', '.join(known[:3])}, ..."
        raise ConfigError("--supervised", f"{supervised.version} knows none of the classes ({found})")
    return places, [[known.index(classes[place])] for place in places]


def evaluate(
    clip: Clip,
    labelled: Labelled,
    templates: Sequence[Templates],
    *,
    supervised: Supervised | None = None,
    names: Sequence[str] | None = None,
    compare: bool = False,
    shifts: Sequence[Shift] = (),
    shift_images: int = 500,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate CLIP zero-shot, and a supervised model where there is one, on the same images.

    Args:
        clip: the zero-shot model.
        labelled: the images.
        templates: the first set makes the classifier; the accuracy with each of the others is told beside it.
        supervised: the other model; images of classes that it cannot answer are left out for both.
        names: for prompts and results, one per class; by default the classes' own.
        compare: whether both models are compared: by category and superclass, under shifts, with galleries.
        shifts: done to a part of the images.
        shift_images: how many these are, spread over the classes.
        watch: who is told how far it is.

    Returns:
        The result has ``data``, ``images``, ``unreadable``, ``classes``, ``left_out``, ``unknown_words``,
        ``cut_labels``, ``failed`` and ``models``, each with what :func:`~diffvit.clip.predictions.summary` gives.
        Of an evaluation also ``wordnet_ids``, ``same_names``, ``labels_computed`` and ``templates`` (the first set);
        of a comparison ``overall``, ``per_class``, ``superclasses``, ``templates`` (all sets, with accuracies),
        ``shifts`` (of :func:`under_shifts`), ``galleries`` and the ``answers`` to their images.

    Raises:
        ConfigError: class names that CLIP cannot tell apart, or none with a word that it knows; or see
            :func:`answerable`.
        InputError: a model's features are not finite, or a comparison in which no image can be read.
    """
    places, groups = answerable(labelled, supervised)
    named = labelled if names is None else labelled.renamed(names)
    left_out = [name for place, name in enumerate(named.classes) if place not in set(places)]
    above = superclasses(labelled.only(places)) if compare else ()  # by the classes' own names
    labelled = named.only(places) if left_out else named
    classes = labelled.classes
    classifiers = [
        zero_shot_classifier(clip, classes, each, progress=watch and watch(f"labels, {each.name}"))
        for each in (templates if compare else templates[:1])
    ]
    encoder = image_encoder(clip)
    zero_shot = [Model(encoder, lambda rows, of=each: zero_shot_probabilities(clip, of, rows)) for each in classifiers]
    models = zero_shot[:1]
    used: list[Clip | Supervised] = [clip]
    if supervised is not None:
        models.append(Model(image_encoder(supervised), lambda rows: supervised_probabilities(rows, groups)))
        used.append(supervised)
    found = predict(models, labelled, watch=watch)
    first = classifiers[0]
    result: dict[str, Any] = {
        **{"data": labelled.name, "images": len(labelled), "unreadable": int((~found.predictions[0].readable).sum())},
        **{"classes": list(classes), "left_out": left_out},
        **{"unknown_words": list(first.unknown), "cut_labels": list(first.cut)},
        "models": [
            {**_about(each, encoded, model.encoder), **summary(predictions, classes)}
            for each, encoded, model, predictions in zip(used, found.encoded, models, found.predictions, strict=True)
        ],
        "failed": [{"image": _text(fault.what), "error": _text(str(fault))} for fault in found.faults],
    }
    shifted = labelled.only([])
    if compare:
        if not bool(found.predictions[0].readable.any()):
            raise found.faults[0]
        readable = found.predictions[0].readable.nonzero()[:, 0].tolist()
        shifted = labelled.spread(shift_images, readable)
        result |= _comparison(labelled, above, found)
        result["templates"] = [
            {"name": each.name, "count": len(each.texts), "accuracy": _accuracy(model, found)}
            for each, model in zip(templates, zero_shot, strict=True)
        ]
        result["shifts"] = under_shifts(models, shifted, shifts, watch=watch) if shifts else None
    else:
        ids, used_templates = labelled.wordnet_ids, first.templates
        result |= {
            **{"wordnet_ids": None if ids is None else list(ids), "same_names": [list(group) for group in first.twins]},
            "labels_computed": first.computed,
            "templates": {
                **{"name": used_templates.name, "count": len(used_templates.texts)},
                "first": used_templates.texts[0],
            },
        }
    return Evaluation(result, labelled, shifted, found.faults, first.warnings)


def predict(
    models: Sequence[Model], labelled: Labelled, *, change: Change | None = None, watch: Watch | None = None
) -> Predicted:
    """Every model on every image, to which ``change`` is done first.

    Raises:
        InputError: a model's features are not finite.
    """
    what = f"pictures, {change.name}" if change else "pictures"
    encoded = [
        encode_all(each.encoder, labelled, change=change, progress=watch and watch(f"{what}, {each.encoder.name}"))
        for each in models
    ]
    readable = ~torch.stack([each.rows.isnan().any(dim=1) for each in encoded]).any(dim=0)
    labels = torch.tensor(labelled.labels, dtype=torch.int64)
    predictions = [
        predictions_of(model.probabilities(each.rows), labels, readable)
        for model, each in zip(models, encoded, strict=True)
    ]
    faults = {fault.what: fault for each in encoded for fault in each.faults}
    return Predicted(predictions, encoded, list(faults.values()))


def _about(model: Clip | Supervised, encoded: Encoded, encoder: Encoder) -> dict[str, Any]:
    """What was used, and what it cost."""
    return {
        **{"model": encoder.name, "weights": model.source, "preprocessing": encoder.preprocessing.words},
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        **{"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)},
        **{"computed": encoded.computed, "seconds": encoded.seconds},
        "images_per_second": encoded.computed / encoded.seconds if encoded.computed else None,
    }


def _text(line: str) -> str:
    """Also of a file's name that is no UTF-8: its bytes as escapes."""
    return line.encode(errors="backslashreplace").decode()


def _accuracy(model: Model, found: Predicted) -> float:
    """Of another classifier on the features that are there."""
    first = found.predictions[0]
    predictions = predictions_of(model.probabilities(found.encoded[0].rows), first.labels, first.readable)
    return float((predictions.rank[first.readable] == 0).double().mean())


def _comparison(labelled: Labelled, groups: Sequence[Superclass], found: Predicted) -> dict[str, Any]:
    """Both models by category, by superclass and by image."""
    classes, both = labelled.classes, found.predictions
    above = [
        {"superclass": each.name, "id": each.id, "classes": [classes[place] for place in each.members]}
        | paired(both, each.members)
        for each in groups
    ]
    galleries = [gallery(*both), gallery(*both[::-1])]
    answers = {}
    for number in sorted({number for each in galleries for number in each}):
        top = [
            [
                [classes[label], value]
                for label, value in zip(each.top[number].tolist(), each.probabilities[number].tolist(), strict=True)
            ]
            for each in both
        ]
        truth = classes[labelled.labels[number]]
        answers[str(number)] = {"picture": labelled.places[number], "class": truth, "top": top}
    return {
        "overall": paired(both),
        "per_class": decided([{"class": name, **paired(both, [place])} for place, name in enumerate(classes)]),
        "superclasses": decided([row for row in above if row["images"]]),
        "no_superclasses": "" if groups else NO_IDS,
        **{"galleries": galleries, "answers": answers, "computed": [each.computed for each in found.encoded]},
    }


def gallery(winner: Predictions, loser: Predictions) -> list[int]:
    """Images that the one gets right and the other does not, those first where they are furthest apart; at most 12."""
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


def under_shifts(
    models: Sequence[Model], labelled: Labelled, shifts: Sequence[Shift], *, watch: Watch | None = None
) -> dict[str, Any]:
    """Two models on these images as they are and under each shift.

    Args:
        models: the two.
        labelled: the images, of which one at least can be read.
        shifts: see :func:`diffvit.clip.shifts.shifts`.
        watch: who is told how far it is.

    Returns:
        ``images``; ``original``, and ``cells`` with ``shift``, ``severity`` and ``words``, of what
        :func:`~diffvit.clip.predictions.paired` gives; ``kinds``, which are means over the severities of each:
        ``shift``, ``first``, ``second`` (accuracies), ``difference``, ``change`` (of the difference, from the original
        images), its 95% interval ``low`` and ``high`` over which images were drawn, ``p_value``, and ``decided``,
        for all kinds together (see :func:`~diffvit.clip.predictions.decided`).
    """
    original = predict(models, labelled, watch=watch).predictions
    cells: list[dict[str, Any]] = []
    of_kind: dict[str, list[list[Predictions]]] = {}
    for shift in shifts:
        change = Change(f"{shift.name} {shift.severity}: {shift.words}", shift.apply)
        found = predict(models, labelled, change=change, watch=watch).predictions
        cells.append({"shift": shift.name, "severity": shift.severity, "words": shift.words, **paired(found)})
        of_kind.setdefault(shift.name, []).append(found)
    kinds = [{"shift": kind, **_means(original, found)} for kind, found in of_kind.items()]
    before = paired(original)
    return {"images": before["images"], "original": before, "cells": cells, "kinds": decided(kinds)}


def _means(original: Sequence[Predictions], found: Sequence[Sequence[Predictions]]) -> dict[str, Any]:
    """Over the severities, images together."""
    seen = original[0].readable  # an image that can be read can be shifted
    right = [torch.stack([(each[place].rank[seen] == 0).double() for each in found]).mean(0) for place in (0, 1)]
    before = (original[0].rank[seen] == 0).double() - (original[1].rank[seen] == 0).double()
    changes = ((right[0] - right[1] - before) * len(found)).round().int().tolist()  # in units of one severity
    interval, p_value = exact_paired(changes, largest=2 * len(found))
    estimate, low, high = (each / len(found) for each in (interval.estimate, interval.low, interval.high))
    first, second = (float(each.mean()) for each in right)
    return {
        **{"first": first, "second": second, "difference": first - second},
        **{"change": estimate, "low": low, "high": high, "p_value": p_value},
    }
