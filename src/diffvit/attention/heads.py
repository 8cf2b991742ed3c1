"""What single heads and layers do for the answer: ablation of each head, and the logit lens.

Unlike attention maps, both measure an effect: how far accuracy and the true class's logit fall without a head, and how
much of the answer is there after each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffvit.attention.capture import check_images, own
from diffvit.errors import ConfigError, check_choice
from diffvit.models.vit import VisionTransformer
from diffvit.training.score import evaluating

ABLATIONS = ("zero", "mean")


def ablation(
    model: nn.Module,
    images: Float[Tensor, "n chans height width"],
    labels: Int64[Tensor, " n"],
    *,
    to: str = "zero",
    batch_size: int = 250,
) -> list[dict[str, Any]]:
    """Accuracy and the true class's logit without each head in turn.

    A head's output, what it reads from its values, is replaced before the heads are joined (for differential attention
    before its norm): by 0, or by its mean over these images and their tokens (arXiv 1905.10650 masks heads by 0).

    Args:
        model: a classifier whose attention has ``heads`` and ``joined`` (:class:`diffvit.models.attention.Attention`).
        images: normalised as in training.
        labels: their classes.
        to: ``zero`` or ``mean``.
        batch_size: images per forward pass.

    Returns:
        Rows of ``layer`` and ``head`` (both None for the whole model), ``accuracy``, ``accuracy_change``,
        ``logit_change`` (mean over the images) and ``images``.

    Raises:
        ConfigError: another word than zero and mean, or an attention that gives no outputs of heads.
        InputError: the images do not fit the model.
    """
    check_choice("to", to, ABLATIONS)
    model = own(model)
    check_images(images)
    kept = list(_entering(model, images, batch_size))
    whole = _answers(model, kept, labels, None, batch_size)
    rows = [{"layer": None, "head": None, "accuracy": whole[0], "accuracy_change": 0.0, "logit_change": 0.0}]
    for layer, x in enumerate(kept):
        heads = _heads_of(model, layer, x[:1]).shape[1]
        means = _means(model, layer, x, batch_size) if to == "mean" else torch.zeros(heads, device=x.device)
        for head in range(heads):
            found = _answers(model, kept, labels, (layer, head, means[head]), batch_size)
            change = {"accuracy_change": found[0] - whole[0], "logit_change": found[1] - whole[1]}
            rows.append({"layer": layer, "head": head, "accuracy": found[0], **change})
    return [row | {"images": len(images)} for row in rows]


def logit_lens(
    model: nn.Module,
    images: Float[Tensor, "n chans height width"],
    labels: Int64[Tensor, " n"],
    *,
    batch_size: int = 250,
) -> list[dict[str, Any]]:
    """What the model would answer after each layer: its last norm, pooling and head on the tokens that leave the layer.

    Args:
        model: a classifier.
        images: normalised as in training.
        labels: their classes.
        batch_size: images per forward pass.

    Returns:
        Rows of ``layer`` (-1 for the tokens that enter the first), ``accuracy``, ``probability`` of the true class and
        ``agreement`` with the model's own answer; means over the images.

    Raises:
        InputError: the images do not fit the model.
    """
    model = own(model)
    check_images(images)
    states = [*_entering(model, images, batch_size)]
    last: Any = model.blocks[-1]
    with evaluating(model), torch.no_grad():
        states.append(torch.cat([last(x) for x in states[-1].split(batch_size)]))
        logits = [model.forward_head(x).float().cpu() for x in states]
    answer, rows = logits[-1].argmax(dim=1), []
    for layer, each in enumerate(logits, start=-1):
        chosen, probability = each.argmax(dim=1), each.softmax(dim=1).gather(1, labels[:, None])
        accuracy, agreement = ((chosen == other).float().mean().item() for other in (labels, answer))
        row = {"accuracy": accuracy, "probability": probability.mean().item(), "agreement": agreement}
        rows.append({"layer": layer, **row})
    return rows


def _entering(model: VisionTransformer, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The tokens of all images that enter each block, first to last."""
    weight = model.patch_embed.proj.weight
    with evaluating(model), torch.no_grad():
        x = torch.cat([model.tokens(part.to(weight.device, weight.dtype)) for part in images.split(batch_size)])
        for each in model.blocks:
            block: Callable[[Tensor], Tensor] = each
            yield x
            x = torch.cat([block(part) for part in x.split(batch_size)])


def _heads_of(model: VisionTransformer, layer: int, x: Tensor) -> Tensor:
    """What each head reads from its values: (batch, heads, tokens, width)."""
    block: Any = model.blocks[layer]
    if not (hasattr(block.attn, "heads") and hasattr(block.attn, "joined")):
        hint = "Derive it from diffvit.models.attention.Attention."
        raise ConfigError("attention", f"{type(block.attn).__name__} does not give the outputs of its heads", hint)
    with evaluating(model), torch.no_grad():
        normed = block.norm1(x)
        values = block.attn.heads(normed)[2]
        return block.attn.maps(normed).effective.to(values.dtype) @ values


def _means(model: VisionTransformer, layer: int, x: Tensor, batch_size: int) -> Tensor:
    """(heads, width): mean of each head's output over images and tokens."""
    return sum(_heads_of(model, layer, part).mean(dim=2).sum(dim=0) for part in x.split(batch_size)) / len(x)  # pyright: ignore[reportReturnType]


def _answers(
    model: VisionTransformer,
    kept: list[Tensor],
    labels: Tensor,
    without: tuple[int, int, Tensor] | None,
    batch_size: int,
) -> tuple[float, float]:
    """Accuracy and mean logit of the true class; ``without`` is layer, head and what takes its output's place."""
    layer = without[0] if without else len(kept) - 1
    block: Any = model.blocks[layer]
    right, total = 0, 0.0
    with evaluating(model), torch.no_grad():
        for x, classes in zip(kept[layer].split(batch_size), labels.split(batch_size), strict=True):
            if without is None:
                x = block(x)
            else:
                out = _heads_of(model, layer, x)
                out[:, without[1]] = without[2]
                x = block.after(x, block.attn.joined(out))
            logits = model.forward_head(model.blocks[layer + 1 :](x)).double().cpu()
            right += int((logits.argmax(dim=1) == classes).sum())
            total += float(logits.gather(1, classes[:, None]).sum())
    return right / len(labels), total / len(labels)
