"""Start a model from trained weights: what is taken, resampled, started fresh or left over, or why it does not fit.

:func:`read_source` reads the weights that ``init_from`` names, :func:`transfer` puts them into a model. The rules, and
how they differ from others', are in docs/transfer.md.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffvit.config import Config
from diffvit.errors import ConfigError, DiffvitError, InputError, few
from diffvit.files import sha256_of
from diffvit.hub.files import check_weights, read_header, read_weights
from diffvit.hub.pretrained import DINO, LAYER_SCALE, fit, infer, load_pretrained
from diffvit.models import pos_embed as positions
from diffvit.models.vit import VisionTransformer
from diffvit.registry import ROPE
from diffvit.training.load import METADATA_KEY, load_with_meta

TIMM = "timm:"  # before the name of a model of timm's
_OTHER = "Give a run, a whole weights file, a packaged name, timm:NAME or a DINO name."
SPLIT = ("softmax", "differential-split")  # the one attention that weights of another become
_SECOND = (".attn.qk2.weight", ".attn.qk2.bias")
_TABLES = ("learned-1d", "learned-2d", "sincos-1d", "sincos-2d")
_LINES = ("pos_embed_rows", "pos_embed_cols")
_COMPARED = (
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "attention", "qkv_bias", "qk_norm", "norm_eps", "layer_scale"),
    *("fc_norm", "no_embed_class", "pos_embed"),
)
# Weights that need not fit: they are resampled, or started fresh.
_ADAPTED = ("head.", "pos_embed", "patch_embed.proj.weight", "cls_token", "reg_token")


@dataclass(frozen=True)
class Source:
    """Trained weights to start from.

    ``model`` holds them, float32, on the CPU; ``classes`` are the names of its outputs, None where they are not known;
    ``sha256`` is that of the file, or of the tensors as safetensors where there is none; ``note`` is what was assumed.
    """

    model: VisionTransformer
    reference: str
    classes: list[str] | None
    sha256: str
    note: str = ""


@dataclass
class Transfer:
    """What became of the weights, by name; resampled ones with their sizes before and after, and ``notes``."""

    reference: str
    sha256: str
    taken: list[str] = field(default_factory=list)
    resampled: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The counts, with names where they are few."""
        resampled = [f"{name} {sizes}" for name, sizes in self.resampled.items()]
        lists = {"resampled": resampled, "fresh": self.fresh, "left over": self.left_over}
        parts = [f"taken {len(self.taken)}"]
        parts += [f"{word} {len(names)}" + f" ({few(names, 4)})" * bool(names) for word, names in lists.items()]
        return f"weights of {self.reference} (SHA-256 {self.sha256[:12]}): {'; '.join([', '.join(parts), *self.notes])}"


def absolute(reference: str) -> str:
    """A reference as config.yaml records it: paths absolute, names as they are."""
    if not reference.startswith(TIMM) and (Path(reference).expanduser().exists() or os.sep in reference):
        return str(Path(reference).expanduser().absolute())
    return reference


def read_source(reference: str, num_heads: int) -> Source:
    """The weights of a run, a weights file, a packaged model, ``timm:NAME``, or one of DINO's names.

    ``num_heads`` is that of the model to start, for files whose weights do not tell their own. Errors as
    :func:`diffvit.load`'s and :func:`diffvit.hub.pretrained.load_pretrained`'s.
    """
    try:
        return _read(reference, num_heads)
    except DiffvitError as error:
        what = error.what if reference in error.what else f"init_from {reference}"
        hint = error.hint.replace("with --weights FILE", "as init_from").replace("--weights", "init_from")
        raise type(error)(what, error.why, _OTHER if not hint or "--pretrained" in hint else hint) from None


