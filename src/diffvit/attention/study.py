"""Does differential attention cancel noise? The study behind reports/attention: ``python -m diffvit.attention.study``.

It trains what is not there yet, scores every model's maps and writes the rows, from which ``make docs`` makes the
report. Stopped, it goes on where it was: a finished run is not trained again, nor scored again where it has rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffvit.attention.scores import score_maps
from diffvit.attention.subject import labelled_images, of_run
from diffvit.config import Config, config_hash, parse
from diffvit.data.images import Images
from diffvit.errors import DiffvitError
from diffvit.reporting import rows
from diffvit.reporting.attention_rows import CURVES, DIFFERENTIAL, FOLDER, SCORES, SOFTMAX, WIDE
from diffvit.reporting.csv_files import read_csv, write_csv
from diffvit.training.files import disk_faults
from diffvit.training.loop import train
from diffvit.training.memory import keep_freed_memory

RUNS, SEEDS, CLUTTER = Path("runs/attention"), (0, 1, 2), (0.0, 0.3, 0.6, 0.9)
# As ViT, but for these settings. The third arm has as many heads, as wide, as the differential one's values.
ARMS: dict[str, dict[str, Any]] = {
    SOFTMAX: {},
    DIFFERENTIAL: {"attention": "differential"},
    WIDE: {"num_heads": 2},
}
_MODEL = {"embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "pool": "cls", "pos_embed": "sincos-2d"}
_RECIPE: dict[str, Any] = {
    "validation_size": 0,
    "batch_size": 128,
    "label_smoothing": 0.1,
    "whiten": True,
    "optimizer": {"name": "muon", "lr": 0.002, "muon_lr": 0.005, "weight_decay": 0.05, "split_qkv": True},
    "schedule": {"name": "linear", "warmup": 0.05},
}


@dataclass(frozen=True)
class Trial:
    """One model of the study, and how its maps are scored.

    Args:
        arm: its name in the report.
        name: of its run folder.
        config: of its training.
        clutter: of the shapes it is trained and scored on; None for CIFAR-10.
        images: test images to score on, the first.
        removal_images: of these, how many for deletion and insertion.
    """

    arm: str
    name: str
    config: Config
    clutter: float | None
    images: int
    removal_images: int

    @property
    def key(self) -> tuple[str, int]:
        """What makes its rows unique: the hash of its config, and its seed."""
        return config_hash(self.config), self.config.seed


def trials(seeds: Sequence[int] = SEEDS) -> Iterator[Trial]:
    """The whole study: every arm on shapes at each clutter, and ViT and Diff-ViT on CIFAR-10, with every seed."""
    short = {SOFTMAX: "vit", DIFFERENTIAL: "diffvit", WIDE: "vit-wide-heads"}
    for seed in seeds:
        for clutter in CLUTTER:
            for arm, settings in ARMS.items():
                own = {"data": "shapes", "epochs": 10, "seed": seed, "shapes": {"clutter": clutter}}
                config = parse({**_RECIPE, **own, "model": {**_MODEL, **settings}})
                yield Trial(arm, f"shapes-{clutter:g}-{short[arm]}-s{seed}", config, clutter, 2000, 0)
        for arm in (SOFTMAX, DIFFERENTIAL):
            own = {"data": "cifar10", "epochs": 8, "seed": seed, "augment": {"flip": True, "crop": 2}}
            config = parse({**_RECIPE, **own, "model": {**_MODEL, **ARMS[arm], "pos_embed": "sincos-2d+rope-2d"}})
            yield Trial(arm, f"cifar10-{short[arm]}-s{seed}", config, None, 500, 500)


def run(
    wanted: Sequence[Trial], *, runs: Path = RUNS, out: Path = FOLDER, announce: Callable[[str], None] = print
) -> None:
    """Train and score what the folder has no rows of.

    Args:
        wanted: the trials.
        runs: where their run folders are, or go.
        out: folder of the rows.
        announce: told what is being done.

    Raises:
        DiffvitError: whatever training and reading data raise.
    """
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    records, scores, curves = rows.read(out), _read(out / SCORES), _read(out / CURVES)
    for number, trial in enumerate(wanted, start=1):
        if trial.key in {(row["config_hash"], row["seed"]) for row in scores}:
            continue
        folder = runs / trial.name
        announce(f"{number} of {len(wanted)}: {folder}")
        train(trial.config, out=folder, resume=(folder / "config.yaml").is_file())
        record = rows.read_run(folder)
        new_scores, new_curves = _scored(trial, folder)
        records, scores, curves = rows.merge(records, [record]), scores + new_scores, curves + new_curves
        rows.write(out, records)
        write_csv(out / CURVES, curves)
        write_csv(out / SCORES, scores)  # last: it says that the trial is done


def _read(path: Path) -> list[rows.Row]:
    return read_csv(path) if path.is_file() else []


def _scored(trial: Trial, folder: Path) -> tuple[list[rows.Row], list[rows.Row]]:
    images: Images = labelled_images(folder)
    images = images.select(range(min(trial.images, len(images))))
    found = score_maps(of_run(folder), images, removal_images=trial.removal_images)
    digest, seed = trial.key
    key = {"arm": trial.arm, "config_hash": digest, "seed": seed, "data": trial.config.data, "clutter": trial.clutter}
    rounded = [
        [{name: _short(value) for name, value in row.items()} for row in part] for part in (found.rows, found.curves)
    ]
    return [key | row for row in rounded[0]], [key | row for row in rounded[1]]


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, as the command line's."""
    parser = argparse.ArgumentParser(prog="python -m diffvit.attention.study", description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"run folders, found or made (default {RUNS})")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"rows (default {FOLDER})")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        run(list(trials()), runs=given.runs, out=given.out, announce=partial(print, flush=True))
    except DiffvitError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
