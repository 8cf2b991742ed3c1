"""Trained models that come with the package: a registry of files, each with its SHA-256 and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffvit.errors import InputError
from diffvit.files import sha256_of

FOLDER = Path(__file__).parent


def registry(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """``{name: {"file", "sha256", "card", ...}}`` from the folder's registry.json; empty where there is none."""
    path = folder / "registry.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def names() -> list[str]:
    """Names of the packaged models, as :func:`diffvit.load` takes them."""
    return sorted(registry())


def packaged(name: str, folder: Path = FOLDER) -> Path | None:
    """The file of a packaged model, its SHA-256 checked; None where the name is not one.

    Raises:
        InputError: the registry names the model but its file is missing or is not the one that was packaged.
    """
    entry = registry(folder).get(name)
    if entry is None:
        return None
    path = folder / entry["file"]
    if not path.is_file():
        raise InputError(f"packaged model {name}", f"its file {entry['file']} is missing", "Install diffvit again.")
    found = sha256_of(path)
    if found != entry["sha256"]:
        why = f"{entry['file']} is damaged (SHA-256 {found[:12]}... vs {entry['sha256'][:12]}...)"
        raise InputError(f"packaged model {name}", why, "Install diffvit again.")
    return path
