"""One picture seen by one model: a single forward pass, and then any number of questions about it. No web in here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffvit.app.kept import Kept
from diffvit.attention.capture import Record, capture_and_answer
from diffvit.attention.rollout import rollout
from diffvit.attention.subject import Picture, Subject

BUDGET = 48 * 2**20  # bytes of maps that are kept
_LAMBDA = "\N{GREEK SMALL LETTER LAMDA}"
NAMES = {"positive": "A1", "negative": f"{_LAMBDA} A2", "effective": f"A1 \N{MINUS SIGN} {_LAMBDA} A2"}


@dataclass(frozen=True)
class Question:
    """What is asked of a picture's maps.

    Args:
        layer: counted from 0; the last one answers for those beyond it.
        head: likewise; None for the mean over the heads.
        spot: who asks: a place on the picture, as shares (down, across) from 0 to below 1; None for what the model
            pools.
        rollout: arguments of :func:`diffvit.attention.rollout.rollout`.
    """

    layer: int = 0
    head: int | None = None
    spot: tuple[float, float] | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """What a model makes of a picture.

    Args:
        subject: the model.
        picture: as it was shown to the model.
        record: every layer's maps.
        logits: (classes,); None where the model does not classify.
    """

    subject: Subject
    picture: Picture
    record: Record
    logits: Float[Tensor, " classes"] | None

    @cached_property
    def chances(self) -> list[tuple[str, float]]:
        """Classes and their probabilities, the likeliest first."""
        if self.logits is None:
            return []
        values = self.logits.softmax(dim=0)
        order = values.argsort(descending=True, stable=True).tolist()
        names = list(self.subject.classes) or [f"class {place}" for place in range(len(values))]
        return [(names[place], float(values[place])) for place in order]

    @property
    def heads(self) -> int:
        """Of each layer; of differential attention, the differential heads."""
        return self.record.layers[0].positive.shape[1]

    def layer(self, question: Question) -> int:
        """The layer that answers."""
        return min(max(question.layer, 0), len(self.record.layers) - 1)

    def head(self, question: Question) -> int | None:
        """The head that answers."""
        return None if question.head is None else min(max(question.head, 0), self.heads - 1)

    def patch(self, question: Question) -> tuple[int, int] | None:
        """Row and column of the patch that asks; None for what the model pools."""
        if question.spot is None:
            return None
        rows, columns = (
            min(max(int(share * count), 0), count - 1)
            for share, count in zip(question.spot, self.record.grid, strict=True)
        )
        return rows, columns

    def maps(self, question: Question) -> dict[str, Float[Tensor, "rows columns"]]:
        """The map that was asked for; of differential attention all three: A1, what is subtracted, and what is left."""
        at = self.layer(question)
        if not self.record.differential:
            return {"attention": self._map(question, "effective")}
        lam = self.record.layers[at].lam
        assert lam is not None
        factors = {"positive": 1.0, "negative": float(lam), "effective": 1.0}
        return {NAMES[kind]: factor * self._map(question, kind) for kind, factor in factors.items()}

    def _map(self, question: Question, kind: str) -> Float[Tensor, "rows columns"]:
        heads = self.record.to_patches(self.layer(question), kind, self.patch(question))[0]
        head = self.head(question)
        return heads.mean(dim=0) if head is None else heads[head]

    def rolled(self, question: Question) -> Float[Tensor, "rows columns"]:
        """Attention rollout of the pooled token, through all layers.

        Raises:
            ConfigError: arguments without a meaning, or out of range.
        """
        return rollout(self.record, **question.rollout)[0]

    @property
    def nbytes(self) -> int:
        """Of the maps."""
        parts = [part for maps in self.record.layers for part in (maps.positive, maps.negative) if part is not None]
        return sum(part.nbytes for part in parts)


class Explorer:
    """Looks at pictures; what was looked at last is remembered, so that a question costs no forward pass.

    Args:
        budget: bytes of maps to remember.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._looks: Kept[Look] = Kept(budget, lambda look: look.nbytes)

    def look(self, subject: Subject, picture: Picture) -> Look:
        """What a model makes of a picture, in one forward pass or from memory.

        Args:
            subject: the model; known again by its name and source.
            picture: as :func:`diffvit.attention.subject.fit` made it for this model.

        Raises:
            InputError: the picture does not fit the model.
        """
        digest = hashlib.sha256(picture.pixels.contiguous().numpy().data).hexdigest()
        key = (subject.name, subject.source, tuple(picture.pixels.shape), digest)
        return self._looks.get(key, lambda: _look(subject, picture))


def _look(subject: Subject, picture: Picture) -> Look:
    record, logits = capture_and_answer(subject.model, subject.normalised(picture.pixels[None]))
    return Look(subject, picture, record, None if logits is None else logits[0])
