"""Attribution: what each patch contributes to a class's logit, by ten methods behind one function.

Every method gives a signed map over the patches. ``A`` is a layer's effective map (of differential attention
``A1 - lambda A2``, signed), ``dA`` the gradient of the target's logit with respect to it, ``x`` the image, ``dx`` the
gradient with respect to that, ``E_h`` the mean over heads.

=========================  ==================================================================  =======================
method                     map                                                                 source (arXiv)
=========================  ==================================================================  =======================
``attention``              pooled row of ``E_h A`` of one layer; not of a class                2010.11929, appendix D.7
``rollout``                :func:`diffvit.attention.rollout`; not of a class                   2005.00928
``gradient-rollout``       pooled row of ``C_L``: ``C_0 = I``,                                 2103.15679
                           ``C_l = (I + E_h (dA * A)+) C_{l-1}``
``transformer``            the same with ``(dA * R(A))+``, ``R`` by layer-wise relevance       2012.09838
``attnlrp``                sum over a patch's pixels of the relevance of ``x``                 2402.05602
``grad-cam``               ``(sum_c mean_t(dz_tc) z_tc)+``, ``z`` the patch tokens that        1610.02391
                           enter the last block's attention
``input-x-gradient``       sum over a patch's pixels of ``x dx``                               1605.01713
``integrated-gradients``   the same with ``dx`` averaged from a mean-coloured image to ``x``   1703.01365
``smoothgrad``             sum of ``|dx|``, ``dx`` averaged over noisy copies of ``x``         1706.03825
``occlusion``              how much the logit falls with the patch in the mean colour          1311.2901
=========================  ==================================================================  =======================

For differential attention. A layer's output depends on its two maps through ``A = A1 - lambda A2`` alone, and
``dA1 * A1 + dA2 * A2 = dA * A``. So ``gradient-rollout`` and ``transformer`` take the signed ``A`` where their papers
have a map above 0: a weight below 0 counts as positive where its gradient is below 0 too. Assumed is that relevance is
followed through both maps but not through lambda, which does not depend on the image (in V2 and the gated variant it
does, and takes half of its product's relevance), and that the norm of each head is a norm like any other. Where lambda
is 0 every map is that of softmax attention. ``attention`` shows ``A`` itself, ``rollout`` its positive part; the other
methods never see a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffvit.attention.capture import (
    AnyModel,
    bytes_of_a_layer,
    capture,
    check_images,
    classes_of,
    depth_of,
    grid_of,
    maps_in_graph,
    own,
    patch_size_of,
    weight_of,
)
from diffvit.attention.metrics import rank_correlation
from diffvit.attention.relevance import Rules
from diffvit.attention.rollout import rollout
from diffvit.errors import ConfigError, check_choice
from diffvit.hub.adapters import AdaptedModel, AttentionTap, adapted
from diffvit.models.vit import VisionTransformer
from diffvit.training.score import evaluating

_WORKING = 512 * 2**20  # bytes of all layers' maps that are followed at a time
_MOST = 32  # images at a time, where the maps are small beside what is kept of the other layers


@dataclass(frozen=True)
class Method:
    """One way to attribute.

    Args:
        run: ``run(model, images, target, **options)`` gives (batch, rows, columns).
        of_class: whether the map depends on the target.
        options: options that the method takes.
    """

    run: Callable[..., Tensor]
    of_class: bool = True
    options: tuple[str, ...] = ()


def attribute(
    model: nn.Module,
    images: Tensor,
    method: str = "attnlrp",
    target: int | str | Tensor | None = None,
    **options: Any,
) -> Float[Tensor, "batch rows columns"]:
    """What each patch contributes to a class's logit: a signed map per image, on the CPU.

    The model runs in evaluation mode (restored afterwards), on its device and in its dtype; weights get no gradients.

    Args:
        model: of this package or of a library with an adapter (:func:`diffvit.hub.adapters.adapted`), in any mode, on
            any device, of float32 or wider.
        images: (batch, channels, height, width), normalised as in training.
        method: a name in :data:`METHODS`.
        target: the class, by index or by name in ``model.classes``, or one index for each image, (batch,); by default
            the one that the model predicts.
        options: ``layer`` (``attention``: which block, by default the last), ``steps`` (``integrated-gradients``: 32
            points of Gauss-Legendre quadrature), ``samples``, ``noise`` and ``seed`` (``smoothgrad``: 25 copies with
            normal noise of 0.15 of each image's range, seed 0).

    Raises:
        ConfigError: no such method, option, layer or class, or an attention that the method cannot follow.
        InputError: the images do not fit the model, or there is no adapter for it.
    """
    check_choice("method", method, METHODS)
    chosen = METHODS[method]
    for name in options:
        if name not in chosen.options:
            allowed = ", ".join(chosen.options) or "no options"
            raise ConfigError(name, f"is not an option of {method} (found {name} vs {allowed})")
    check_images(images)
    if isinstance(target, str):
        names: Any = getattr(model, "classes", None) or ()
        check_choice("target", target, names)
        target = list(names).index(target)
    if isinstance(target, Tensor):
        if target.shape not in ((), (len(images),)):
            why = f"is not one class, or one for each image (found {len(target)} vs {len(images)})"
            raise ConfigError("target", why)
        target = target.expand(len(images))
    model = adapted(model)
    if chosen.of_class and not model.settings["num_classes"]:
        raise ConfigError("method", f"{method} explains a class, but the model has no head", "Take rollout.")
    weight = weight_of(model)
    chunk = max(1, min(_MOST, _WORKING // (depth_of(model) * bytes_of_a_layer(model, images))))
    parts = []
    with evaluating(model), torch.autocast(weight.device.type, enabled=False):
        for start, part in zip(range(0, len(images), chunk), images.split(chunk), strict=True):
            part = part.detach().to(weight.device, weight.dtype)
            classes = classes_of(
                model, part, target if not isinstance(target, Tensor) else target[start : start + chunk]
            )
            parts.append(chosen.run(model, part, classes, **options).detach().cpu())
    return torch.cat(parts)


def logit(model: nn.Module, images: Tensor, classes: Tensor) -> Float[Tensor, " batch"]:
    """The logit of each image's class."""
    return model(images).gather(1, classes[:, None])[:, 0]


def _by_patch(model: AnyModel, pixels: Tensor) -> Tensor:
    """Sums over each patch's pixels and channels: (batch, rows, columns)."""
    side, (rows, columns) = patch_size_of(model), grid_of(model, pixels)
    return pixels.sum(dim=1).unflatten(2, (columns, side)).unflatten(1, (rows, side)).sum(dim=(2, 4))


def _gradient(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Of the class's logit with respect to the image."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        return torch.autograd.grad(logit(model, images, classes).sum(), images)[0]


def _followed(
    model: AnyModel, images: Tensor, classes: Tensor, rules: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer's map and its gradient, or its relevance over its value, from the target's logit."""
    maps, logits = maps_in_graph(model, images, rules)
    chosen = logits.gather(1, classes[:, None])[:, 0]
    start = torch.ones_like(chosen) if rules is None else 1 / chosen.detach()  # relevance 1 at the class
    yield from zip(maps, torch.autograd.grad(chosen, maps, start), strict=True)


def _chained(model: AnyModel, images: Tensor, layers: Iterator[Tensor]) -> Tensor:
    """Pooled row, over the patches, of the product of ``I + E_h (layer)+``, first layer first."""
    product: Tensor | None = None
    for heads in layers:
        step = heads.clamp_min(0).mean(dim=1)
        step = step + torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        product = step if product is None else step @ product
    assert product is not None
    prefix = model.prefix
    row = product[:, 0] if model.pool == "cls" else product[:, prefix:].mean(dim=1)
    return row[:, prefix:].unflatten(1, grid_of(model, images))


def _attention(model: AnyModel, images: Tensor, _: Tensor, *, layer: int = -1) -> Tensor:
    return capture(model, images, layers=[layer]).to_patches(0).mean(dim=1)


def _rollout(model: AnyModel, images: Tensor, _: Tensor) -> Tensor:
    return rollout(capture(model, images))


def _gradient_rollout(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    return _chained(model, images, (grad * maps for maps, grad in _followed(model, images, classes)))


def _transformer(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    gradients = [grad for _, grad in _followed(model, images, classes)]
    relevances = (maps * over for maps, over in _followed(model, images, classes, "transformer"))
    return _chained(model, images, (grad * of for grad, of in zip(gradients, relevances, strict=True)))


def _attnlrp(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    # The rules do not reach into MultiheadAttention, explicit maps do.
    with Rules("attnlrp"), AttentionTap() if isinstance(model, AdaptedModel) else nullcontext():
        over = _gradient(model, images, classes)
    return _by_patch(model, images * over)


def _grad_cam(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    prefix = model.prefix
    with torch.enable_grad():
        if isinstance(model, AdaptedModel):
            _, entering, logits = model.run(images.clone().requires_grad_())
            if entering is None:
                why = "grad-cam needs a norm before the last attention, which this model lacks"
                raise ConfigError("method", why, "Take gradient-rollout.")
            z = entering
        else:
            last: Any = model.blocks[-1]
            with torch.no_grad():
                x = model.blocks[:-1](model.tokens(images))
                z = last.norm1(x)
            z = z.requires_grad_()
            logits = model.forward_head(last.after(x, last.attn(z)))
        grad = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), z)[0]
    weights = grad[:, prefix:].mean(dim=1, keepdim=True)
    return (weights * z[:, prefix:]).sum(dim=2).clamp_min(0).unflatten(1, grid_of(model, images))


def _input_x_gradient(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    return _by_patch(model, images * _gradient(model, images, classes))


def _integrated_gradients(model: AnyModel, images: Tensor, classes: Tensor, *, steps: int = 32) -> Tensor:
    _at_least_one("steps", steps)
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(images)
    for point, weight in zip(points, weights, strict=True):
        total += float(weight) / 2 * _gradient(model, images * float((point + 1) / 2), classes)
    return _by_patch(model, images * total)


def _smoothgrad(
    model: AnyModel, images: Tensor, classes: Tensor, *, samples: int = 25, noise: float = 0.15, seed: int = 0
) -> Tensor:
    _at_least_one("samples", samples)
    generator = torch.Generator().manual_seed(seed)
    spread = noise * (images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(samples):
        drawn = torch.randn(images.shape[1:], generator=generator).to(images)  # the same for every image
        total += _gradient(model, images + spread * drawn, classes)
    return _by_patch(model, (total / samples).abs())


def _occlusion(model: AnyModel, images: Tensor, classes: Tensor) -> Tensor:
    side, (rows, columns) = patch_size_of(model), grid_of(model, images)
    found = images.new_empty(len(images), rows, columns)
    with torch.no_grad():
        whole = logit(model, images, classes)
        for row in range(rows):
            for column in range(columns):
                covered = images.clone()
                covered[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
                found[:, row, column] = whole - logit(model, covered, classes)
    return found


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(name, f"must be at least 1 (found {value})")


METHODS: dict[str, Method] = {
    "attention": Method(_attention, of_class=False, options=("layer",)),
    "rollout": Method(_rollout, of_class=False),
    "gradient-rollout": Method(_gradient_rollout),
    "transformer": Method(_transformer),
    "attnlrp": Method(_attnlrp),
    "grad-cam": Method(_grad_cam),
    "input-x-gradient": Method(_input_x_gradient),
    "integrated-gradients": Method(_integrated_gradients, options=("steps",)),
    "smoothgrad": Method(_smoothgrad, options=("samples", "noise", "seed")),
    "occlusion": Method(_occlusion),
}


def stages(model: VisionTransformer) -> dict[str, tuple[str, ...]]:
    """Parts of a model from the head down: the beginnings of their parameters' names."""
    blocks = {f"block {index}": (f"blocks.{index}.",) for index in reversed(range(len(model.blocks)))}
    return {"head": ("head.",), "norm": ("norm.", "fc_norm."), **blocks, "tokens": ("",)}


def randomised(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, VisionTransformer]]:
    """Copies of a model, each with one more stage, from the head down, as it would be before any training.

    For the cascading parameter randomisation test (arXiv 1810.03292, section 4.1): a method whose map stays the same
    shows the image, not what the model has learnt.

    Args:
        model: left as it is; its ``settings`` make the untrained one.
        seed: of the untrained weights.

    Yields:
        The stage that was replaced last, and one copy, which is changed further when the next is asked for.
    """
    model = own(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained_at: Any = tuple(side * model.patch_embed.patch_size for side in model.grid)  # as its position table is
        fresh = dict(VisionTransformer(**{**model.settings, "image_size": trained_at}).named_parameters())
    mixed, left = copy.deepcopy(model), dict(fresh)
    for stage, beginnings in stages(model).items():
        with torch.no_grad():
            for name, parameter in mixed.named_parameters():
                if name in left and name.startswith(beginnings):
                    parameter.copy_(left.pop(name))
        yield stage, mixed


def randomisation(
    model: nn.Module, images: Tensor, methods: Sequence[str] = tuple(METHODS), *, seed: int = 0
) -> list[dict[str, Any]]:
    """Rank correlation of each method's maps with its own after each stage of :func:`randomised`.

    The class is that which the trained model predicts.

    Args:
        model: a classifier.
        images: (batch, channels, height, width), normalised as in training.
        methods: names in :data:`diffvit.attention.METHODS`.
        seed: of the untrained weights.

    Returns:
        Rows of ``method``, ``stage`` (``trained``, then the stage that was replaced last), ``correlation`` (mean over
        the images, of the map with its sign) and ``correlation_abs`` (of its absolute value).
    """
    with evaluating(model):
        classes = classes_of(model, images.to(weight_of(own(model))), None).cpu()
    trained = {method: attribute(model, images, method, classes) for method in methods}
    rows = [{"method": method, "stage": "trained", "correlation": 1.0, "correlation_abs": 1.0} for method in methods]
    for stage, mixed in randomised(model, seed):
        for method, before in trained.items():
            after = attribute(mixed, images, method, classes)
            signed, absolute = rank_correlation(before, after), rank_correlation(before.abs(), after.abs())
            row = {"correlation": float(signed.mean()), "correlation_abs": float(absolute.mean())}
            rows.append({"method": method, "stage": stage, **row})
    return rows
