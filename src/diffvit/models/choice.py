"""Refusing a name that is not among the known ones."""

from __future__ import annotations

from collections.abc import Iterable

from diffvit.errors import ConfigError, did_you_mean


def check_choice(what: str, found: str, allowed: Iterable[str]) -> None:
    """Pass if ``found`` is one of ``allowed``.

    Raises:
        ConfigError: it is not; the line lists the allowed names and the closest one.
    """
    names = list(allowed)
    if found not in names:
        hint = did_you_mean(str(found), names).strip()
        raise ConfigError(what, f"no {what} {found!r} (have {', '.join(names)})", hint.capitalize())
