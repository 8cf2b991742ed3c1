"""Texts and pages from Jinja2 templates, and the Markdown and the conclusions of a comparison of runs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

from diffvit.reporting import arms, tables
from diffvit.reporting.arms import Arm


@cache
def environment() -> Environment:
    """The Jinja2 environment of all templates; a template's name is its path in the package. HTML is escaped.

    Filters: ``percent`` and ``points`` of fractions, ``span`` of an interval of them, ``count`` (thousands apart),
    ``duration`` of seconds, ``table`` (a :class:`~diffvit.reporting.tables.Table`), ``uri`` (PNG bytes as a data URI).
    """
    made = Environment(
        loader=PackageLoader("diffvit", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": tables.percent,
        "points": lambda fraction, digits=1: f"{100 * fraction:+z.{digits}f}",
        "span": arms.span,
        "count": lambda number: f"{number:,}",
        "duration": tables.duration,
        "table": tables.markdown,
        "uri": data_uri,
    }
    return made


def template(name: str) -> Template:
    """A template of the package."""
    return environment().get_template(name)


def render(name: str, /, **values: Any) -> str:
    """A template of the package filled in."""
    return template(name).render(values)


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """A file's content as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def statements(grouped: Sequence[Arm]) -> list[str]:
    """What may be said of these arms, one sentence or two each; a winner only with seeds and an interval."""
    refusal = arms.why_apart([record for arm in grouped for record in arm.records])
    text = render("reporting/statements.txt", refusal=refusal, groups=arms.comparisons(grouped))
    return text.splitlines()


def report(grouped: Sequence[Arm], title: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown, for reading in a repository; ``pictures`` are (file, alternative text) beside it."""
    jpeg = [arm for arm in grouped if arm.records[0].row["data"] == tables.JPEG]
    first = [arm for arm in grouped if arm.records[0].row["data"] != tables.JPEG]
    return render(
        "reporting/report.md",
        title=title,
        paragraphs=[*data_lines(record.row for arm in grouped for record in arm.records), *statements(grouped)],
        figures=tables.side_by_side(first or jpeg),
        notes=tables.FIGURE_NOTES,
        jpeg=(tables.JPEG, tables.side_by_side(jpeg)) if first and jpeg else None,
        classes=tables.class_table(grouped),
        differing=tables.difference_table(grouped),
        pictures=pictures,
        commands=[(arm.label, tables.command(arm)) for arm in grouped],
    )


def data_lines(rows: Iterable[tables.Row]) -> list[str]:
    """The name of each data of these rows in bold, with the sentence that belongs to it."""
    return [f"**Data: {name}.** {note}".strip() for name, note in tables.data_notes(rows)]
