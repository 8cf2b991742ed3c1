"""The self-contained page of a look: its pictures, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffvit import __version__
from diffvit.attention.subject import Subject
from diffvit.models.attention import DifferentialAttention
from diffvit.models.vit import Block


@dataclass(frozen=True)
class Drawn:
    """One picture of the page.

    Args:
        alt: what it shows, for those who do not see it.
        shown: a data URI.
        text: its caption.
    """

    alt: str
    text: str
    shown: str


def page_of(
    subject: Subject,
    query: tuple[int, int] | None,
    rolled: bool,
    sections: Sequence[tuple[str, Sequence[Drawn]]],
    common: Sequence[Drawn],
    command: str,
) -> str:
    """The page as HTML.

    Args:
        subject: the model.
        query: the patch that asked; None for what the model pools.
        rolled: whether rollout is among the pictures.
        sections: per image its title and pictures.
        common: the pictures that are about all of them.
        command: to repeat it; empty for none.
    """
    environment = Environment(
        loader=PackageLoader("diffvit.attention", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=f"What {subject.name} attends to",
        subtitle=f"{subject.source}; diffvit {__version__}".removeprefix("; "),
        how=_how_to_read(subject, query, rolled),
        sections=sections,
        common=common,
        command=command,
    )


def _how_to_read(subject: Subject, query: tuple[int, int] | None, rolled: bool) -> list[str]:
    asker = "[CLS], the token the model answers with," if subject.model.pool == "cls" else "a patch, on average,"
    if query is not None:
        asker = f"the patch in row {query[0]}, column {query[1]} (outlined; both counted from 0)"
    lines = [f"A map shows how much {asker} reads of each patch in one head of one layer."]
    first = subject.model.blocks[0]
    if isinstance(first, Block) and isinstance(first.attn, DifferentialAttention):
        lines.append(
            "A differential head subtracts: A1 minus lambda times A2. Red is read, blue is taken away, white is "
            "neither. Where lambda is negative, the second map is added."
        )
    if rolled:
        lines.append(
            "Rollout follows attention from the first layer to the last, with the identity for the residual branch."
        )
    lines.append(
        "Attention tells where a head reads, not what is made of it: values, norms and MLPs act after it. A map is no "
        "explanation; diffvit attention RUN --score measures how good a pointer it is."
    )
    return lines