def _read(reference: str, num_heads: int) -> Source:
    path = Path(reference)
    if reference.startswith(TIMM) or (reference in DINO and not path.exists()):
        found = load_pretrained(reference.removeprefix(TIMM))
        content = safetensors.torch.save(found.model.state_dict())
        return Source(found.model, reference, found.classes, hashlib.sha256(content).hexdigest(), found.source)
    if path.is_file() and not _is_ours(path):
        tensors = read_weights(path).tensors
        tell = any(name.endswith((".lambda_q1", ".q_norm.weight")) for name in tensors)
        width = tensors["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in tensors else 0
        guessed = None if tell or width % num_heads else num_heads
        settings, note = infer(reference, tensors, guessed)
        note = f"number of heads taken as the model's, {num_heads}" if guessed else note
        return Source(fit(reference, tensors, settings), reference, None, sha256_of(path), note)
    model, meta = load_with_meta(reference)
    return Source(model, reference, meta["classes"], sha256_of(meta["file"]))


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors" and METADATA_KEY in (read_header(path).get("__metadata__") or {})


@torch.no_grad()
def transfer(model: VisionTransformer, source: Source, classes: Sequence[str]) -> Transfer:
    """Put the weights of ``source`` into ``model``, in place, as far as they go; the rest keeps its fresh values.

    The head is taken where ``classes``, the model's, have the same names in the same order. InputError for another
    architecture or for positions that cannot be converted: it says by name what fits and what does not.
    """
    theirs, report = source.model, Transfer(source.reference, source.sha256)
    _refuse_misfits(model, source)
    report.notes += [source.note] if source.note else []
    fresh, found = model.state_dict(), theirs.state_dict()
    adapted = _positions(model, theirs)
    weight, wanted = found["patch_embed.proj.weight"], fresh["patch_embed.proj.weight"]
    if weight.shape != wanted.shape:
        sizes = f"{_size(weight.shape[1:])} -> {_size(wanted.shape[1:])}"
        adapted["patch_embed.proj.weight"] = resample_patches(weight, wanted.shape[1], wanted.shape[2]), sizes
    converted = ("pos_embed",) if "pos_embed" in adapted else ()
    report.left_over = [name for name in found if name not in fresh and not name.startswith(converted)]
    if _kinds(model, theirs) == SPLIT:
        found |= _split_off(found)
        report.notes += ["second queries and keys are copies of the first, lambda is 0: it starts as the softmax model"]
    if source.classes is None or list(source.classes) != list(classes):
        found = {name: tensor for name, tensor in found.items() if not name.startswith("head.")}
    new: dict[str, Tensor] = {}
    for name, before in fresh.items():
        if name in adapted:
            new[name], report.resampled[name] = adapted[name]
        elif name in found and found[name].shape == before.shape:
            new[name] = found[name]
            report.taken.append(name)
        else:
            new[name] = before
            report.fresh.append(name)
    model.load_state_dict(new)
    return report


def _kinds(model: VisionTransformer, theirs: VisionTransformer) -> tuple[str, str]:
    return theirs.settings["attention"], model.settings["attention"]


def _refuse_misfits(model: VisionTransformer, source: Source) -> None:
    """InputError where the blocks would not compute what they did, or the positions have no conversion."""
    old, new = _compared(source.model), _compared(model)
    if not (source.model.prefix and model.prefix):
        old["no_embed_class"] = new["no_embed_class"]  # of no token
    kinds = _kinds(model, source.model)
    if kinds == SPLIT:
        old["attention"] = new["attention"]
    if _converts(source.model, model):
        old["pos_embed"] = new["pos_embed"]
    differ = [name for name in new if old[name] != new[name]]
    if differ:
        found = ", ".join(f"{name} {old[name]} vs {new[name]}" for name in differ)
        same = ", ".join(f"{name} {new[name]}" for name in new if name not in differ)
        fitting = old | {"layer_scale": LAYER_SCALE * old["layer_scale"]}
        flags = " ".join(f"--model.{name.replace('_', '-')}={fitting[name]}" for name in differ)
        hint = f"Nothing was started; what fits: {flags}"
        if kinds == ("softmax", "differential"):
            hint += ", or --model.attention=differential-split, a differential model that starts as the softmax one"
        raise InputError(f"init_from {source.reference}", f"is of another model ({found}; fits: {same})", hint)
    found, expected = (
        {name: tuple(tensor.shape) for name, tensor in each.state_dict().items() if not name.startswith(_ADAPTED)}
        for each in (source.model, model)
    )
    if kinds == SPLIT:
        expected = {name: shape for name, shape in expected.items() if not name.endswith((".lambda_", *_SECOND))}
    check_weights(f"init_from {source.reference}", found, expected, hint="Nothing was started.")


def _compared(model: VisionTransformer) -> dict[str, Any]:
    """Settings on which it depends what the weights compute, but for the sizes that are resampled."""
    found = {name: model.settings[name] for name in _COMPARED}
    dim = found["embed_dim"]
    return found | {"mlp_ratio": int(dim * found["mlp_ratio"]) / dim, "layer_scale": bool(found["layer_scale"])}


def _added(model: VisionTransformer) -> str:
    """The kind of positions that are added to the tokens; rotary ones aside."""
    return model.settings["pos_embed"].removesuffix(ROPE).removesuffix("+") or "none"


def _converts(theirs: VisionTransformer, model: VisionTransformer) -> bool:
    """Whether positions become the model's: those of the same kind do, and every table becomes a learned one."""
    rotary = [each.settings["pos_embed"].endswith(ROPE) for each in (theirs, model)]
    same = _added(theirs) == _added(model)
    return rotary[0] == rotary[1] and (same or (_added(theirs) in _TABLES and _added(model) == "learned-1d"))


def _tokens(model: VisionTransformer) -> list[str]:
    """The tokens before the patches that have a position."""
    if model.no_embed_class:
        return []
    first = [] if model.cls_token is None else ["[CLS]"]
    return first + [f"register {number}" for number in range(model.prefix - len(first))]


def _positions(model: VisionTransformer, theirs: VisionTransformer) -> dict[str, tuple[Tensor, str]]:
    """The position tables of ``model`` that are not ``theirs`` as they stand, each with its sizes before and after."""
    old, new = _added(theirs), _added(model)
    before, after = _tokens(theirs), _tokens(model)
    if (old, theirs.grid, before) == (new, model.grid, after) or new == "none":
        return {}
    if new == "learned-2d":
        pairs = ((name, theirs.get_parameter(name), size) for name, size in zip(_LINES, model.grid, strict=True))
        adapted = {
            name: (_resample_line(line, size), f"{len(line)} -> {size}")
            for name, line, size in pairs
            if len(line) != size
        }
        if before != after and before and after:
            cls, own = (getattr(each, "pos_embed_cls", torch.empty(0)) for each in (theirs, model))
            adapted["pos_embed_cls"] = _rows(before, after, cls, own), f"{len(before)} -> {len(after)}"
        return adapted
    if new not in _TABLES:
        why = f"positions of {new!r}, a --plugin's, cannot be resampled ({_layout(theirs)} vs {_layout(model)})"
        raise InputError("init_from", why, "Nothing was started; give the image and patch size of the weights.")
    table, own = positions.table(theirs), positions.table(model)
    assert table is not None
    assert own is not None
    if theirs.grid != model.grid:
        table = positions.resample(table, theirs.grid, model.grid)
    rows = _rows(before, after, table[0], own[0])
    joined = torch.cat([rows, table[0, len(before) :]])[None]
    kinds = (f"{old} ", f"{new} ") if old != new else ("", "")
    return {"pos_embed": (joined, f"{kinds[0]}{_layout(theirs)} -> {kinds[1]}{_layout(model)}")}


def _rows(before: list[str], after: list[str], found: Tensor, own: Tensor) -> Tensor:
    """Rows of the tokens ``after``: those ``found`` for the same token, else the model's ``own``."""
    rows = [found[before.index(token)] if token in before else own[place] for place, token in enumerate(after)]
    return torch.stack(rows) if rows else own[:0]


def _layout(model: VisionTransformer) -> str:
    tokens = len(_tokens(model))
    return (f"{tokens}+" if tokens else "") + _size(model.grid)


def _size(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _resample_line(table: Float[Tensor, "old width"], size: int) -> Float[Tensor, "size width"]:
    """A table of rows or columns for another number of them: bicubic with antialiasing along the one axis."""
    # Along the last axis: along the other, torch 2.13 gives other numbers where the last has one entry.
    line = table.T[None, :, None].contiguous()
    return F.interpolate(line, size=(1, size), mode="bicubic", antialias=True)[0, :, 0].T


def resample_patches(
    weight: Float[Tensor, "dim chans old old"], channels: int, side: int
) -> Float[Tensor, "dim channels side side"]:
    """A patch projection for another number of channels and another patch size; computed in float64, given in float32.

    Channels: to one, their sum; to more or fewer, they are repeated in turn and scaled by ``chans / channels``; equal
    channels then give the tokens that they gave, where their number is 1 or a multiple. Size: the pseudo-inverse
    resize of FlexiViT (arXiv 2212.08013, section 3.4), ``(B^T)^+ w`` with ``B`` the matrix that resizes a patch:
    bicubic with antialiasing, as timm's (the paper's is bilinear). To a larger patch, a resized image has the tokens of
    the original.
    """
    chans, old = weight.shape[1:3]
    weight = weight.double()
    if channels == 1:
        weight = weight.sum(1, keepdim=True)
    elif channels != chans:
        weight = weight.repeat(1, math.ceil(channels / chans), 1, 1)[:, :channels] * (chans / channels)
    if side != old:
        pixels = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
        resized = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).flatten(1)  # B^T
        weight = (weight.flatten(2) @ torch.linalg.pinv(resized).T).unflatten(2, (side, side))
    return weight.float()


def _split_off(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second queries and keys of each block: copies of the first."""
    projections = {name: tensor for name, tensor in found.items() if ".attn.qkv." in name}
    return {name.replace(".qkv.", ".qk2."): tensor[: len(tensor) // 3 * 2] for name, tensor in projections.items()}


def start_from(model: Any, config: Config, classes: Sequence[str], before: Mapping[str, Any]) -> Transfer:
    """Put the weights that ``init_from`` names into a run's model.

    ``before`` is what environment.json recorded of them where the run began already, but has no checkpoint yet: then
    they have to be the same. Errors as :func:`read_source` and :func:`transfer`.
    """
    reference = str(config.init_from)
    if not isinstance(model, VisionTransformer):
        why = f"the model is no diffvit.VisionTransformer (found {type(model).__name__})"
        raise ConfigError(f"init_from {reference}", why, "Put the weights into the model in Python.")
    source = read_source(reference, config.model.num_heads)
    if before and before["sha256"] != source.sha256:
        why = f"is not what the run began with (SHA-256 {source.sha256[:12]} vs {before['sha256'][:12]})"
        raise InputError(f"init_from {reference}", why, "Nothing was changed; start another run with --out.")
    return transfer(model, source, classes)
