"""Results as files: one JSON per benchmark, which everything else is made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffvit.errors import EnvironmentFault, InputError
from diffvit.training.files import disk_faults, replace, to_json

BENCHMARKS = ("train", "inference", "attention", "profile")
Result = dict[str, Any]


def refuse_folder(folder: Path) -> None:
    """Say before measuring, not after, that a folder cannot be written to.

    Raises:
        EnvironmentFault: it is a file, or there is no permission.
    """
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "cannot be written to" if place.is_dir() else f"is no folder ({place} is a file)"
        raise EnvironmentFault(str(folder), why, "Nothing was measured; give another --out.")


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Keep a result as ``folder/BENCHMARK.json``; returns its path.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    path = folder / f"{result['benchmark']}.json"
    with disk_faults(path):
        folder.mkdir(parents=True, exist_ok=True)
        replace(path, to_json(dict(result), indent=1))
    return path


def read(folder: Path) -> dict[str, Result]:
    """The results in a folder, by benchmark, in the fixed order; those that were not measured are left out.

    Raises:
        InputError: a file is not what :func:`write` wrote.
    """
    found = {name: folder / f"{name}.json" for name in BENCHMARKS}
    return {name: _read(path, name) for name, path in found.items() if path.exists()}


def _read(path: Path, name: str) -> Result:
    again = f"Measure it again: diffvit bench {name} --out {path.parent}"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as JSON ({type(error).__name__})", again) from None
    if not isinstance(result, dict) or result.get("benchmark") != name:
        raise InputError(str(path), f"is not a result of diffvit bench {name}", again)
    return result


def stamp(result: Mapping[str, Any]) -> str:
    """SHA-256 of a result's content, which its plot carries."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
