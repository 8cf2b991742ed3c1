"""Zero-shot classification: labels in prompts make a linear classifier (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from diffvit.cache import cache_folder
from diffvit.clip.fingerprint import text_fingerprint
from diffvit.clip.hub import open_clip_library
from diffvit.clip.load import Clip
from diffvit.clip.parts import Parts
from diffvit.clip.templates import MAX_LABELS, Templates, twins
from diffvit.clip.text_tower import text_features
from diffvit.errors import ConfigError, InputError

Progress = Callable[[int, int], None]
_VERSION = 1  # of what is computed here; a change makes every cached part a stranger
_PROMPTS_AT_ONCE = 1_600  # of a part: seconds of work on a CPU, and lengths enough to sort


@dataclass(frozen=True)
class Classifier:
    """A row of unit length for each label.

    Args:
        weights: on the CPU.
        labels: in the order of the rows.
        templates: that the rows were made with.
        key: hash of model, templates and labels.
        computed: how many rows were computed just now; the others came from the cache.
        twins: groups of places with the same label, as ImageNet's names have; such classes share a row, and of two
            equal probabilities the first is named.
    """

    weights: Float32[Tensor, "labels dim"]
    labels: tuple[str, ...]
    templates: Templates
    key: str
    computed: int
    twins: tuple[tuple[int, ...], ...]


def zero_shot_classifier(
    clip: Clip,
    labels: Sequence[str],
    templates: Templates,
    *,
    cache_dir: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Classifier:
    """The classifier that a CLIP model makes of labels.

    Of each label, each prompt's text feature is brought to unit length, and so is their mean. Rows are kept in the
    cache in parts as they are done: an interrupted call goes on where it was, and a repeated one computes nothing.

    Args:
        clip: the model.
        labels: what the classes are called; equal ones are kept (see :attr:`Classifier.twins`).
        templates: what the labels are put into.
        cache_dir: where the parts lie; by default the user's cache folder.
        use_cache: False to read and write none.
        progress: called with (labels done, labels in all), first before any is computed.

    Raises:
        ConfigError: no label, too many, or no template.
        InputError: the model's text features are not finite.
    """
    if not labels or len(labels) > MAX_LABELS:
        raise ConfigError("labels", f"must be 1 to {MAX_LABELS:,} (found {len(labels):,})")
    if not templates.texts or not all("{}" in text for text in templates.texts):
        raise ConfigError("templates", "must have {} where the label goes, at least one of them")
    size = max(1, _PROMPTS_AT_ONCE // len(templates.texts))
    key = _key(clip, labels, templates, size)
    parts = Parts((cache_dir or cache_folder()) / "clip" / key[:32], key, "the classifier")
    chunks = [labels[first : first + size] for first in range(0, len(labels), size)]
    known = {index: parts.load(index, len(chunk)) for index, chunk in enumerate(chunks)} if use_cache else {}
    done = sum(len(chunk) for index, chunk in enumerate(chunks) if known.get(index) is not None)
    computed, saving, rows = len(labels) - done, use_cache, []
    for index, chunk in enumerate(chunks):
        part = known.get(index)
        if part is None:
            if progress:
                progress(done, len(labels))
            part = _rows(clip, chunk, templates)
            saving = saving and parts.saved(index, part)
            done += len(chunk)
        rows.append(part)
    if progress:
        progress(len(labels), len(labels))
    return Classifier(torch.cat(rows), tuple(labels), templates, key, computed, twins(labels))


def classify(
    clip: Clip, classifier: Classifier, images: Float[Tensor, "n 3 h w"], *, batch_size: int = 32
) -> Float32[Tensor, "n labels"]:
    """The probability of each label for each image: softmax of exp(logit_scale) times the cosine.

    Args:
        clip: the model that the classifier was made with.
        classifier: from :func:`zero_shot_classifier`.
        images: preprocessed as ``clip.preprocessing`` says, on any device.
        batch_size: images at once.

    Returns:
        On the CPU.

    Raises:
        ConfigError: the classifier is of a model of another width.
    """
    model, found = clip.model, []
    rows = classifier.weights.to(clip.device)
    with torch.no_grad():
        for part in images.split(batch_size):
            features = F.normalize(model.encode_image(part.to(clip.device, clip.dtype)).float(), dim=-1)  # pyright: ignore[reportCallIssue]
            if features.shape[1] != rows.shape[1]:
                widths = f"{rows.shape[1]} vs {features.shape[1]} features"
                raise ConfigError("classifier", f"was made with another model ({widths})")
            found.append((model.logit_scale.exp() * features @ rows.T).softmax(dim=-1).cpu())  # pyright: ignore
    return torch.cat(found) if found else torch.zeros(0, len(rows))


def _rows(clip: Clip, labels: Sequence[str], templates: Templates) -> Float32[Tensor, "labels dim"]:
    prompts = [prompt for label in labels for prompt in templates.prompts(label)]
    features = text_features(clip.model, clip.tokenizer(prompts)).double()
    if not bool(features.isfinite().all()):
        raise InputError(clip.source, "gives text features that are not finite", "Take other weights.")
    means = F.normalize(features, dim=-1).view(len(labels), len(templates.texts), -1).mean(dim=1)
    return F.normalize(means, dim=-1).float()


def _key(clip: Clip, labels: Sequence[str], templates: Templates, size: int) -> str:
    """SHA-256 (hex) of what the rows depend on, and of how they are cut into parts."""
    tokenizer = [clip.name, type(clip.tokenizer).__name__, open_clip_library().__version__]
    what = [_VERSION, text_fingerprint(clip.model), tokenizer, templates.texts, list(labels), size]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
