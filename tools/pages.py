"""Generated files: text from templates, a part of a page between two markers, pictures; compared or written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader

from diffvit.errors import InputError
from diffvit.files import brought_up_to_date
from diffvit.measuring import counted
from diffvit.reporting.style import stamp_of
from diffvit.reporting.texts import environment

ROOT = Path(__file__).parents[1]
_TEMPLATES = environment().overlay(loader=FileSystemLoader(Path(__file__).parent / "templates"))
_TEMPLATES.filters = _TEMPLATES.filters | {"counted": counted}


@dataclass(frozen=True)
class Picture:
    """A plot that is drawn only where the committed file carries another stamp: PNG bytes vary with library versions.

    Args:
        stamp: digest of what it is drawn from.
        draw: gives the PNG bytes, which carry the stamp.
    """

    stamp: str
    draw: Callable[[], bytes]


Content = str | bytes | Picture


def render(template: str, **values: Any) -> str:
    """A template of ``tools/templates/`` filled in; any number of blank lines become one, the last line ends."""
    text = _TEMPLATES.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a generated part of a page."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def with_block(page: Path, name: str, text: str) -> str:
    """A page with this text between its two :func:`markers`.

    Raises:
        InputError: the page cannot be read, or does not hold the two markers once each, in this order.
    """
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(page), f"cannot be read ({error.__class__.__name__})") from None
    return in_block(old, page, name, text)


def in_block(old: str, page: Path, name: str, text: str) -> str:
    """:func:`with_block` of a page's text; ``page`` is its name in the error.

    Raises:
        InputError: it does not hold the two markers once each, in this order.
    """
    start, end = markers(name)
    if old.count(start) != 1 or old.count(end) != 1 or old.index(start) > old.index(end):
        raise InputError(str(page), f"must hold {start} and then {end}, once each")
    return f"{old.split(start)[0]}{start}\n{text}\n{end}{old.split(end)[1]}"


def update(made: Mapping[Path, Content], maker: str, root: Path = ROOT, *, check: bool) -> list[str]:
    """Write the files that differ from what they must contain, or only name them.

    A picture counts as the same where it carries the same stamp.

    Args:
        made: file, relative to ``root``, to content.
        maker: name of the module that made it.
        root: of the project.
        check: write nothing.

    Returns:
        A line for each file that differed.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    wanted: dict[Path, tuple[bytes, str]] = {}
    for path, content in made.items():
        stamp = _stamp(path, content)
        if stamp is not None and stamp_of(root / path) == stamp:
            continue
        why = f"is not what tools/{maker}.py makes from the committed results"
        wanted[root / path] = (_bytes(content, check), why)
    return [line.removeprefix(f"{root}/") for line in brought_up_to_date(wanted, check=check)]


def _stamp(path: Path, content: Content) -> str | None:
    if isinstance(content, Picture):
        return content.stamp
    return stamp_of(io.BytesIO(content)) if isinstance(content, bytes) and path.suffix == ".png" else None


def _bytes(content: Content, check: bool) -> bytes:
    if isinstance(content, Picture):
        return b"" if check else content.draw()
    return content.encode() if isinstance(content, str) else content
