"""Two sides of a comparison: what each model answers to the same pictures, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from diffvit.clip.evaluation.answers import Answers, answers_of, supervised_chances, zero_shot_chances
from diffvit.clip.evaluation.encoded import Change, Encoded, encode_all
from diffvit.clip.evaluation.encoders import Encoder
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.load import Clip
from diffvit.clip.zero_shot import Classifier, Progress
from diffvit.errors import InputError
from diffvit.reporting.stats import CONFIDENCE, exact_paired

Watch = Callable[[str], Progress]  # from what is counted ("pictures, CLIP RN50") to who is told


@dataclass(frozen=True)
class Side:
    """A model that answers with classes.

    Args:
        encoder: what is computed once per picture.
        chances: from its rows to the probabilities of the classes; NaN rows stay NaN.
    """

    encoder: Encoder
    chances: Callable[[Float32[Tensor, "n width"]], Float32[Tensor, "n classes"]]


def zero_shot_side(encoder: Encoder, clip: Clip, classifier: Classifier) -> Side:
    """A CLIP, its encoder, and a classifier that it made of names."""
    return Side(encoder, lambda rows: zero_shot_chances(clip, classifier, rows))


def supervised_side(encoder: Encoder, groups: Sequence[Sequence[int]]) -> Side:
    """A model with classes of its own, some of which stand for each of the classes asked for."""
    return Side(encoder, lambda rows: supervised_chances(rows, groups))


@dataclass(frozen=True)
class Answered:
    """What the sides said, in their order.

    Args:
        answers: a picture that one of them could not read is readable for none.
        encoded: their rows.
        faults: of the pictures that could not be read, each once.
    """

    answers: list[Answers]
    encoded: list[Encoded]
    faults: list[InputError]


def answered(
    sides: Sequence[Side], labelled: Labelled, *, change: Change | None = None, watch: Watch | None = None
) -> Answered:
    """Every side on every picture.

    Args:
        sides: the models.
        labelled: the pictures.
        change: what is done to them first.
        watch: who is told how far it is.

    Raises:
        InputError: a model's features are not finite.
    """
    what = f"pictures, {change.name}" if change else "pictures"
    found = [
        encode_all(side.encoder, labelled, change=change, progress=watch and watch(f"{what}, {side.encoder.name}"))
        for side in sides
    ]
    readable = ~torch.stack([encoded.rows.isnan().any(dim=1) for encoded in found]).any(dim=0)
    labels = torch.tensor(labelled.labels, dtype=torch.int64)
    answers = [
        answers_of(side.chances(encoded.rows), labels, readable) for side, encoded in zip(sides, found, strict=True)
    ]
    faults = {fault.what: fault for encoded in found for fault in encoded.faults}
    return Answered(answers, found, list(faults.values()))


def paired(answers: Sequence[Answers], places: Sequence[int] | None = None) -> dict[str, Any]:
    """The first model's accuracy minus the second's, with its 95% interval over which pictures were drawn.

    Args:
        answers: of the two models.
        places: of the classes whose pictures count; None for all of them.

    Returns:
        ``images``, ``first``, ``second`` (accuracies), ``only_first``, ``only_second`` (counts), ``difference``,
        ``low``, ``high`` (fractions), ``p_value`` (McNemar's exact test; see
        :func:`diffvit.reporting.stats.exact_paired`); None without pictures.
    """
    one, two = answers
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
    """Rows of :func:`paired` or of shifts, judged together: ``decided`` is whether a row's difference is not zero.

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
