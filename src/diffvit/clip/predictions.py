"""From features to predictions: probabilities, the best classes of each image, accuracies, and tests of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from diffvit.clip.load import Clip
from diffvit.clip.zero_shot import Classifier
from diffvit.errors import ConfigError
from diffvit.reporting.stats import CONFIDENCE, exact_paired, wilson
from diffvit.training.score import calibration_gap

TOP = 5
_PIECE = 4_096  # images at once: beside the probabilities themselves, 1000 classes then take tens of MB


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, one per image.

    Args:
        top: the best classes, best first, at most five; of equal probabilities the first class. -1 where unreadable.
        probabilities: of these; NaN where unreadable.
        truth: the probability of the true class; NaN where unreadable.
        rank: the place of the true class, 0 the best; where unreadable the number of classes, beyond every place.
        labels: the true classes.
        readable: whether the image could be read.
    """

    top: Int64[Tensor, "n k"]
    probabilities: Float32[Tensor, "n k"]
    truth: Float32[Tensor, " n"]
    rank: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    readable: Bool[Tensor, " n"]


def zero_shot_probabilities(
    clip: Clip, classifier: Classifier, rows: Float32[Tensor, "n width"]
) -> Float32[Tensor, "n labels"]:
    """The probability of each label: softmax of exp(logit_scale) times the cosine. NaN rows stay NaN.

    Classes of the same name get the very same probability: their product is computed once.

    Args:
        clip: the model that rows and classifier were made with.
        classifier: from :func:`diffvit.clip.zero_shot.zero_shot_classifier`.
        rows: image features of unit length, on the CPU.

    Raises:
        ConfigError: the classifier is of a model of another width.
    """
    if rows.shape[1] != classifier.weights.shape[1]:
        widths = f"{classifier.weights.shape[1]} vs {rows.shape[1]} features"
        raise ConfigError("classifier", f"was made with another model ({widths})")
    first: dict[str, int] = {}
    for place, label in enumerate(classifier.labels):
        first.setdefault(label, place)
    place_of = {label: place for place, label in enumerate(first)}
    columns = torch.tensor([place_of[label] for label in classifier.labels])
    weights = classifier.weights[list(first.values())].T
    scale = clip.model.logit_scale.detach().exp().float().cpu()  # pyright: ignore[reportCallIssue]
    found = torch.empty(len(rows), len(classifier.labels))
    for piece in _pieces(len(rows)):
        logits = scale * (rows[piece] @ weights)
        found[piece] = (logits if len(first) == len(columns) else logits[:, columns]).softmax(dim=1)
    return found


def supervised_probabilities(
    logits: Float32[Tensor, "n classes"], groups: Sequence[Sequence[int]]
) -> Float32[Tensor, "n groups"]:
    """The probability of each group of classes: softmax over all classes that are in one, summed over the group.

    Args:
        logits: on the CPU; NaN rows stay NaN.
        groups: places of classes, none in two groups and no group empty.

    Raises:
        ValueError: such a group.
    """
    members = [place for group in groups for place in group]
    if len(set(members)) != len(members) or not all(groups):
        raise ValueError("groups must not be empty or share a class")
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group])
    found = torch.zeros(len(logits), len(groups))
    for piece in _pieces(len(logits)):
        found[piece] = found[piece].index_add(1, owner, logits[piece][:, members].softmax(dim=1))
    return found


def predictions_of(
    probabilities: Float32[Tensor, "n classes"], labels: Int64[Tensor, " n"], readable: Bool[Tensor, " n"]
) -> Predictions:
    """The predictions that these probabilities (NaN where unreadable) give."""
    count, classes = probabilities.shape
    best = min(TOP, classes)
    top = torch.full((count, best), -1)
    values = torch.full((count, best), torch.nan)
    truth = torch.full((count,), torch.nan)
    rank = torch.full((count,), classes)
    numbers = torch.arange(classes)
    for piece in _pieces(count):
        where = readable[piece].nonzero()[:, 0] + piece.start
        rows, mine = probabilities[where], labels[where, None]
        own = rows.gather(1, mine)
        truth[where] = own[:, 0]
        rank[where] = ((rows > own) | ((rows == own) & (numbers < mine))).sum(dim=1)
        for place in range(best):  # argmax takes the first of equal ones, which topk does not promise
            found = rows.argmax(dim=1, keepdim=True) if len(rows) else mine
            top[where, place], values[where, place] = found[:, 0], rows.gather(1, found)[:, 0]
            rows.scatter_(1, found, -1.0)
    return Predictions(top, values, truth, rank, labels, readable)


