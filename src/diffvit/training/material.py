"""From a config to the plain things a run trains on: images, statistics, a model, its optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from diffvit.config import Config, ModelConfig, to_dict
from diffvit.data import sources
from diffvit.data.augment import Augment
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.images import Images
from diffvit.errors import ConfigError
from diffvit.models.init import whiten
from diffvit.models.vit import VisionTransformer
from diffvit.training import optimizers

_WHITENED_ON = 4096  # images


@dataclass(frozen=True)
class Material:
    """The data of a run.

    Args:
        source: where it comes from, ``auto`` resolved.
        train: the images trained on.
        validation: those kept apart, if any.
        mean: of each channel of the images trained on, in 0 .. 1.
        std: likewise.
        fingerprint: of the whole training set, before any was kept apart.
    """

    source: str
    train: Images
    validation: Images | None
    mean: list[float]
    std: list[float]
    fingerprint: str

    def augment(self, config: Config, device: torch.device) -> Augment:
        """The batches of the training images."""
        return Augment(
            self.train.pixels,
            self.train.labels,
            num_classes=config.model.num_classes,
            mean=self.mean,
            std=self.std,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            settings=to_dict(config.augment),
            device=device,
        )


def load_split(config: Config, source: str, split: str, say: Callable[[str], None] | None = None) -> Images:
    """``train`` or ``test`` of a source, as the config wants it; ``say`` gets a line when a download starts.

    Raises:
        ConfigError: the model does not fit the data.
        InputError: the data is missing or damaged.
    """
    images = sources.load(
        source,
        split,
        data_dir=config.data_dir,
        image_size=config.model.image_size,
        shapes=to_dict(config.shapes),
        announce=say,
    )
    if len(images.classes) != config.model.num_classes:
        why = f"does not fit {images.name} ({config.model.num_classes} vs {len(images.classes)} classes)"
        raise ConfigError("model.num_classes", why, f"Give --model.num-classes {len(images.classes)}.")
    if images.pixels.shape[1] != config.model.in_chans:
        why = f"does not fit {images.name} ({config.model.in_chans} vs {images.pixels.shape[1]} channels)"
        raise ConfigError("model.in_chans", why, f"Give --model.in-chans {images.pixels.shape[1]}.")
    return images


def load(config: Config, say: Callable[[str], None]) -> Material:
    """The training data of a config; ``say`` gets the run's first lines.

    Raises:
        ConfigError, InputError: see :func:`load_split`.
    """
    source = config.data
    if source == "auto":
        # A download is not announced here: that data fell back has to be the first line.
        source = sources.resolve_auto(config.data_dir)
        if source == "shapes":
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
    return Material(source, train, validation, mean.tolist(), std.tolist(), whole.fingerprint)


def build_model(config: ModelConfig, seed: int) -> VisionTransformer:
    """The model with fresh weights that depend on the seed alone; sets torch's random numbers on the CPU."""
    torch.default_generator.manual_seed(seed)
    return VisionTransformer(**config.model_dump(exclude={"preset"}))


def fresh_model(config: Config, material: Material) -> VisionTransformer:
    """The model as a run starts it: :func:`build_model`, whitened for the run's images where the config says so."""
    model = build_model(config.model, config.seed)
    if config.whiten:
        images = normalise(material.train.pixels[:_WHITENED_ON], material.mean, material.std)
        whiten(model.patch_embed.proj, images, config.seed)
    return model


def build_optimizers(config: Config, model: nn.Module) -> dict[str, Optimizer]:
    """See :func:`diffvit.training.optimizers.build`."""
    settings = config.optimizer
    return optimizers.build(
        model,
        name=settings.name,
        lr=settings.lr,
        muon_lr=settings.muon_lr,
        weight_decay=settings.weight_decay,
        betas=(settings.beta1, settings.beta2),
        momentum=settings.momentum,
        split_qkv=settings.split_qkv,
    )
