"""Put a trained model into the package: ``python -m tools.package RUN NAME``.

The matrices that bf16 autocast rounds anyway are stored in bf16, everything else in float32, so that evaluation under
bf16 autocast stays the same to the bit at about half the size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from diffvit import weights
from diffvit.clip.small.load import load_small
from diffvit.clip.small.task import score_clip
from diffvit.config import ClipConfig, parse, to_dict
from diffvit.errors import DiffvitError, InputError
from diffvit.files import disk_faults, replace, sha256_of, to_json
from diffvit.hub.files import read_header
from diffvit.models.attention import DifferentialAttention
from diffvit.reporting import tables, texts
from diffvit.reporting.arms import arms
from diffvit.reporting.rows import RunRecord, read_run
from diffvit.training.evaluate import evaluate
from diffvit.training.load import METADATA_KEY, MODEL_FILE, load_with_meta, metadata_of
from diffvit.training.run_dir import RunDir
from diffvit.training.task import load_split
from tools.pages import render

LARGEST = 4_000_000  # bytes
_WHEREABOUTS = ("data_dir", "device", "threads")


def package(
    run: RunDir | Path | str, name: str, folder: Path = weights.FOLDER, *, data_dir: Path | None = None
) -> Path:
    """Store a finished run's model under a name that :func:`diffvit.load` takes, with a card and its SHA-256.

    Args:
        run: the run folder; its test set is read again, by the stored weights.
        name: what to call the model.
        folder: where registry.json is.
        data_dir: where the data lies, if not where the run found it.

    Returns:
        The stored file.

    Raises:
        InputError: the run is not finished or not readable, or its model is too large to be packaged.
        EnvironmentFault: the files cannot be written.
    """
    record = read_run(run)
    assert record.folder is not None
    is_clip = record.row.get("objective") == "contrastive"
    model, meta = _loaded_clip(record.folder) if is_clip else load_with_meta(record.folder)
    settings = {key: value for key, value in meta.pop("config").items() if key not in _WHEREABOUTS}
    facts = {key: value for key, value in meta.items() if key != "file"}
    facts |= {"model": model.settings, "config": settings, "precision": record.row["precision"]}
    metadata = {METADATA_KEY: to_json(facts, indent=None).decode().strip()}
    content = safetensors.torch.save(compact(model), metadata)
    if len(content) > LARGEST:
        raise InputError(
            str(record.folder), f"its model is too large to be packaged ({len(content)} vs {LARGEST} bytes)"
        )
    file = folder / f"{name}.safetensors"
    with disk_faults(file):
        replace(file, content)
    if is_clip:
        found = _clip_figures(file, settings, data_dir)
    else:
        found = evaluate(file, data_dir=data_dir, precision=str(record.row["precision"]))
    entry = {
        **{"file": file.name, "sha256": sha256_of(file), "card": f"{name}.md"},
        **{"data": record.row["data"], "test_accuracy": found["accuracy"], "parameters": found["parameters"]},
    }
    registry = dict(sorted((weights.registry(folder) | {name: entry}).items()))
    with disk_faults(folder):
        replace(folder / f"{name}.md", _card(name, entry, record, found, settings).encode())
        replace(folder / "registry.json", (json.dumps(registry, indent=2) + "\n").encode())
    return file


def _loaded_clip(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A small CLIP with what :func:`load_with_meta` would tell of it."""
    path = folder / MODEL_FILE
    meta = metadata_of(path, read_header(path))
    return load_small(path).model, {**meta, "config": to_dict(RunDir.open(folder).config)}


def _clip_figures(file: Path, settings: Mapping[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """The figures of a stored small CLIP on its data's test set."""
    config, clip = parse(dict(settings)), load_small(file)
    assert isinstance(config, ClipConfig)
    images = load_split(config.model_copy(update={"data_dir": data_dir}), config.data, "test")
    look = clip.preprocessing
    model: Any = clip.model
    parameters = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    return score_clip(model, images, look.mean, look.std, config.captions) | parameters


def compact(model: nn.Module) -> dict[str, Tensor]:
    """The state with the weights of linear layers and convolutions in bf16, all else in float32.

    Differential attention multiplies its output projection by the norm's weight before autocast rounds it, so that
    matrix stays in float32 too.
    """
    modules = dict(model.named_modules())
    layers = {name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}
    layers -= {f"{name}.proj" for name, module in modules.items() if isinstance(module, DifferentialAttention)}
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        kind = torch.bfloat16 if last == "weight" and owner in layers else torch.float32
        kind = kind if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().cpu().to(kind).contiguous()
    return state


def _card(
    name: str, entry: Mapping[str, Any], record: RunRecord, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """The model card: what it is, what it scores, how it was made."""
    row = record.row
    (arm,) = arms([record])
    figures = tables.side_by_side([arm])
    lines = [cells for cells in figures.rows if cells[0] not in ("Test accuracy", "Top-5")]
    stored = [
        ["Test accuracy, these weights", tables.accuracy_cell([{**row, "test_accuracy": found["accuracy"]}])],
        ["Test accuracy, the run", tables.accuracy_cell([row])],
    ]
    if found["top5"] is not None:
        stored.append(["Top-5, these weights", tables.percent(found["top5"])])
    contrastive = row.get("objective") == "contrastive"
    return render(
        "card.md",
        name=name,
        label=arm.label,
        found=found,
        classes=record.classes,
        data_lines=texts.data_lines([row]),
        contrastive=contrastive,
        source=row["source"],
        figures=tables.Table(["", name], stored + lines),
        notes=tables.FIGURE_NOTES,
        command=tables.command(arm),
        settings=yaml.safe_dump(dict(settings), sort_keys=False).rstrip(),
        entry=entry,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.package", description="Put a trained model into the package."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("name", help="what diffvit.load shall call it")
    parser.add_argument("--data-dir", type=Path, help="where the data lies")
    given = parser.parse_args(arguments)
    try:
        file = package(given.run, given.name, data_dir=given.data_dir)
    except DiffvitError as error:
        sys.stderr.write(f"error: {error.line}\n")
        return error.exit_code
    sys.stdout.write(f"{file} ({file.stat().st_size:,} bytes)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