def summary(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """The figures over the images that could be read; plain numbers, ready for JSON.

    Args:
        predictions: of one model.
        classes: names in label order.

    Returns:
        ``images`` and ``unreadable`` (counts), ``accuracy`` with ``low`` and ``high`` (Wilson's interval, 95%),
        ``top5``, ``mean_confidence``, ``calibration_error`` (15 bins), all fractions or None without images
        (``top5`` also for fewer than six classes), and
        ``per_class``: ``class``, ``images``, ``accuracy``, ``low``, ``high`` of each.
    """
    seen = predictions.readable
    rank, labels = predictions.rank[seen], predictions.labels[seen]
    confidence = predictions.probabilities[seen][:, 0].double()
    images = torch.bincount(labels, minlength=len(classes)).tolist()
    right = torch.bincount(labels[rank == 0], minlength=len(classes)).tolist()
    count = len(rank)
    return {
        **_share(sum(right), count),
        "unreadable": len(seen) - count,
        "top5": int((rank < TOP).sum()) / count if count and len(classes) > TOP else None,
        "mean_confidence": float(confidence.mean()) if count else None,
        "calibration_error": calibration_gap(confidence, rank == 0) if count else None,
        "per_class": [
            {"class": name, **_share(good, among)} for name, good, among in zip(classes, right, images, strict=True)
        ],
    }


def _share(correct: int, count: int) -> dict[str, Any]:
    if not count:
        return {"images": 0, "accuracy": None, "low": None, "high": None}
    found = wilson(correct, count)
    return {"images": count, "accuracy": found.estimate, "low": found.low, "high": found.high}


def _pieces(count: int) -> Iterator[slice]:
    for first in range(0, count, _PIECE):
        yield slice(first, min(first + _PIECE, count))


def paired(predictions: Sequence[Predictions], places: Sequence[int] | None = None) -> dict[str, Any]:
    """The first model's accuracy minus the second's, with its 95% interval over which images were drawn.

    Args:
        predictions: of the two models.
        places: of the classes whose images count; None for all of them.

    Returns:
        ``images``, ``first``, ``second`` (accuracies), ``only_first``, ``only_second`` (counts of images that one model
        alone gets right), ``difference``, ``low``, ``high`` (fractions), ``p_value`` (McNemar's exact test; see
        :func:`diffvit.reporting.stats.exact_paired`); None without images.
    """
    one, two = predictions
    seen = one.readable if places is None else one.readable & torch.isin(one.labels, torch.tensor(places))
    right = [(each.rank[seen] == 0).int() for each in (one, two)]
    count, differences = int(seen.sum()), (right[0] - right[1]).tolist()
    found: dict[str, Any] = {"images": count, "only_first": differences.count(1), "only_second": differences.count(-1)}
    if not count:
        return found | dict.fromkeys(("first", "second", "difference", "low", "high", "p_value"))
    interval, p_value = exact_paired(differences)
    first, second = (int(each.sum()) / count for each in right)
    return found | {
        **{"first": first, "second": second, "difference": interval.estimate},
        **{"low": interval.low, "high": interval.high, "p_value": p_value},
    }


def decided(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`paired` or of shifts, tested together: ``decided`` is whether a row's difference is not zero.

    Holm 1979, "A simple sequentially rejective multiple test procedure": with 95% none of the rows is decided wrongly,
    however many there are.
    """
    order = sorted(
        (place for place, row in enumerate(rows) if row["p_value"] is not None), key=lambda n: rows[n]["p_value"]
    )
    passed: set[int] = set()
    for rank, place in enumerate(order):
        if rows[place]["p_value"] > (1 - CONFIDENCE) / (len(order) - rank):
            break
        passed.add(place)
    # A shift's interval may hold zero where its test decides; of categories both agree.
    return [
        {**row, "decided": place in passed and (row["low"] > 0 or row["high"] < 0)} for place, row in enumerate(rows)
    ]
