"""What a study will cost, before it starts: products of its trainings over the rate of trainings like them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffvit.config import Config
from diffvit.data.cifar10 import CLASSES
from diffvit.experiments.trials import Trial
from diffvit.reporting.rows import RunRecord, read
from diffvit.settings import ModelConfig

_TRAIN_IMAGES = {"cifar10": 50_000}
_PASSES = 3  # forward, and backward to inputs and weights
_ASIDE = 1.0  # seconds of a trial that are no training: to begin, to score the test set


def flops_per_image(config: Config) -> float:
    """Of a forward pass, matrix products only, a multiply-add counted as two.

    It counts from sizes what :func:`diffvit.training.score.flops_per_image` counts in the model.
    """
    model = config.model
    patches = (model.image_size // model.patch_size) ** 2
    tokens, width = patches + (model.pool == "cls"), model.embed_dim
    embed = patches * width * model.in_chans * model.patch_size**2
    perceptron = 2 * model.mlp_ratio * width**2  # of one token
    block = tokens * (4 * width**2 + perceptron + 2 * tokens * width)
    head = width * len(CLASSES) + (width * width if model.head == "mlp" else 0)
    last = block if model.pool == "mean" else _when_one_asks(config.model, tokens) + perceptron
    return 2 * (embed + (model.depth - 1) * block + last + head)


def _when_one_asks(model: ModelConfig, tokens: int) -> float:
    """Multiply-adds of the attention of [CLS] alone: with keys and values of all, or by few_queries."""
    width = model.embed_dim
    with_keys = 2 * width**2 + 2 * tokens * width**2 + 2 * tokens * width
    reading = model.num_heads // 2 if model.attention == "differential" else model.num_heads
    without = 4 * width**2 + (model.num_heads + reading) * tokens * width
    return with_keys if model.pos_embed.endswith("rope-2d") else min(with_keys, without)


def training_flops(config: Config) -> float:
    """Of a whole training."""
    images = _TRAIN_IMAGES.get(config.data, config.shapes.train) - config.validation_size
    return _PASSES * flops_per_image(config) * images * config.epochs


def rate_of(records: Iterable[RunRecord], device: str, cores: int = 2) -> float | None:
    """Floating-point operations a second that trainings on such a device reached, the median; None without a row.

    Args:
        records: rows, of any devices.
        device: ``cpu`` or ``cuda``.
        cores: of a CPU, all of them busy; a row tells the rate of as many as it had threads.
    """
    rows = [record.row for record in records if record.row["device"] == device and record.row["images_per_second"]]
    on_cpu = device == "cpu"
    rates = sorted(
        _PASSES * row["flops_per_image"] * row["images_per_second"] / ((row["threads"] or 1) if on_cpu else 1)
        for row in rows
    )
    return rates[len(rates) // 2] * (cores if on_cpu else 1) if rates else None


def seconds_of(trials: Iterable[Trial], rate: float | None) -> float | None:
    """How long these take on a machine of this rate, however many workers share it; None without a rate."""
    return None if rate is None else sum(training_flops(trial.config) / rate + _ASIDE for trial in trials)


def measured(reports: Path) -> list[RunRecord]:
    """The committed rows of all reports.

    Raises:
        InputError: a damaged rows.csv.
    """
    return [record for file in sorted(reports.glob("*/rows.csv")) for record in read(file.parent)]


def known_rate(trials: Iterable[Trial], rows: Sequence[RunRecord], device: str, cores: int = 2) -> float | None:
    """:func:`rate_of` the rows of these trials; of all rows where none of theirs is of such a device."""
    keys = {trial.key for trial in trials}
    return rate_of([row for row in rows if row.key[:2] in keys], device, cores) or rate_of(rows, device, cores)
