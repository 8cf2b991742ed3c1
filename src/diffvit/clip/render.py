"""Texts and pages from the templates in ``clip/pages``, and files in a folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from diffvit.files import disk_faults, replace
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


def write_files(out: Path, files: Mapping[str, bytes], kept: str = "") -> list[Path]:
    """Write files by name into a folder, each whole; returns their paths.

    Raises:
        EnvironmentFault: one cannot be written; ``kept`` says what there is all the same.
    """
    with disk_faults(out, kept):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(out / name, content)
    return [out / name for name in files]
