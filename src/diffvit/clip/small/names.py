"""What a small CLIP makes of names: those it was trained with, and those it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffvit.clip.load import Clip
from diffvit.clip.templates import Templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.data.images import Images


def names_tried(
    clip: Clip,
    features: Float[Tensor, "n dim"],
    images: Images,
    names: Mapping[str, Sequence[str]],
    unseen: Mapping[str, Sequence[str]],
    templates: Templates,
) -> dict[str, Any]:
    """Every name in its class's place.

    Args:
        clip: the model.
        features: of the images, of unit length.
        images: with labels.
        names: by class, that were in captions.
        unseen: by class, that were in none.
        templates: that names are put into.

    Returns:
        ``unseen_names_accuracy``: of the classifier whose every class is the mean of its unseen names (None where a
        class has none); ``names``: for each name its ``class``, ``name``, ``seen``, ``known_tokens`` (the share of its
        tokens that some caption holds) and ``recall``, the fraction of its class's images that are given to it where
        it stands for its class beside the other classes' own names.
    """
    classes = images.classes
    own = _rows(clip, classes, templates)
    tried: list[dict[str, Any]] = []
    means: list[Tensor] = []
    for place, label in enumerate(classes):
        here = features[images.labels == place]
        seen, new = tuple(names.get(label, (label,))), tuple(unseen.get(label, ()))
        rows = _rows(clip, [*seen, *new], templates)
        for name, row in zip([*seen, *new], rows, strict=True):
            classifier = own.clone()
            classifier[place] = row
            recall = float(((here @ classifier.T).argmax(1) == place).double().mean()) if len(here) else None
            known = {"known_tokens": _known(clip, name), "recall": recall}
            tried.append({"class": label, "name": name, "seen": name in seen, **known})
        means.append(F.normalize(rows[len(seen) :].mean(0), dim=0))
    accuracy = None
    if all(unseen.get(label) for label in classes):
        accuracy = float(((features @ torch.stack(means).T).argmax(1) == images.labels).double().mean())
    return {"unseen_names_accuracy": accuracy, "names": tried}


def _rows(clip: Clip, labels: Sequence[str], templates: Templates) -> Tensor:
    return zero_shot_classifier(clip, labels, templates, use_cache=False, check=False).weights


def _known(clip: Clip, name: str) -> float:
    """The share of a name's tokens that the text tower has a vector for."""
    tokens = clip.tokenizer([name])[0]
    inner = tokens[1 : int(tokens.argmax())].to(clip.device)
    text: Any = clip.model.text
    known = torch.isin(inner, text.token_embedding.tokens)
    return float(known.double().mean())
