"""Zero-shot classification: labels in prompts make a linear classifier (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.encode import Progress, cached_rows, digest, fingerprint
from diffvit.clip.hub import text_features
from diffvit.clip.load import Clip
from diffvit.clip.small.model import KnownTokens
from diffvit.clip.templates import Templates, twins
from diffvit.errors import ConfigError, InputError
from diffvit.hub.libraries import library

ABSENT = "words absent from this CLIP's captions, which have no meaning to it"
_VERSION = 2  # of what is computed here; a change invalidates every cached part
_BARE = Templates("bare", ("{}",))
PIECE = 4_096  # images; beside the probabilities themselves, 1000 classes then take tens of MB
_PROMPTS_AT_ONCE = 1_600  # of a part: seconds of work on a CPU, and lengths enough to sort


@dataclass(frozen=True)
class Classifier:
    """A row of unit length for each label, on the CPU; ``computed`` rows were made just now, the others were cached.

    ``twins`` are groups of places with the same label, as ImageNet's names have: such classes share a row, and of two
    equal probabilities the first is named. ``unknown`` are words of the labels that no caption of a small CLIP held;
    ``cut`` are labels that do not fit into the model's ``context`` (tokens) in some template.
    """

    weights: Float32[Tensor, "labels dim"]
    labels: tuple[str, ...]
    computed: int
    twins: tuple[tuple[int, ...], ...]
    unknown: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    context: int = 0

    @property
    def warnings(self) -> list[str]:
        """A line for what the model cannot read of the labels; empty where it reads all of them."""
        count = f"{len(self.cut):,} of {len(self.labels):,} labels"
        said = {
            ABSENT: self.unknown,
            f"{count} are cut: the model reads {self.context} tokens of a text": self.cut,
        }
        return [f"{what}: {some(names)}" for what, names in said.items() if names]


def zero_shot_classifier(
    clip: Clip,
    labels: Sequence[str],
    templates: Templates,
    *,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Classifier:
    """The classifier that a CLIP model makes of labels; equal ones are kept (see :class:`Classifier`).

    Of each label, each prompt's text feature is brought to unit length, and so is their mean. Rows are kept in the
    cache in parts as they are done: an interrupted call goes on where it was, and a repeated one computes nothing.
    ``progress`` is called with (labels done, labels in all), first before any is computed.

    Raises:
        ConfigError: different labels that are the same to the model, or none with a word that it knows.
        InputError: the model's text features are not finite.
    """
    unknown, cut, context = _unread(clip, labels, templates)
    rows, computed = kept_rows(clip, labels, templates, use_cache=use_cache, progress=progress)
    return Classifier(rows, tuple(labels), computed, twins(labels), unknown, cut, context)


def kept_rows(
    clip: Clip, labels: Sequence[str], templates: Templates, *, use_cache: bool = True, progress: Progress | None = None
) -> tuple[Float32[Tensor, "labels dim"], int]:
    """What :func:`label_rows` gives of one label or more, from the cache where it is there; how many were computed."""
    size = max(1, _PROMPTS_AT_ONCE // len(templates.texts))
    tokenizer = [clip.name, type(clip.tokenizer).__name__, library("open_clip").__version__]
    key = digest([_VERSION, text_fingerprint(clip.model), tokenizer, templates.texts, list(labels), size])
    chunks = [labels[first : first + size] for first in range(0, len(labels), size)]
    computed = 0

    def compute(index: int) -> Float32[Tensor, "labels dim"]:
        nonlocal computed
        if progress:
            progress(index * size, len(labels))
        computed += len(chunks[index])
        return label_rows(clip, chunks[index], templates)

    if use_cache:
        rows = cached_rows(key, "the classifier", [(len(chunk), "") for chunk in chunks], compute)
    else:
        rows = [compute(index) for index in range(len(chunks))]
    if progress:
        progress(len(labels), len(labels))
    return torch.cat(rows), computed


def classify(clip: Clip, classifier: Classifier, images: Float[Tensor, "n 3 h w"]) -> Float32[Tensor, "n labels"]:
    """The probability of each label for each image, preprocessed as ``clip.preprocessing`` says; on the CPU."""
    model: Any = clip.model
    with torch.no_grad():
        features = model.encode_image(images.to(clip.device, clip.dtype)).float()
    return zero_shot_probabilities(clip, classifier, F.normalize(features, dim=-1).cpu())


def zero_shot_probabilities(
    clip: Clip, classifier: Classifier, rows: Float32[Tensor, "n width"]
) -> Float32[Tensor, "n labels"]:
    """The probability of each label: softmax of exp(logit_scale) times the cosine with ``rows``, unit image features.

    NaN rows stay NaN. Classes of the same name get the very same probability, to the bit: that of the first of them.
    """
    columns = torch.arange(len(classifier.labels))
    for group in classifier.twins:
        columns[list(group)] = group[0]
    scale = clip.model.logit_scale.detach().exp().float().cpu()  # pyright: ignore[reportCallIssue]
    pieces = rows.split(PIECE)
    return torch.cat([(scale * (piece @ classifier.weights.T))[:, columns].softmax(dim=1) for piece in pieces])


def _unread(clip: Clip, labels: Sequence[str], templates: Templates) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Words that a small CLIP does not know, labels that are cut, and the model's context; refuses what cannot work."""
    unknown = unknown_words(clip, labels)
    blank = clip.tokenizer([""])[0]
    pad, context = blank[-1], len(blank)

    def length(texts: Sequence[str]) -> list[int]:
        return (clip.tokenizer(list(texts)) != pad).sum(1).tolist()

    before = length([text.partition("{}")[0] for text in templates.texts])
    whole = length([text.replace("{}", "") for text in templates.texts])
    roomiest = Templates("roomiest", (templates.texts[before.index(min(before))],))
    longest = Templates("longest", (templates.texts[whole.index(max(whole))],))
    same: dict[bytes, str] = {}
    for label, row in zip(labels, clip.tokenizer([roomiest.prompts(label)[0] for label in labels]), strict=True):
        other = same.setdefault(row.numpy().tobytes(), label)
        if other != label:
            why = f"{other[:60]!r} and {label[:60]!r} are the same to {clip.name}"
            hint = f"It reads {context} tokens of a text, and neither leading articles nor, with most models, capitals."
            raise ConfigError("labels", why, f"{hint} Give other labels.")
    prompts = [longest.prompts(label)[0] for label in labels]
    given, longer = clip.tokenizer(prompts), clip.tokenizer(prompts, context_length=context + 1)
    fits = (given == longer[:, :context]).all(1).tolist()
    return unknown, tuple(label for label, whole in zip(labels, fits, strict=True) if not whole), context


