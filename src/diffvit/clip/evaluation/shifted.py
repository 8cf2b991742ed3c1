"""How a comparison changes when the pictures do: both models on the same pictures under each shift and severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffvit.clip.evaluation.answers import Answers
from diffvit.clip.evaluation.encoded import Change
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.evaluation.shifts import Shift
from diffvit.clip.evaluation.sides import Side, Watch, answered, decided, paired
from diffvit.reporting.stats import exact_paired


def under_shifts(
    sides: Sequence[Side], labelled: Labelled, shifts: Sequence[Shift], *, watch: Watch | None = None
) -> dict[str, Any]:
    """Two models on these pictures as they are and under each shift.

    Args:
        sides: the two.
        labelled: the pictures, of which one at least can be read.
        shifts: see :func:`diffvit.clip.evaluation.shifts.shifts`.
        watch: who is told how far it is.

    Returns:
        ``images``; ``original``, and ``cells`` with ``shift``, ``severity`` and ``words``, of what
        :func:`~diffvit.clip.evaluation.sides.paired` gives; ``kinds``, which are means over the severities of each:
        ``shift``, ``first``, ``second`` (accuracies), ``difference``, ``change`` (of the difference, from the original
        pictures), its 95% interval ``low`` and ``high`` over which pictures were drawn, ``p_value``, and ``decided``,
        for all kinds together (see :func:`~diffvit.clip.evaluation.sides.decided`).

    Raises:
        InputError: a model's features are not finite.
    """
    original = answered(sides, labelled, watch=watch).answers
    cells: list[dict[str, Any]] = []
    kinds: list[dict[str, Any]] = []
    for kind in dict.fromkeys(shift.name for shift in shifts):
        mine = [shift for shift in shifts if shift.name == kind]
        found = []
        for shift in mine:
            change = Change(f"{shift.name} {shift.severity}: {shift.words}", shift.apply)
            answers = answered(sides, labelled, change=change, watch=watch).answers
            cell = {"shift": kind, "severity": shift.severity, "words": shift.words}
            cells.append({**cell, **paired(answers)})
            found.append(answers)
        kinds.append({"shift": kind, **_means(original, found)})
    before = paired(original)
    return {"images": before["images"], "original": before, "cells": cells, "kinds": decided(kinds)}


def _means(original: Sequence[Answers], found: Sequence[Sequence[Answers]]) -> dict[str, Any]:
    """Over the severities, pictures together."""
    seen = original[0].readable  # a picture that can be read can be shifted
    right = [
        torch.stack([(answers[side].rank[seen] == 0).double() for answers in found]).mean(0)
        for side in range(len(original))
    ]
    before = (original[0].rank[seen] == 0).double() - (original[1].rank[seen] == 0).double()
    changes = ((right[0] - right[1] - before) * len(found)).round().int().tolist()  # in units of one severity
    interval, p_value = exact_paired(changes, largest=2 * len(found))
    estimate, low, high = (each / len(found) for each in (interval.estimate, interval.low, interval.high))
    first, second = (float(each.mean()) for each in right)
    return {
        **{"first": first, "second": second, "difference": first - second},
        **{"change": estimate, "low": low, "high": high, "p_value": p_value},
    }
