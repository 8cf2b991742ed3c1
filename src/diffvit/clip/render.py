"""Texts and pages from the templates in ``clip/pages``."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from diffvit.reporting.tables import percent


def render(name: str, /, **values: Any) -> str:
    """A template filled in; in HTML, values are escaped.

    Filters: ``percent`` and ``points`` of fractions, ``count`` (thousands apart), ``uri`` (PNG bytes as a data URI).
    """
    environment = Environment(
        loader=PackageLoader("diffvit.clip", "pages"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": lambda fraction, digits=1: f"{100 * fraction:+.{digits}f}",
        "count": lambda number: f"{number:,}",
        "uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
    }
    return environment.get_template(name).render(values)