def unknown_words(clip: Clip, labels: Sequence[str], what: str = "labels") -> tuple[str, ...]:
    """Words with a token that a small CLIP has no vector for, in their order; none for other CLIPs.

    Raises:
        ConfigError: no word is known; ``what`` the texts are.
    """
    if not isinstance(getattr(getattr(clip.model, "text", None), "token_embedding", None), KnownTokens):
        return ()
    words = [re.findall(r"\w+", prompt) or [prompt] for prompt in (_BARE.prompts(label)[0] for label in labels)]
    unknown = {word: known_share(clip, word) < 1 for word in dict.fromkeys(word for each in words for word in each)}
    if all(unknown[word] for each in words for word in each):
        hint = "Name what its captions named, or take another CLIP (--model)."
        raise ConfigError(what, f"hold no word that {clip.name} was trained with ({some(labels)})", hint)
    return tuple(word for word, new in unknown.items() if new)


def known_share(clip: Clip, name: str) -> float:
    """The share of a name's tokens that the text tower of a small CLIP has a vector for."""
    text: Any = clip.model.text
    tokens = clip.tokenizer([name])[0]
    return float(torch.isin(tokens[1 : int(tokens.argmax())], text.token_embedding.tokens.cpu()).double().mean())


def some(names: Sequence[str]) -> str:
    """The first ten, shortened, and how many more there are."""
    return ", ".join(name[:60] for name in names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def label_rows(clip: Clip, labels: Sequence[str], templates: Templates) -> Float32[Tensor, "labels dim"]:
    """The classifier's rows of these labels, which may be such as the model cannot read or tell apart.

    Raises:
        InputError: the model's text features are not finite.
    """
    prompts = [prompt for label in labels for prompt in templates.prompts(label)]
    features = text_features(clip.model, clip.tokenizer(prompts)).double()
    if not bool(features.isfinite().all()):
        raise InputError(clip.source, "gives text features that are not finite", "Take other weights.")
    means = F.normalize(features, dim=-1).view(len(labels), len(templates.texts), -1).mean(dim=1)
    return F.normalize(means, dim=-1).float()


def text_fingerprint(model: nn.Module) -> str:
    """:func:`fingerprint` of what a CLIP's text features depend on."""
    return fingerprint(model, lambda name: bool(name) and not name.startswith("visual"))
