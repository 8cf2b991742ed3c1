"""What a study will cost, before it starts: products of its trainings over the rate of trainings like them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffvit.config import Config
from diffvit.data.cifar10_rows import CLASSES
from diffvit.reporting.rows import RunRecord, read
from diffvit.studies.trials import Trial

_TRAIN_IMAGES = {"cifar10": 50_000}
_PASSES = 3  # forward, and backward to inputs and weights
# Where no row tells: floating-point operations a second, whole machine. Two CPU cores; one H100 or H200.
_USUAL = {"cpu": 1.2e11, "cuda": 4e13}


def flops_per_image(config: Config) -> float:
    """Of a forward pass, matrix products only, a multiply-add counted as two; both attentions have the same.

    It counts from sizes what :func:`diffvit.training.score.flops_per_image` counts in the model.
    """
    model = config.model
    patches = (model.image_size // model.patch_size) ** 2
    tokens, width = patches + (model.pool == "cls"), model.embed_dim
    embed = patches * width * model.in_chans * model.patch_size**2
    asking = [tokens] * (model.depth - 1) + [1 if model.pool == "cls" else tokens]  # of the last block only [CLS]
    blocks = sum(
        width * width * (2 * tokens + (2 + 2 * model.mlp_ratio) * asks) + 2 * asks * tokens * width for asks in asking
    )
    head = width * len(CLASSES) + (width * width if model.head == "mlp" else 0)
    return 2 * (embed + blocks + head)


def training_flops(config: Config) -> float:
    """Of a whole training."""
    images = _TRAIN_IMAGES.get(config.data, config.shapes.train) - config.validation_size
    return _PASSES * flops_per_image(config) * images * config.epochs


def rate_of(records: Iterable[RunRecord], device: str) -> float:
    """Floating-point operations a second that trainings on such a device reached, the median of rows."""
    rows = [record.row for record in records if record.row["device"] == device and record.row["images_per_second"]]
    rates = sorted(_PASSES * row["flops_per_image"] * row["images_per_second"] for row in rows)
    return rates[len(rates) // 2] if rates else _USUAL[device]


def seconds_of(trials: Iterable[Trial], rate: float) -> float:
    """How long these take on a machine of this rate, however many workers share it."""
    return sum(training_flops(trial.config) for trial in trials) / rate


def known_rate(trials: Sequence[Trial], reports: Path, device: str) -> float:
    """:func:`rate_of` the committed rows of these trials' studies and tier, or the usual one."""
    keys = {trial.key for trial in trials}
    folders = dict.fromkeys(reports / trial.study for trial in trials)
    return rate_of([record for folder in folders for record in read(folder) if record.key in keys], device)
