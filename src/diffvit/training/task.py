"""What a run learns: its data, its model, its loss and its score; a :class:`Task` holds what differs for a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.config import Config, ModelConfig, to_dict
from diffvit.data import sources
from diffvit.data.augment import Batch
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.images import Images
from diffvit.errors import ConfigError, InputError, few
from diffvit.models.init import whiten
from diffvit.models.vit import VisionTransformer
from diffvit.registry import label_of
from diffvit.training.score import score

Passed = Mapping[str, Images] | None  # the images of train and test
Say = Callable[[str], None]
Names = Sequence[str] | None  # of classes
_WHITENED_ON = 4096  # images
# Built-in sources: the default size of the validation set is made for them, and their images are in no order of class.
_WITH_SIZES = ("auto", "cifar10", "shapes", "shapes-hard")


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: ``source`` is :func:`source_of` its config, ``validation`` the images kept apart, if any.

    ``config`` is the run's, with what it leaves to the data: classes, channels, the size of the validation set.

    ``mean`` and ``std`` are those of each channel of the images trained on, in 0 .. 1; ``fingerprint`` is that of the
    whole training set, before any was kept apart.
    """

    source: str
    train: Images
    validation: Images | None
    mean: list[float]
    std: list[float]
    fingerprint: str
    config: Config


def source_of(config: Config) -> str:
    """The config's data source; for ``auto`` it is ``shapes`` where there is no CIFAR-10.

    Where there is one it stays ``auto``: ``cifar10`` would look into the folder that is named and nowhere else.
    """
    fell_back = config.data == "auto" and sources.resolve_auto(config.data_dir) == "shapes"
    return "shapes" if fell_back else config.data


def load_data(config: Config, say: Say, passed: Passed = None, before: Names = None) -> TrainingData:
    """The training data of a config; ``say`` gets the run's first lines; else as :func:`load_split`."""
    source = source_of(config)  # announces no download: that data fell back has to be the first line
    if source != config.data:
        say("CIFAR-10 was not found: training on the built-in shapes data instead (data: auto)")
    whole = load_split(config, source, "train", say, passed, before)
    config = fitted(config, source, whole)
    train, validation = whole, whole.validation if config.validation_size else None
    if config.validation_size and not validation:
        ours, held = sources.validation_split(whole.labels, config.validation_size)
        train, validation = whole.select(ours), whole.select(held)
    if config.train_share < 1:
        train = train.select(sources.training_part(train.labels, config.train_share, config.seed))
    if config.label_noise:
        noisy = sources.noisy_labels(train.labels, len(train.classes), config.label_noise, config.seed)
        train = replace(train, labels=noisy)
    mean, std = channel_statistics(train.pixels)
    counts = f"{len(train):,} to train" + (f", {len(validation):,} to validate" if validation else "")
    size = "x".join(str(side) for side in whole.pixels.shape[2:])
    kind = ", grey" if whole.pixels.shape[1] == 1 else ""
    noise = f", {config.label_noise:.0%} of their labels wrong" if config.label_noise else ""
    say(f"data: {whole.name}, {len(whole.classes)} classes, {size} pixels{kind}, images: {counts}{noise}")
    return TrainingData(source, train, validation, mean.tolist(), std.tolist(), whole.fingerprint, config)


def load_split(
    config: Config, source: str, split: str, say: Say | None = None, passed: Passed = None, before: Names = None
) -> Images:
    """``train`` or ``test`` of a source, as the config wants it; ``say`` gets a line when a download starts.

    ``passed`` has the images of both where they were passed in Python; then none are loaded. ``before`` are the classes
    that a run which is resumed began with. ConfigError where the data has others, or the model does not fit it;
    InputError where it is missing or damaged.
    """
    given, model = config.model.model_fields_set, config.model
    how: dict[str, Any] = {"data_dir": config.data_dir, "image_size": model.image_size, "announce": say}
    how |= {"shapes": to_dict(config.shapes), "test_size": config.test_size, "bad_files": config.bad_files}
    how["channels"] = model.in_chans if "in_chans" in given else None
    images = passed[split] if passed else sources.load(source, split, **how)
    if split == "train" and len(present := images.labels.unique()) < 2:
        name = images.classes[int(present[0])] if len(present) else "none"
        why = f"has images of one class alone ({name} vs at least two classes)"
        raise InputError(images.name, why, "There is nothing to learn; add images of another class.")
    if before and images.classes != list(before):
        new, gone = sorted({*images.classes}.difference(before)), sorted({*before}.difference(images.classes))
        told = "; ".join(f"{word}: {few(names)}" for word, names in (("new", new), ("gone", gone)) if names)
        why = f"has other classes than when the run began ({told or 'in another order'})"
        hint = "Nothing was changed; put the data back as it was, or start another run on this data."
        raise ConfigError(images.name, why, hint)
    if "num_classes" in given and model.num_classes != (count := len(images.classes)):
        why = f"does not fit {images.name} ({model.num_classes} vs {count} classes: {few(images.classes)})"
        usual = f"Leave it out, or set it to {count}."
        going_on = f"Go on with its weights and a new head: --model.num-classes {count}"
        raise ConfigError("model.num_classes", why, going_on if config.init_state else usual)
    return images


