"""From rows to answers: probabilities, the best classes of each picture, and the figures of a whole set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from diffvit.clip.load import Clip
from diffvit.clip.zero_shot import Classifier
from diffvit.errors import ConfigError
from diffvit.reporting.stats import wilson
from diffvit.training.score import calibration_gap

TOP = 5
_PIECE = 4_096  # pictures at once: beside the probabilities themselves, 1000 classes then take tens of MB


@dataclass(frozen=True)
class Answers:
    """A model's answers, one per picture.

    Args:
        top: the best classes, best first, at most five; of equal probabilities the first class. -1 where unreadable.
        chances: their probabilities; NaN where unreadable.
        truth: the probability of the true class; NaN where unreadable.
        rank: the place of the true class, 0 the best; where unreadable the number of classes, beyond every place.
        labels: the true classes.
        readable: whether the picture could be read.
    """

    top: Int64[Tensor, "n k"]
    chances: Float32[Tensor, "n k"]
    truth: Float32[Tensor, " n"]
    rank: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    readable: Bool[Tensor, " n"]


def zero_shot_chances(
    clip: Clip, classifier: Classifier, rows: Float32[Tensor, "n width"]
) -> Float32[Tensor, "n labels"]:
    """The probability of each label: softmax of exp(logit_scale) times the cosine. NaN rows stay NaN.

    Classes of the same name get the very same probability: their product is computed once.

    Args:
        clip: the model that rows and classifier were made with.
        classifier: from :func:`diffvit.clip.zero_shot.zero_shot_classifier`.
        rows: of unit length, on the CPU.

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
    spread = torch.tensor([place_of[label] for label in classifier.labels])
    weights = classifier.weights[list(first.values())].T
    scale = clip.model.logit_scale.detach().exp().float().cpu()  # pyright: ignore[reportCallIssue]
    chances = torch.empty(len(rows), len(classifier.labels))
    for piece in _pieces(len(rows)):
        logits = scale * (rows[piece] @ weights)
        chances[piece] = (logits if len(first) == len(spread) else logits[:, spread]).softmax(dim=1)
    return chances


def supervised_chances(
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
    chances = torch.zeros(len(logits), len(groups))
    for piece in _pieces(len(logits)):
        chances[piece] = chances[piece].index_add(1, owner, logits[piece][:, members].softmax(dim=1))
    return chances


def answers_of(
    chances: Float32[Tensor, "n classes"], labels: Int64[Tensor, " n"], readable: Bool[Tensor, " n"]
) -> Answers:
    """What is answered with these probabilities.

    Args:
        chances: of each class; may be NaN where unreadable.
        labels: the true classes.
        readable: whether the picture could be read.
    """
    count, classes = chances.shape
    best = min(TOP, classes)
    top = torch.full((count, best), -1)
    values = torch.full((count, best), torch.nan)
    truth = torch.full((count,), torch.nan)
    rank = torch.full((count,), classes)
    numbers = torch.arange(classes)
    for piece in _pieces(count):
        where = readable[piece].nonzero()[:, 0] + piece.start
        rows, mine = chances[where], labels[where, None]
        own = rows.gather(1, mine)
        truth[where] = own[:, 0]
        rank[where] = ((rows > own) | ((rows == own) & (numbers < mine))).sum(dim=1)
        for place in range(best):  # argmax takes the first of equal ones, which topk does not promise
            found = rows.argmax(dim=1, keepdim=True) if len(rows) else mine
            top[where, place], values[where, place] = found[:, 0], rows.gather(1, found)[:, 0]
            rows.scatter_(1, found, -1.0)
    return Answers(top, values, truth, rank, labels, readable)


def summary(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """The figures of a set, over the pictures that could be read; plain numbers, ready for JSON.

    Args:
        answers: of one model.
        classes: names in label order.

    Returns:
        ``images`` and ``unreadable`` (counts), ``accuracy`` with ``low`` and ``high`` (Wilson's interval, 95%),
        ``top5``, ``mean_confidence``, ``calibration_error`` (15 bins), all fractions or None without pictures
        (``top5`` also for fewer than six classes), and
        ``per_class``: ``class``, ``images``, ``accuracy``, ``low``, ``high`` of each.
    """
    seen = answers.readable
    rank, labels = answers.rank[seen], answers.labels[seen]
    confidence = answers.chances[seen][:, 0].double()
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
