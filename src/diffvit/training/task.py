"""What a run learns: its data, its model, its loss and its score; a :class:`Task` holds what differs for a CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.config import Config, ModelConfig, to_dict
from diffvit.data import sources
from diffvit.data.augment import Augment, Batch
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.images import Images
from diffvit.errors import ConfigError
from diffvit.models.init import whiten
from diffvit.models.vit import VisionTransformer
from diffvit.registry import label_of
from diffvit.training.score import score

_WHITENED_ON = 4096  # images


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: ``source`` is :func:`source_of` its config, ``validation`` the images kept apart, if any.

    ``mean`` and ``std`` are those of each channel of the images trained on, in 0 .. 1; ``fingerprint`` is that of the
    whole training set, before any was kept apart.
    """

    source: str
    train: Images
    validation: Images | None
    mean: list[float]
    std: list[float]
    fingerprint: str

    def batches(self, config: Config, device: torch.device) -> Augment:
        """Augmented, normalised batches of the training images, by sample index and epoch."""
        return Augment(
            self.train.pixels,
            self.train.labels,
            num_classes=config.model.num_classes,
            mean=self.mean,
            std=self.std,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            settings=config.augment,
            device=device,
        )


def source_of(config: Config) -> str:
    """The config's data source; for ``auto`` it is ``shapes`` where there is no CIFAR-10.

    Where there is one it stays ``auto``: ``cifar10`` would look into the folder that is named and nowhere else.
    """
    fell_back = config.data == "auto" and sources.resolve_auto(config.data_dir) == "shapes"
    return "shapes" if fell_back else config.data


def load_data(config: Config, say: Callable[[str], None]) -> TrainingData:
    """The training data of a config; ``say`` gets the run's first lines. Errors are those of :func:`load_split`."""
    source = source_of(config)  # announces no download: that data fell back has to be the first line
    if source != config.data:
        say("CIFAR-10 was not found: training on the built-in shapes data instead (data: auto)")
    whole = load_split(config, source, "train", say)
    train, validation = whole, None
    if config.validation_size:
        ours, held = sources.validation_split(whole.labels, config.validation_size)
        train, validation = whole.select(ours), whole.select(held)
    mean, std = channel_statistics(train.pixels)
    counts = f"{len(train):,} to train" + (f", {len(validation):,} to validate" if validation else "")
    size = "x".join(str(side) for side in whole.pixels.shape[2:])
    say(f"data: {whole.name}, {len(whole.classes)} classes, {size} pixels, images: {counts}")
    return TrainingData(source, train, validation, mean.tolist(), std.tolist(), whole.fingerprint)


def load_split(config: Config, source: str, split: str, say: Callable[[str], None] | None = None) -> Images:
    """``train`` or ``test`` of a source, as the config wants it; ``say`` gets a line when a download starts.

    ConfigError where the model does not fit the data, InputError where the data is missing or damaged.
    """
    where = {"data_dir": config.data_dir, "image_size": config.model.image_size}
    images = sources.load(source, split, **where, shapes=to_dict(config.shapes), announce=say)
    found = {"num_classes": (len(images.classes), "classes"), "in_chans": (images.pixels.shape[1], "channels")}
    for key, (count, noun) in found.items():
        if count != (wanted := getattr(config.model, key)):
            why = f"does not fit {images.name} ({wanted} vs {count} {noun})"
            raise ConfigError(f"model.{key}", why, f"Give --model.{key.replace('_', '-')} {count}.")
    return images


def build_model(config: ModelConfig, seed: int) -> VisionTransformer:
    """The model with fresh weights that depend on the seed alone; sets torch's random numbers on the CPU."""
    torch.default_generator.manual_seed(seed)
    return VisionTransformer(**config.model_dump(exclude={"preset"}))


def fresh_model(config: Config, data: TrainingData) -> VisionTransformer:
    """The model as a run starts it: :func:`build_model`, whitened for the run's images where the config says so."""
    model = build_model(config.model, config.seed)
    if config.whiten:
        images = normalise(data.train.pixels[:_WHITENED_ON], data.mean, data.std)
        whiten(model.patch_embed.proj, images, config.seed)
    return model


class Classification:
    """Cross-entropy against soft targets, nats, in float32; counts hits of each image's own class as ``correct``."""

    def loss(self, model: nn.Module, batch: Batch, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """The sum (0-dim, float32) of the samples' losses, and sums of what else is worth recording (0-dim).

        The loop divides by the images of the whole step, over all processes and micro-batches. ``total`` is their
        number, of which each process has its part by ``tensor_split`` as ``batch``; None for those of the batch. A
        process without one has a copy of the first, which does not count.
        """
        logits = model(batch.images).float()
        summed = F.cross_entropy(logits, batch.targets, reduction="sum")
        return summed, {"correct": (logits.detach().argmax(1) == batch.labels).sum()}


class Task:
    """Training a classifier; a task of another kind overrides what differs."""

    def title(self, config: Config) -> str:
        """What the model is called."""
        return label_of(config.model.attention)

    def model(self, config: Config, data: TrainingData) -> Any:
        """The model with fresh weights; besides a module's own it has ``settings`` and ``lambdas()``."""
        return fresh_model(config, data)

    def image_tower(self, model: Any) -> nn.Module:
        """The part that sees images, whose operations are counted."""
        return model

    def objective(self, config: Config, data: TrainingData) -> Any:  # noqa: ARG002
        """What its steps minimise: an object with a ``loss`` as :meth:`Classification.loss`."""
        return Classification()

    def score(
        self, model: Any, images: Images, config: Config, data: TrainingData, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """How good it is: :func:`diffvit.training.score.score`'s figures."""
        where = {"precision": precision, "device": device}
        return score(model, images, mean=data.mean, std=data.std, batch_size=max(500, config.batch_size), **where)

    def last_score(
        self, model: Any, images: Images, config: Config, data: TrainingData, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """The figures of the finished run: :meth:`score`'s, and whatever else is worth knowing then."""
        return self.score(model, images, config, data, precision, device)
