"""How good a small CLIP is as a zero-shot classifier of the classes that its captions were about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffvit.clip.small.load import as_clip
from diffvit.clip.small.model import SmallClip
from diffvit.clip.small.names import names_tried
from diffvit.clip.templates import load_templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.clip_settings import CaptionsConfig
from diffvit.data.batches import evaluation_batches
from diffvit.data.images import Images
from diffvit.training.score import evaluating, metrics_of

_BATCH = 500


def score_clip(
    model: SmallClip,
    images: Images,
    mean: Sequence[float],
    std: Sequence[float],
    captions: CaptionsConfig,
    *,
    device: torch.device | str = "cpu",
    names_too: bool = False,
) -> dict[str, Any]:
    """The figures of the classifier made of the class names, in float32.

    Args:
        model: on ``device``.
        images: with labels.
        mean: per channel, 0 to 1.
        std: per channel, 0 to 1.
        captions: the templates to evaluate with, and the names to try.
        device: where to compute.
        names_too: also ``zero_shot_accuracy``, and what :func:`names_tried` gives.

    Returns:
        See :func:`diffvit.training.score.metrics_of`.
    """
    templates = load_templates(captions.evaluated_with)
    with evaluating(model), torch.inference_mode():
        clip = as_clip(model, {"mean": mean, "std": std, "data": images.name}, "this model")
        batches = evaluation_batches(images.pixels, _BATCH, mean, std, device)
        features = torch.cat([model.encode_image(batch, normalize=True).cpu() for batch in batches])
        rows = zero_shot_classifier(clip, images.classes, templates, use_cache=False, check=False).weights
        figures = metrics_of(model.logit_scale.exp().cpu() * features @ rows.T, images.labels)
        if names_too:
            tried = names_tried(clip, features, images, captions.names, captions.unseen, templates)
            figures |= {"zero_shot_accuracy": figures["accuracy"], **tried}
    return figures
