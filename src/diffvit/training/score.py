"""How good a classifier is: one pass over labelled images, every figure from the same logits; and what a pass costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffvit.data.batches import Channels, Device, evaluation_batches
from diffvit.data.images import Images
from diffvit.errors import sides
from diffvit.kernels import accelerate
from diffvit.training.intervals import wilson

TOP = 5
CALIBRATION_BINS = 15


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and weights without gradients inside, as it was afterwards.

    Weights that ask for gradients make torch choose another attention kernel, with other last bits, even where no
    gradient is taken; a trained model, its average and a loaded one are to give the same figures.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


def logits_of(
    model: nn.Module,
    pixels: Tensor,
    *,
    mean: Channels,
    std: Channels,
    batch_size: int = 500,
    precision: str = "fp32",
    device: Device = "cpu",
) -> Tensor:
    """Logits of uint8 images (n, channels, height, width): float32 (n, classes) on the CPU.

    ``precision`` is ``"fp32"`` or ``"bf16"`` (autocast; the logits come back as float32).
    """
    device = torch.device(device)
    size = min(batch_size, 125) if device.type == "cpu" else batch_size  # what fits a processor's cache is faster
    parts: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        for images in evaluation_batches(pixels, size, mean, std, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                parts.append(model(images))
        # Copying back at the end keeps an accelerator's queue full.
        return torch.cat([part.float() for part in parts]).cpu()


def score(model: nn.Module, images: Images, **how: Any) -> dict[str, Any]:
    """Score a classifier on labelled images, computed as :func:`logits_of` does; numbers and lists, ready for JSON.

    ``loss`` (mean cross-entropy, nats), ``accuracy``, ``top5`` (fractions; ``top5`` is None for fewer than six classes,
    of which it says nothing), ``per_class_accuracy`` (one fraction per class, None for a class without images),
    ``confusion`` (counts, row = true class, column = predicted class), ``calibration_error`` (expected, a fraction, 15
    equal bins of confidence; arXiv 1706.04599, eq. 3), ``images_per_second`` (forward passes with normalisation),
    ``labels`` and ``predictions`` (class index per image, in order), ``images`` (their number); ``accuracy_interval``
    (low and high, Wilson's 95% interval), and the figures of :func:`class_figures`.
    """
    start = time.perf_counter()
    logits = logits_of(model, images.pixels, **how)
    seconds = time.perf_counter() - start
    return {**metrics_of(logits, images.labels), "images_per_second": len(images.labels) / seconds}


def metrics_of(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The figures of :func:`score` from logits (n, classes) and labels (n,)."""
    count, classes = logits.shape
    labels = labels.to(logits.device).long()
    predicted = logits.argmax(1)
    top = logits.topk(min(TOP, classes), dim=1).indices
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
    accuracy, by_class = wilson(int((predicted == labels).sum()), count), class_figures(confusion)
    return {
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "accuracy": accuracy.estimate,
        "accuracy_interval": [accuracy.low, accuracy.high],
        "top5": int((top == labels[:, None]).any(1).sum()) / count if classes > TOP else None,
        "per_class_accuracy": by_class["per_class_recall"],
        **by_class,
        "confusion": confusion.tolist(),
        "calibration_error": calibration_gap(logits.double().softmax(1).amax(1), predicted == labels),
        "labels": labels.tolist(),
        "predictions": predicted.tolist(),
        "images": count,
    }


def class_figures(confusion: Tensor) -> dict[str, Any]:
    """Balanced accuracy, macro-F1, and precision and recall of each class, from counts (true class, predicted class).

    They are scikit-learn's. ``per_class_precision`` is None for a class that was never predicted, ``per_class_recall``
    for one without images (scikit-learn: NaN with ``zero_division=np.nan``). ``balanced_accuracy`` is the mean recall
    of the classes with images (``balanced_accuracy_score``). ``macro_f1`` is the mean F1 of the classes that have
    images or were predicted (``f1_score`` with ``average="macro", zero_division=0`` and its default labels).
    """
    right, images, predicted = (counts.tolist() for counts in (confusion.diag(), confusion.sum(1), confusion.sum(0)))
    recall, precision = (
        [hits / count if count else None for hits, count in zip(right, counts, strict=True)]
        for counts in (images, predicted)
    )
    known = [share for share in recall if share is not None]
    present = [each for each in zip(right, images, predicted, strict=True) if each[1] + each[2]]
    return {
        "balanced_accuracy": sum(known) / len(known),
        "macro_f1": sum(2 * hits / (true + found) for hits, true, found in present) / len(present),
        "per_class_precision": precision,
        "per_class_recall": recall,
    }


def described(images: Images, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of :func:`score` with what they were computed on: ``data``, ``fingerprint`` and ``classes``.

    Where the source knows that some images are not its own pixels (:attr:`Images.exact`), there are also ``data_note``,
    the footnote, and ``accuracy_exact``, the accuracy on the ``images_exact`` others.
    """
    about = {**figures, "data": images.name, "fingerprint": images.fingerprint, "classes": images.classes}
    if images.note:
        about["data_note"] = images.note
    if images.exact is not None:
        pairs = zip(images.exact.tolist(), figures["predictions"], figures["labels"], strict=True)
        right = [found == true for exact, found, true in pairs if exact]
        about |= {"accuracy_exact": sum(right) / len(right) if right else None, "images_exact": len(right)}
    return about


def calibration_gap(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error, a fraction: |accuracy - confidence| over equal bins of confidence, weighted by count.

    ``confidence`` is the probability of the predicted class (n,), 0 to 1, ``correct`` whether it is the true one (n,).
    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3; bins are (0, 1/b], (1/b, 2/b], ...
    """
    confidence, correct = confidence.double().cpu(), correct.double().cpu()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct - confidence)
    return float(gaps.abs().sum() / max(len(confidence), 1))


def flops_per_image(model: nn.Module) -> int:
    """Floating-point operations of one forward pass over one image; a multiply-add counts as two.

    Counted by torch's flop counter on the accelerated model, over the explicit attention path, so that fused kernels
    hide nothing: matrix products and convolutions only (softmax, norms, activations and other elementwise work are left
    out, as is usual).
    """
    settings: dict[str, Any] = model.settings  # pyright: ignore[reportAssignmentType]
    twin = copy.deepcopy(model).cpu().float()
    accelerate(twin)
    image = torch.zeros(1, settings["in_chans"], *sides(settings["image_size"]))
    with evaluating(twin), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(image)
    return int(counter.get_total_flops())
