"""Every layer's attention maps of a model on a batch of images, captured block by block, without hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffvit.attention.relevance import Rules
from diffvit.errors import ConfigError, InputError
from diffvit.hub.adapters import AdaptedModel, adapted
from diffvit.models.attention import AttentionMaps
from diffvit.models.vit import VisionTransformer, encode_with_maps
from diffvit.registry import ATTENTION
from diffvit.training.score import evaluating

AnyModel = VisionTransformer | AdaptedModel
MAX_BYTES = 8 * 2**30  # of maps that one record may hold
_WORKING = 256 * 2**20  # bytes of one layer's maps that are made at a time
KINDS = ("effective", "positive", "negative")


@dataclass(frozen=True)
class Record:
    """The maps of one batch of images.

    Args:
        layers: one :class:`diffvit.models.attention.AttentionMaps` per captured block, first to last, on the CPU.
        blocks: which block each of them is, counted from 0.
        grid: rows and columns of patches.
        prefix: number of tokens before the patches: [CLS] and registers.
        pool: ``cls``, if the model classifies from token 0, or ``mean`` over the patches.
        gradients: of the target's logit with respect to each captured block's effective map, if asked for.
    """

    layers: list[AttentionMaps]
    blocks: list[int]
    grid: tuple[int, int]
    prefix: int
    pool: str
    gradients: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.layers[0].positive)

    @property
    def differential(self) -> bool:
        """Whether the maps are differences of two."""
        return self.layers[0].negative is not None

    def uniform(self, layer: int, kind: str = "effective") -> float:
        """What each key of a layer's map has if all have the same: 1/keys, in V1's difference (1 - lambda)/keys.

        It is the map's mean, whatever its rows sum to.
        """
        if self.layers[layer].lam is None:
            return 1.0 / self.layers[layer].positive.shape[-1]
        return float(self.maps(layer, kind).mean())

    def lam(self, layer: int) -> float | None:
        """Lambda of a layer, the mean where it depends on the token or the head; None where nothing is subtracted."""
        lam = self.layers[layer].lam
        return None if lam is None else float(lam.mean())

    def maps(self, layer: int, kind: str = "effective") -> Tensor:
        """(batch, heads, query, key) of ``layers[layer]``: effective, positive or negative.

        Raises:
            ConfigError: no such kind, or the negative map of softmax attention, which has none.
        """
        if kind not in KINDS:
            raise ConfigError("map", f"no such kind (found {kind!r} vs {', '.join(KINDS)})")
        found = getattr(self.layers[layer], kind)
        if found is None:
            raise ConfigError("map", "softmax attention has no negative map", "Take a differential model.")
        return found

    def to_patches(self, layer: int, kind: str = "effective", query: tuple[int, int] | None = None) -> Tensor:
        """Attention of a query to each patch, as (batch, heads, rows, columns).

        Args:
            layer: index into :attr:`layers`.
            kind: ``effective``, ``positive`` or ``negative``.
            query: row and column of the query patch; None for [CLS] or the mean over the patches, as the model pools.

        Raises:
            ConfigError: no such kind of map or patch.
        """
        maps = self.maps(layer, kind)
        if query is not None:
            return self.on_grid(maps[:, :, self._token(query), self.prefix :])
        return self.on_grid(self.pooled(maps)[..., self.prefix :])

    def pooled(self, maps: Tensor) -> Tensor:
        """Row of the token that the model pools: (..., query, key) to (..., key)."""
        return maps[..., 0, :] if self.pool == "cls" else maps[..., self.prefix :, :].mean(dim=-2)

    def on_grid(self, patches: Tensor) -> Tensor:
        """(..., patches) as (..., rows, columns)."""
        return patches.unflatten(-1, self.grid)

    def _token(self, query: tuple[int, int]) -> int:
        (row, column), (rows, columns) = query, self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            allowed = f"0,0 to {rows - 1},{columns - 1}"
            raise ConfigError("query", f"no such patch (found {row},{column} vs {allowed}: row,column)")
        return self.prefix + row * columns + column


def capture(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[int] | None = None,
    chunk: int | None = None,
    grad: bool = False,
    target: int | Tensor | None = None,
) -> Record:
    """Capture every layer's attention maps, computed explicitly with the model's own weights.

    The model runs in evaluation mode (restored afterwards), on its device and in its dtype, a chunk of images at a
    time. The maps come back on the CPU, in float32 (float64 from a float64 model).

    Args:
        model: of this package or of a library with an adapter (:func:`diffvit.hub.adapters.adapted`), in any mode, on
            any device.
        images: (batch, channels, height, width), normalised as in training.
        layers: which blocks, counted from 0, negative ones from the end; by default all.
        chunk: images per forward pass; by default as many as keep a layer's maps under 256 MiB.
        grad: take the gradients too, of all images at once.
        target: class whose logit they are of, or one for each image; by default the predicted one.

    Raises:
        ConfigError: no such layer or class, or more than 8 GiB of maps (see :func:`captures` for those).
        InputError: the images do not fit the model, or there is no adapter for it.
    """
    model = adapted(model)
    wanted = _wanted(model, images, layers)
    _check_room(model, images, len(wanted))
    parts = list(captures(model, images, layers=layers, chunk=chunk))
    first = parts[0]
    joined = [_joined([part.layers[place] for part in parts]) for place in range(len(wanted))]
    record = first if len(parts) == 1 else Record(joined, first.blocks, first.grid, first.prefix, first.pool)
    return replace(record, gradients=_gradients(model, images, target, wanted)) if grad else record


def _gradients(model: AnyModel, images: Tensor, target: int | Tensor | None, wanted: Sequence[int]) -> list[Tensor]:
    weight = weight_of(model)
    with evaluating(model), torch.autocast(weight.device.type, enabled=False):
        images = images.detach().to(weight.device, weight.dtype)
        classes = classes_of(model, images, target)
        maps, logits = maps_in_graph(model, images)
        chosen = logits.gather(1, classes[:, None]).sum()
        return [each.cpu() for each in torch.autograd.grad(chosen, [maps[layer] for layer in wanted])]


def maps_in_graph(model: AnyModel, images: Tensor, rules: str | None = None) -> tuple[list[Tensor], Tensor]:
    """A forward pass over explicit effective maps.

    Args:
        model: whose attention has ``read`` (:class:`diffvit.models.attention.AttentionModule`).
        images: on the model's device.
        rules: of :class:`diffvit.attention.relevance.Rules`; by default gradients.

    Returns:
        Each layer's effective map, (batch, heads, query, key), and the logits, in one graph.

    Raises:
        ConfigError: an attention without ``read``.
    """
    maps: list[Tensor] = []
    with torch.enable_grad(), Rules(rules) if rules else nullcontext():
        images = images.clone().requires_grad_()
        if isinstance(model, AdaptedModel):
            run = model.run(images)
            return run.maps, run.out
        x = model.tokens(images)
        for each in model.blocks:
            block: Any = each
            attn = block.attn
            if not hasattr(attn, "read"):
                hint = "Give it a method read(weights, x), or take a method that needs no maps, such as attnlrp."
                raise ConfigError("attention", f"{type(attn).__name__} cannot be read with other maps", hint)
            normed = block.norm1(x)
            maps.append(attn.maps(normed).effective)
            x = block.after(x, attn.read(maps[-1], normed))
        return maps, model.forward_head(x)


def classes_of(model: nn.Module, images: Tensor, target: int | Tensor | None) -> Tensor:
    """(batch,) of classes, on the images' device."""
    with torch.no_grad():
        logits = model(images[:1]) if target is not None else model(images)
    if target is None:
        return logits.argmax(dim=1)
    classes = torch.as_tensor(target, device=images.device).long().expand(len(images))
    least, most = int(classes.min()), int(classes.max())
    if least < 0 or most >= logits.shape[1]:
        found = str(least) if least == most else f"{least} to {most}"
        raise ConfigError("target", f"no such class (found {found} vs 0 to {logits.shape[1] - 1})")
    return classes


