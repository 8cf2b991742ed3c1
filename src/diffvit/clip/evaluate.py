"""CLIP zero-shot, and a supervised model beside it, on labelled images: accuracies, and a comparison by category.

Each image is encoded once per model (:mod:`diffvit.clip.encode`); every figure comes from the same predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from diffvit.clip.encode import Encoded, Encoder, encode_all, image_encoder
from diffvit.clip.labelled import Labelled, Superclass, imagenet_groups, superclasses, wordnet_names
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.published import beside
from diffvit.clip.templates import Templates, twins
from diffvit.clip.zero_shot import (
    PIECE,
    Classifier,
    Progress,
    kept_rows,
    unknown_words,
    zero_shot_classifier,
    zero_shot_probabilities,
)
from diffvit.data.shifts import Shift
from diffvit.errors import ConfigError, InputError
from diffvit.reporting.stats import CONFIDENCE, exact_paired, wilson
from diffvit.training.score import calibration_gap

TOP = 5
NO_IDS = "the classes are not named by WordNet ids"
_SHOWN, _LEAST, _PER_CLASS = 24, 4, 2  # images of all superclasses' galleries together; of one at least; of a class
_OUTLIERS = 8  # classes, at most, that the one model is best ahead in; and as many for the other
Watch = Callable[[str], Progress]  # from what is counted ("pictures, CLIP RN50") to who is told


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, one per image; where one could not be read, -1, NaN and a rank beyond every place.

    ``top`` are the best classes, at most five, of equal probabilities the first; ``truth`` is the probability of the
    true class, and ``rank`` its place, 0 the best.
    """

    top: Int64[Tensor, "n k"]
    probabilities: Float32[Tensor, "n k"]
    truth: Float32[Tensor, " n"]
    rank: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    readable: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` gives: the figures, ready for JSON, and the images and texts behind them.

    ``labelled`` are images of classes that all models can answer, ``shifted`` those that shifts were done to;
    ``faults`` are of unreadable images, ``warnings`` of what CLIP cannot read of the class names; ``models`` and
    ``found`` are the models in the order of ``result``, and what they computed.
    """

    result: dict[str, Any]
    labelled: Labelled
    shifted: Labelled
    faults: list[InputError]
    warnings: list[str]
    models: list[Model]
    found: Predicted


class Model(NamedTuple):
    """An encoder, and from its features to the probabilities of the classes; NaN rows stay NaN."""

    encoder: Encoder
    probabilities: Callable[[Float32[Tensor, "n width"]], Float32[Tensor, "n classes"]]


class Predicted(NamedTuple):
    """Predictions and features of each model; an image that one could not read counts for none."""

    predictions: list[Predictions]
    encoded: list[Encoded]
    faults: list[InputError]


def _answerable(labelled: Labelled, supervised: Supervised | None) -> tuple[list[int], list[list[int]]]:
    """The places of the classes that both models can answer, and for each its places among the supervised model's."""
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
        labelled: the images; those of classes that the supervised model cannot answer are left out for both.
        templates: the first set makes the classifier; a comparison gives the accuracy with each of the others too.
        supervised: the other model.
        names: for prompts and results, one per class; by default the classes' own.
        compare: whether both models are compared: by category and superclass, with galleries, under shifts, and the
            categories that they differ most in with other templates and names.
        shifts: done to ``shift_images`` of the images, spread over the classes.
        shift_images: how many.
        watch: makes a progress callback from what is counted.

    Returns:
        Of each model what :func:`summary` gives; of a comparison also what :func:`paired` gives, over all images and by
        class and superclass, and what :func:`under_shifts` gives.

    Raises:
        ConfigError: class names that CLIP cannot tell apart, or of which the supervised model knows none.
        InputError: WordNet ids without names, features that are not finite, or no image that can be read.
    """
    places, groups = _answerable(labelled, supervised)
    named = labelled.named(names)
    left_out = [name for place, name in enumerate(named.classes) if place not in set(places)]
    above = superclasses(labelled.only(places)) if compare else ()  # by the classes' own names
    synonyms = wordnet_names(labelled.only(places)) if compare else []
    labelled = named.only(places)
    classes = labelled.classes
    classifiers = [
        zero_shot_classifier(clip, classes, each, progress=watch and watch(f"labels, {each.name}"))
        for each in (templates if compare else templates[:1])
    ]
    encoder = image_encoder(clip)
    models = [Model(encoder, lambda rows: zero_shot_probabilities(clip, classifiers[0], rows))]
    used: list[Clip | Supervised] = [clip]
    if supervised is not None:
        models.append(Model(image_encoder(supervised), lambda rows: supervised_probabilities(rows, groups)))
        used.append(supervised)
    found = predict(models, labelled, watch=watch)
    first, readable = classifiers[0], found.predictions[0].readable
    result: dict[str, Any] = {
        "data": labelled.name,
        "images": len(labelled),
        "unreadable": int((~readable).sum()),
        "classes": list(classes),
        "left_out": left_out,
        "unknown_words": list(first.unknown),
        "cut_labels": list(first.cut),
        "models": [
            {"model": model.encoder.name, **each.facts, **_cost(encoded), **summary(predictions, classes)}
            for each, encoded, model, predictions in zip(used, found.encoded, models, found.predictions, strict=True)
        ],
        "failed": [{"image": _text(fault.what), "error": _text(str(fault))} for fault in found.faults],
    }
    for each, model in zip(used, result["models"], strict=True):
        model["published"] = beside(each.tag, labelled, model["accuracy"])
    sets: list[dict[str, Any]] = [{"name": each.name, "count": len(each.texts)} for each in templates]
    if not compare:
        ids = labelled.wordnet_ids
        result |= {
            "wordnet_ids": None if ids is None else list(ids),
            "same_names": [list(group) for group in first.twins],
            "labels_computed": first.computed,
            "templates": {**sets[0], "first": templates[0].texts[0]},
        }
        return Evaluation(result, labelled, labelled, found.faults, first.warnings, models, found)
    if not bool(readable.any()):
        raise found.faults[0]
    shifted = labelled.spread(shift_images, readable.nonzero()[:, 0].tolist())
    result |= _comparison(labelled, above, found)
    per_class, labels = result["per_class"], found.predictions[0].labels.where(readable, -1)
    others = {place: synonyms[place] for place in outliers(per_class)}
    accuracies, variants = sensitivity(clip, classifiers, templates, found.encoded[0].rows, labels, others, watch=watch)
    result["templates"] = [{**each, "accuracy": value} for each, value in zip(sets, accuracies, strict=True)]
    result["outliers"] = [{**per_class[place], "variants": rows} for place, rows in variants.items()]
    result["shifts"] = under_shifts(models, shifted, shifts, watch=watch) if shifts else None
    return Evaluation(result, labelled, shifted, found.faults, first.warnings, models, found)


def predict(
    models: Sequence[Model], labelled: Labelled, *, shift: Shift | None = None, watch: Watch | None = None
) -> Predicted:
    """Every model on every image, to which ``shift`` is done first.

    Raises:
        InputError: a model's features are not finite.
    """
    what = f"pictures, {shift.title}" if shift else "pictures"
    encoded = [
        encode_all(each.encoder, labelled, shift=shift, progress=watch and watch(f"{what}, {each.encoder.name}"))
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


def _cost(encoded: Encoded) -> dict[str, Any]:
    speed = encoded.computed / encoded.seconds if encoded.computed else None
    return {"computed": encoded.computed, "seconds": encoded.seconds, "images_per_second": speed}


def _text(line: str) -> str:
    """Also of a file's name that is no UTF-8: its bytes as escapes."""
    return line.encode(errors="backslashreplace").decode()


def _comparison(labelled: Labelled, groups: Sequence[Superclass], found: Predicted) -> dict[str, Any]:
    """Both models by category, by superclass and by image."""
    classes, (one, two) = labelled.classes, found.predictions
    both = [one, two]
    above = [
        {"superclass": each.name, "id": each.id, "classes": [classes[place] for place in each.members]}
        | paired(both, each.members)
        for each in groups
    ]
    kinds = [(each.name, each.members) for each in groups] or [("", range(len(classes)))]
    most = max(_LEAST, _SHOWN // len(kinds))
    galleries = [
        {"superclass": name, "first": gallery(one, two, members, most), "second": gallery(two, one, members, most)}
        for name, members in kinds
    ]
    answers = {}
    for number in sorted({number for each in galleries for side in ("first", "second") for number in each[side]}):
        best = [zip(each.top[number].tolist(), each.probabilities[number].tolist(), strict=True) for each in both]
        top = [[[classes[label], value] for label, value in each] for each in best]
        about = {"picture": labelled.places[number], "class": classes[labelled.labels[number]]}
        answers[str(number)] = {**about, "truth": [float(each.truth[number]) for each in both], "top": top}
    return {
        "overall": paired(both),
        "per_class": decided([{"class": name, **paired(both, [place])} for place, name in enumerate(classes)]),
        "superclasses": decided([row for row in above if row["images"]]),
        "no_superclasses": "" if groups else NO_IDS,
        "galleries": galleries,
        "answers": answers,
        "computed": [each.computed for each in found.encoded],
    }


def gallery(ahead: Predictions, behind: Predictions, members: Sequence[int], most: int) -> list[int]:
    """Images of the classes ``members`` to whose true class ``ahead`` gives more probability than ``behind``.

    The largest gap first; at most ``most`` images, and two of a class.
    """
    gaps = ahead.truth.double() - behind.truth.double()
    places = ((gaps > 0) & ahead.readable & torch.isin(ahead.labels, torch.tensor(members))).nonzero()[:, 0]
    chosen: list[int] = []
    counts = Counter[int]()
    for place in places[gaps[places].argsort(descending=True, stable=True)].tolist():
        label = int(ahead.labels[place])
        counts[label] += 1
        if counts[label] <= _PER_CLASS:
            chosen.append(place)
    return chosen[:most]


def outliers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the rows of :func:`paired` with the largest differences, first those of the second model.

    At most eight of each model, the largest first; of equal ones that with the smaller p-value.
    """
    chosen: list[int] = []
    for sign in (1, -1):
        mine = [place for place, row in enumerate(rows) if row["images"] and sign * row["difference"] < 0]
        mine.sort(key=lambda place: (sign * rows[place]["difference"], rows[place]["p_value"]))
        chosen += mine[:_OUTLIERS]
    return chosen


def sensitivity(
    clip: Clip,
    classifiers: Sequence[Classifier],
    templates: Sequence[Templates],
    rows: Float32[Tensor, "n width"],
    labels: Int64[Tensor, " n"],
    names: Mapping[int, Sequence[str]],
    *,
    watch: Watch | None = None,
) -> tuple[list[float], dict[int, list[dict[str, Any]]]]:
    """How much some classes' recall depends on the templates, and on what the class is called.

    Args:
        clip: the zero-shot model.
        classifiers: one for each of ``templates``.
        templates: other names are put into the first set.
        rows: CLIP's features of the images, at unit length.
        labels: of the images; -1 for those that do not count.
        names: by the place of a class that has images, other names for it, each tried while other classes keep theirs.
        watch: as for :func:`evaluate`.

    Returns:
        The accuracy with each set of templates; and by the place of each class its variants, first those with its own
        name: ``recall`` with ``low`` and ``high`` (Wilson's interval, 95%), and ``accuracy`` over all images. A name
        that is another class's, or of no word that a small CLIP knows, has none of them: ``unscored`` says why.
    """
    first, seen = classifiers[0], labels >= 0

    def right(of: Classifier) -> Bool[Tensor, " n"]:
        return (zero_shot_probabilities(clip, of, rows).argmax(dim=1) == labels)[seen]  # of equal ones the first

    def measured(place: int, hits: Bool[Tensor, " n"]) -> dict[str, Any]:
        mine = hits[labels[seen] == place]
        share = wilson(int(mine.sum()), len(mine))
        recall = {"recall": share.estimate, "low": share.low, "high": share.high}
        return {**recall, "accuracy": float(hits.double().mean())}

    with_sets = [right(each) for each in classifiers]
    variants: dict[int, list[dict[str, Any]]] = {}
    scored: list[tuple[int, dict[str, Any]]] = []
    for place, others in names.items():
        own = first.labels[place]
        tried = [(own, each.name) for each in templates]
        tried += [(name, templates[0].name) for name in others if name.casefold() != own.casefold()]
        taken = {label.casefold() for label in first.labels if label != own}
        mine = [{"name": name, "templates": used, **_reading(clip, name, taken)} for name, used in tried]
        for row, hits in zip(mine, with_sets, strict=False):
            row |= {"unscored": "", **measured(place, hits)}
        scored += [(place, row) for row in mine[len(templates) :] if not row["unscored"]]
        variants[place] = mine
    if scored:
        progress = watch and watch("labels, other names")
        made, _ = kept_rows(clip, [row["name"] for _, row in scored], templates[0], progress=progress)
        for (place, row), weights in zip(scored, made, strict=True):
            changed, called = first.weights.clone(), list(first.labels)
            changed[place], called[place] = weights, row["name"]
            row |= measured(place, right(replace(first, weights=changed, labels=tuple(called), twins=twins(called))))
    return [float(hits.double().mean()) for hits in with_sets], variants


def _reading(clip: Clip, name: str, taken: Collection[str]) -> dict[str, Any]:
    """Words of a name that a small CLIP does not know, and why the name cannot be scored, if so."""
    try:
        unknown, why = list(unknown_words(clip, [name])), ""
    except ConfigError:
        unknown, why = [name], "no word of it was in the captions"
    return {"unknown_words": unknown, "unscored": "another category's name" if name.casefold() in taken else why}


def under_shifts(
    models: Sequence[Model], labelled: Labelled, shifts: Sequence[Shift], *, watch: Watch | None = None
) -> dict[str, Any]:
    """Two models on these images (of which one at least can be read) as they are and under each shift.

    Returns what :func:`paired` gives of the ``original`` images and of each of the ``cells``; ``kinds`` has means over
    the severities: the ``change`` of the difference from the original images, its 95% interval ``low`` to ``high`` over
    which images were drawn, and ``decided``, for all kinds together (see :func:`decided`).
    """
    original = predict(models, labelled, watch=watch).predictions
    cells: list[dict[str, Any]] = []
    of_kind: dict[str, list[list[Predictions]]] = {}
    for shift in shifts:
        found = predict(models, labelled, shift=shift, watch=watch).predictions
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
    first, second = (float(each.mean()) for each in right)
    means = {"first": first, "second": second, "difference": first - second}
    of_change = {"change": interval.estimate, "low": interval.low, "high": interval.high}
    return means | {name: value / len(found) for name, value in of_change.items()} | {"p_value": p_value}


# From features to figures


def supervised_probabilities(
    logits: Float32[Tensor, "n classes"], groups: Sequence[Sequence[int]]
) -> Float32[Tensor, "n groups"]:
    """The probability of each group of classes: softmax over all classes that are in one, summed over the group.

    ``logits`` are on the CPU; NaN rows stay NaN. No class is in two groups.
    """
    members = [place for group in groups for place in group]
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group])
    shares = [piece[:, members].softmax(dim=1) for piece in logits.split(PIECE)]
    return torch.cat([torch.zeros(len(each), len(groups)).index_add(1, owner, each) for each in shares])


def predictions_of(
    probabilities: Float32[Tensor, "n classes"], labels: Int64[Tensor, " n"], readable: Bool[Tensor, " n"]
) -> Predictions:
    """The predictions that these probabilities (NaN where unreadable) give."""
    count, classes = probabilities.shape
    best = min(TOP, classes)
    top, values = torch.full((count, best), -1), torch.full((count, best), torch.nan)
    truth, rank = torch.full((count,), torch.nan), torch.full((count,), classes)
    for where in readable.nonzero()[:, 0].split(PIECE):
        ordered, order = probabilities[where].sort(dim=1, descending=True, stable=True)  # of equal ones the first first
        top[where], values[where] = order[:, :best], ordered[:, :best]
        rank[where] = (order == labels[where, None]).int().argmax(dim=1)
        truth[where] = probabilities[where, labels[where]]
    return Predictions(top, values, truth, rank, labels, readable)


def summary(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """One model's figures over the images that could be read, ready for JSON; ``classes`` are names in label order.

    Fractions are None without images: ``accuracy`` with ``low`` and ``high`` (Wilson's interval, 95%), ``top5`` (from
    six classes on), ``mean_confidence``, ``calibration_error`` (15 bins), and the accuracies ``per_class``.
    """
    seen = predictions.readable
    rank, labels = predictions.rank[seen], predictions.labels[seen]
    confidence = predictions.probabilities[seen][:, 0].double()
    images = torch.bincount(labels, minlength=len(classes)).tolist()
    right = torch.bincount(labels[rank == 0], minlength=len(classes)).tolist()
    count = len(rank)
    return {
        **share(sum(right), count),
        "unreadable": len(seen) - count,
        "top5": int((rank < TOP).sum()) / count if count and len(classes) > TOP else None,
        "mean_confidence": float(confidence.mean()) if count else None,
        "calibration_error": calibration_gap(confidence, rank == 0) if count else None,
        "per_class": [
            {"class": name, **share(good, among)} for name, good, among in zip(classes, right, images, strict=True)
        ],
    }


def share(correct: int, count: int) -> dict[str, Any]:
    """How many ``images``, and the ``accuracy`` with its 95% interval ``low`` to ``high``; None without images."""
    if not count:
        return {"images": 0, "accuracy": None, "low": None, "high": None}
    found = wilson(correct, count)
    return {"images": count, "accuracy": found.estimate, "low": found.low, "high": found.high}


def paired(predictions: Sequence[Predictions], places: Sequence[int] | None = None) -> dict[str, Any]:
    """The first model's accuracy minus the second's, over the images of the classes at ``places`` (None: of all).

    ``only_first`` and ``only_second`` count images that one model alone gets right; the 95% interval is over which
    images were drawn, ``p_value`` is McNemar's exact test (:func:`diffvit.reporting.stats.exact_paired`). Fractions are
    None without images.
    """
    one, two = predictions
    seen = one.readable if places is None else one.readable & torch.isin(one.labels, torch.tensor(places))
    right = [(each.rank[seen] == 0).int() for each in (one, two)]
    count, differences = int(seen.sum()), (right[0] - right[1]).tolist()
    found: dict[str, Any] = {"images": count, "only_first": differences.count(1), "only_second": differences.count(-1)}
    if not count:
        return found | dict.fromkeys(("first", "second", "difference", "low", "high", "p_value"))
    interval, p_value = exact_paired(differences)
    found |= {"first": int(right[0].sum()) / count, "second": int(right[1].sum()) / count}
    return found | {"difference": interval.estimate, "low": interval.low, "high": interval.high, "p_value": p_value}


def decided(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`paired` or of shifts, tested together: ``decided`` is whether a row's difference is not zero.

    Holm 1979, "A simple sequentially rejective multiple test procedure": with 95% none of the rows is decided wrongly,
    however many there are.
    """
    tested = [place for place, row in enumerate(rows) if row["p_value"] is not None]
    passed: set[int] = set()
    for rank, place in enumerate(sorted(tested, key=lambda place: rows[place]["p_value"])):
        if rows[place]["p_value"] > (1 - CONFIDENCE) / (len(tested) - rank):
            break
        passed.add(place)
    # A shift's interval may hold zero where its test decides; of categories both agree.
    return [
        {**row, "decided": place in passed and (row["low"] > 0 or row["high"] < 0)} for place, row in enumerate(rows)
    ]