def fitted(config: Config, source: str, images: Images) -> Config:
    """The config with what it does not give taken from the training images.

    That is the number of classes and channels and, but for the built-in data sources, the size of the validation set: a
    tenth, at most 5,000, at least one of each class; or the data's own validation images. ConfigError or InputError
    where a size that is given does not fit.
    """
    given, own, size = "validation_size" in config.model_fields_set, images.validation, config.validation_size
    usual = sources.usual_validation_size(images.labels)
    if images.own_test and config.test_size != Config().test_size:
        why = f"has no effect: {images.name} has test images of its own (found {config.test_size})"
        raise ConfigError("test_size", why, "Leave it out.")
    if own is not None:
        if given and size not in (0, len(own)):
            why = f"does not fit {images.name}, which has validation images of its own ({size} vs {len(own)})"
            raise ConfigError("validation_size", why, "Leave it out, or give 0 to train without validation.")
        size = size if given else len(own)
    elif source not in _WITH_SIZES and (not given or size == usual):  # a run's own config.yaml gives it
        size = usual
    elif size:
        sources.check_validation_size(images, size)
    found = {"num_classes": len(images.classes), "in_chans": images.pixels.shape[1]}
    return config.model_copy(update={"model": config.model.model_copy(update=found), "validation_size": size})


def build_model(config: ModelConfig, seed: int) -> VisionTransformer:
    """The model with fresh weights that depend on the seed alone; sets torch's random numbers on the CPU."""
    torch.default_generator.manual_seed(seed)
    return VisionTransformer(**config.model_dump(exclude={"preset"}))


def fresh_model(config: Config, data: TrainingData) -> VisionTransformer:
    """The model as a run starts it: :func:`build_model`, whitened for the run's images where the config says so."""
    model = build_model(config.model, config.seed)
    if config.whiten:
        pixels = data.train.pixels
        if data.source not in _WITH_SIZES:
            pixels = pixels[torch.linspace(0, len(pixels) - 1, min(len(pixels), _WHITENED_ON)).long()]
        images = normalise(pixels[:_WHITENED_ON], data.mean, data.std)
        whiten(model.patch_embed.proj, images, config.seed)
    return model


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """``n / (k * n_c)`` of each class, float32 (classes,), ``k`` being the classes with images; 0 without images.

    Over the ``n`` labels (int64) their mean is 1, so the loss keeps its scale. As scikit-learn's
    ``compute_class_weight("balanced")``.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    weights = len(labels) / (int((counts > 0).sum()) * counts)
    return weights.masked_fill_(counts == 0, 0.0).float()


class Classification:
    """Cross-entropy against soft targets, nats, in float32; counts hits of each image's own class as ``correct``.

    With ``weights`` (classes,) an image's loss is the sum over classes of ``-target * weight * log(probability)``, as
    torch's ``cross_entropy(weight=)`` has it.
    """

    weights: Tensor | None = None  # of the class, as a subclass may leave out the constructor

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights

    def loss(self, model: nn.Module, batch: Batch, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """The sum (0-dim, float32) of the samples' losses, and sums of what else is worth recording (0-dim).

        The loop divides by the images of the whole step, over all processes and micro-batches. ``total`` is their
        number, of which each process has its part by ``tensor_split`` as ``batch``; None for those of the batch. A
        process without one has a copy of the first, which does not count.
        """
        logits = model(batch.images).float()
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
        summed = F.cross_entropy(logits, batch.targets, self.weights, reduction="sum")
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

    def objective(self, config: Config, data: TrainingData) -> Any:
        """What its steps minimise: an object with a ``loss`` as :meth:`Classification.loss`."""
        balanced = config.class_weights == "balanced"
        return Classification(balanced_weights(data.train.labels, config.model.num_classes) if balanced else None)

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
