"""Checkpoints that are whole or not there: what a resume needs, each file with its SHA-256 in a manifest.

A checkpoint is a folder ``step-00000391``: safetensors files, ``progress.json`` and ``manifest.json``. It is written
under a temporary name, flushed, renamed, and the parent folder flushed. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from diffvit.errors import InputError
from diffvit.files import flush, sha256_of, to_json

KEPT = 2
_FORMAT = 1
_PREFIX, _TEMPORARY = "step-", ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found intact."""

    path: Path
    step: int
    progress: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU; empty where there is no such file."""
        file = self.path / f"{name}.safetensors"
        return safetensors.torch.load_file(file) if file.exists() else {}


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]) -> Path:
    """Write the checkpoint after ``step`` optimiser steps and drop all but the newest two.

    ``tensors`` are named tensors by the name of their file, without suffix; ``progress`` holds plain JSON values.
    OSError where the disk refuses; the checkpoints that were there are then untouched.
    """
    final, temporary = folder / f"{_PREFIX}{step:08d}", folder / f"{_TEMPORARY}{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files = {}
        for name, group in tensors.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            files[f"{name}.safetensors"] = _write(temporary / f"{name}.safetensors", safetensors.torch.save(plain))
        files["progress.json"] = _write(temporary / "progress.json", to_json(progress))
        _write(temporary / "manifest.json", to_json({"format": _FORMAT, "step": step, "files": files}))
        flush(temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():  # a damaged one that was skipped, now reached again
        shutil.rmtree(final)
    temporary.replace(final)
    flush(folder)
    flush(folder.parent)  # for the first one makes the folder
    # Drop what is older than the newest two up to this one, and what a kill left half written.
    known = _steps(folder)
    old = sorted(each for each in known if each <= step)[:-KEPT]
    for path in [*(known[each] for each in old), *folder.glob(f"{_TEMPORARY}*")]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def _write(file: Path, content: bytes) -> dict[str, Any]:
    """Write a file and wait until it is on the disk; its entry in the manifest."""
    file.write_bytes(content)
    flush(file)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint; None where none was ever written, InputError where every one is damaged.

    ``warn`` gets one line for each damaged one that is skipped.
    """
    found = sorted(_steps(folder).items(), reverse=True)
    for step, path in found:
        try:
            return Checkpoint(path, step, _verified_progress(path, step))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"its manifest is unreadable ({error})"
            warn(f"warning: checkpoint {path} is damaged and skipped: {reason}")
    if found:
        why = f"none of its {len(found)} checkpoints is intact"
        raise InputError(str(folder), why, "Start the run again with another --out.")
    return None


def _verified_progress(path: Path, step: int) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    if manifest["format"] != _FORMAT or manifest["step"] != step:
        raise ValueError(f"its manifest is of another kind (format {manifest['format']}, step {manifest['step']})")
    for name, entry in manifest["files"].items():
        file = path / Path(name).name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise ValueError(f"{name} has the wrong size ({file.stat().st_size} vs {entry['bytes']} bytes)")
        if sha256_of(file) != entry["sha256"]:
            raise ValueError(f"{name} does not have the SHA-256 of its manifest")
    if "progress.json" not in manifest["files"]:
        raise ValueError("progress.json is missing")
    return json.loads((path / "progress.json").read_bytes())


def _steps(folder: Path) -> dict[int, Path]:
    paths = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    return {int(path.name.removeprefix(_PREFIX)): path for path in paths if path.name[len(_PREFIX) :].isdecimal()}