def captures(
    model: nn.Module, images: Tensor, *, layers: Sequence[int] | None = None, chunk: int | None = None
) -> Iterator[Record]:
    """As :func:`capture`, a record per chunk, so that the maps of any number of images pass through bounded memory."""
    model = adapted(model)
    wanted = _wanted(model, images, layers)
    size = chunk or max(1, _WORKING // bytes_of_a_layer(model, images))
    for part in images.split(size):
        yield _encode(model, part, wanted, classify=False)[0]


def capture_with_logits(
    model: nn.Module, images: Tensor, *, layers: Sequence[int] | None = None
) -> tuple[Record, Tensor | None]:
    """As :func:`capture`, with the logits (batch, classes) as float32 from the same forward pass.

    Returns:
        The record, and the logits; None for a model without a head.

    Raises:
        ConfigError: no such layer, or more than 8 GiB of maps.
        InputError: the images do not fit the model, or there is no adapter for it.
    """
    model = adapted(model)
    wanted = _wanted(model, images, layers)
    _check_room(model, images, len(wanted))
    return _encode(model, images, wanted, classify=bool(model.settings["num_classes"]))


def _encode(model: AnyModel, images: Tensor, wanted: list[int], *, classify: bool) -> tuple[Record, Tensor | None]:
    """One forward pass: the maps of the wanted blocks and, if asked for, the logits."""
    grid, weight, logits = grid_of(model, images), weight_of(model), None
    images = images.to(weight.device, weight.dtype)
    with evaluating(model), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        if isinstance(model, AdaptedModel):
            run = model.run(images, wanted)
            wide = torch.promote_types(weight.dtype, torch.float32)
            layers = [AttentionMaps(maps.to("cpu", wide)) for maps in run.maps]
            return Record(layers, wanted, grid, model.prefix, model.pool), run.out.float().cpu() if classify else None
        x = model.tokens(images)
        prefix = x.shape[1] - grid[0] * grid[1]
        layers, x = encode_with_maps(model.blocks, x, wanted)
        if classify:
            left = [] if len(wanted) == len(model.blocks) else list(model.blocks)[wanted[-1] :]
            for block in left:
                x = block(x)
            logits = model.forward_head(x).float().cpu()
    return Record([_on_cpu(maps) for maps in layers], wanted, grid, prefix, model.pool), logits


def grid_of(model: AnyModel, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches that the model cuts such images into."""
    side = patch_size_of(model)
    return images.shape[-2] // side, images.shape[-1] // side


def patch_size_of(model: AnyModel) -> int:
    """Side of a patch, pixels."""
    return model.patch_size if isinstance(model, AdaptedModel) else model.patch_embed.patch_size


def own(model: nn.Module) -> VisionTransformer:
    """The model, if it is of this package; InputError where its blocks would be needed, and it is another's."""
    if not isinstance(model, VisionTransformer):
        raise InputError(type(model).__name__, "is not a model of this package, whose blocks this needs")
    return model


def weight_of(model: AnyModel) -> Tensor:
    """A weight whose device and type images have to have."""
    return model.weight if isinstance(model, AdaptedModel) else model.patch_embed.proj.weight


def depth_of(model: AnyModel) -> int:
    """Number of layers with attention."""
    return model.depth if isinstance(model, AdaptedModel) else len(model.blocks)


def _wanted(model: AnyModel, images: Tensor, layers: Sequence[int] | None) -> list[int]:
    """The blocks to capture, after a check of images and layers."""
    check_images(images)
    depth = depth_of(model)
    for layer in layers or ():
        if not -depth <= layer < depth:
            raise ConfigError("layers", f"no such layer (found {layer} vs 0 to {depth - 1})")
    if layers is not None and not layers:
        raise ConfigError("layers", f"none asked for (have 0 to {depth - 1})")
    return list(range(depth)) if layers is None else sorted({layer % depth for layer in layers})


def check_images(images: Tensor) -> None:
    """Raise :class:`InputError` unless these are floats, batch x channels x height x width."""
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        found = f"{images.dtype} of shape {'x'.join(map(str, images.shape))}".removeprefix("torch.")
        raise InputError("images", f"must be normalised floats, batch x channels x height x width (found {found})")


def _check_room(model: AnyModel, images: Tensor, layers: int) -> None:
    needed = layers * len(images) * bytes_of_a_layer(model, images)
    if needed > MAX_BYTES:
        rows, columns = grid_of(model, images)
        found = f"{layers} layers of {rows * columns:,} patches for {len(images)} images: {needed / 2**30:.1f} GiB"
        hint = "Ask for fewer layers or images, or a smaller image size."
        raise ConfigError("maps", f"would take too much memory ({found} vs {MAX_BYTES / 2**30:g} GiB)", hint)


def bytes_of_a_layer(model: AnyModel, images: Tensor) -> int:
    """Of one image's maps, both of them where attention is differential; prefix tokens are too few to count."""
    first: Any = model if isinstance(model, AdaptedModel) else model.blocks[0].attn
    maps, kind = first.num_heads, "softmax" if isinstance(model, AdaptedModel) else model.settings["attention"]
    if kind != "softmax" and kind in ATTENTION:
        maps = max(maps, 2 * ATTENTION[kind].maps(maps))
    rows, columns = grid_of(model, images)
    return maps * (rows * columns) ** 2 * 4


def _on_cpu(maps: AttentionMaps) -> AttentionMaps:
    parts = (maps.positive, maps.negative, maps.lam)
    return AttentionMaps(*(None if part is None else part.cpu() for part in parts))  # pyright: ignore[reportArgumentType]


def _joined(parts: Sequence[AttentionMaps]) -> AttentionMaps:
    negative = [part.negative for part in parts if part.negative is not None]
    positive = torch.cat([part.positive for part in parts])
    lam = parts[0].lam
    if lam is not None and lam.ndim == 4 and len(lam) == len(parts[0].positive):  # of each image
        lam = torch.cat([part.lam for part in parts if part.lam is not None])
    return AttentionMaps(positive, torch.cat(negative) if negative else None, lam)
