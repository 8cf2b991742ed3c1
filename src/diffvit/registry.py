"""Registries of attentions, position embeddings, data sources and augmentations, built in or a user's own; plugins.

Nothing here imports torch: the configuration and the command line take their names from here. A plugin is a Python
file that adds to a registry, named by ``--plugin my_attention.py`` (docs/extending.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from diffvit.errors import ConfigError

PLUGINS = "DIFFVIT_PLUGINS"  # the files of --plugin, for the processes that a command starts
ENTRY_POINTS = "diffvit.plugins"
ROPE = "rope-2d"
MEMORY = "memory"  # the data of a run whose images were given in Python; no registered source


class LayerSize(NamedTuple):
    """Width of a token, heads of the softmax baseline, and tokens of a layer."""

    dim: int
    heads: int
    tokens: int


@dataclass(frozen=True)
class AttentionKind:
    """A registered attention.

    Args:
        make: ``make(dim, num_heads, layer_index=, qkv_bias=, qk_norm=, norm_eps=, rope=)`` gives a
            :class:`diffvit.models.attention.AttentionModule`; or where such a function is, as ``"module:name"``.
        label: the model's name in tables and plots.
        maps: how many attention maps a layer has, from the softmax baseline's number of heads.
        refuse: why there cannot be so many heads, or an empty string; None allows every number.
        more: multiply-adds of a layer over softmax attention's, for estimates before a training; None for none.
    """

    make: Callable[..., Any] | str
    label: str
    maps: Callable[[int], int] = int
    refuse: Callable[[int], str] | None = None
    more: Callable[[LayerSize], float] | None = None

    def build(self, dim: int, num_heads: int, **more: Any) -> Any:
        """One layer's attention; a ConfigError for sizes that it refuses."""
        return function_of(self.make)(dim, num_heads, **more)


def function_of(entry: Callable[..., Any] | str) -> Callable[..., Any]:
    """A registered function; one that is named as ``"module:name"`` is imported now."""
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _odd(num_heads: int) -> str:
    why = f"num_heads {num_heads} is odd: differential attention subtracts heads in pairs, so it needs an even number"
    return why if num_heads % 2 else ""


def _paired(place: str, label: str, more: Callable[[LayerSize], float] | None = None) -> AttentionKind:
    return AttentionKind(f"diffvit.models.{place}", label, maps=lambda heads: heads // 2, refuse=_odd, more=more)


def _no_groups(num_heads: int) -> str:
    return f"num_heads {num_heads} is no multiple of 4: three first maps share one second map" if num_heads % 4 else ""


ATTENTION: dict[str, AttentionKind] = {
    "softmax": AttentionKind("diffvit.models.attention:Attention", "ViT"),
    "differential": _paired("attention:DifferentialAttention", "Diff-ViT"),
    "differential-split": AttentionKind(
        "diffvit.models.variants.split:SplitDifferentialAttention",
        "Diff-ViT (split)",
        more=lambda of: 2 * of.tokens * of.dim * (of.dim + of.tokens),
    ),
    "differential-v2": AttentionKind(
        "diffvit.models.variants.v2:DifferentialAttentionV2",
        "Diff-ViT V2",
        more=lambda of: of.tokens * of.dim * (of.dim + of.heads + of.tokens),
    ),
    "dint": _paired("variants.dint:DintAttention", "DINT ViT"),
    "differential-grouped": AttentionKind(
        "diffvit.models.variants.grouped:GroupedDifferentialAttention",
        "Diff-ViT (grouped)",
        maps=lambda heads: 3 * heads // 4,
        refuse=_no_groups,
        more=lambda of: of.tokens * of.dim * (of.tokens - of.dim) / 2,
    ),
    "differential-shared": _paired(
        "variants.shared:SharedDifferentialAttention",
        "Diff-ViT (shared)",
        lambda of: of.tokens * of.dim * (6 * max(1, of.dim // 16) - of.dim),
    ),
    "differential-gated": _paired(
        "variants.gated:GatedDifferentialAttention",
        "Diff-ViT (gated)",
        lambda of: of.tokens * of.dim * of.heads / 2,
    ),
    "differential-free": _paired("variants.controls:FreeDifferentialAttention", "Diff-ViT (free lambda)"),
    "differential-nonnegative": _paired("variants.controls:NonNegativeDifferentialAttention", "Diff-ViT (lambda >= 0)"),
    "two-maps-sum": _paired("variants.controls:SummedAttention", "ViT (sum of two maps)"),
    "two-maps-mean": _paired("attention:PairedAttention", "ViT (mean of two maps)"),
}
ACCELERATED = ("softmax", "differential")  # what diffvit.accelerate has faster modules for
FROM_LAMBDA_INIT = ("differential", "dint", "differential-grouped", "differential-shared")  # where lambda starts
# Added to the tokens: the built-in ones (models/pos_embed.py), and makers of others.
POSITIONS: dict[str, Callable[[tuple[int, int], int, int], Any] | None] = dict.fromkeys(
    ("none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d")
)
SOURCES: dict[str, Callable[..., Any] | str] = {
    "auto": "diffvit.data.sources:load_auto",
    "cifar10": "diffvit.data.sources:load_cifar10",
    "folder": "diffvit.data.sources:load_folder",
    "shapes": "diffvit.data.sources:load_shapes",
    "shapes-hard": "diffvit.data.sources:load_hard_shapes",
}
# One of them at a time acts between flip and crop and colour jitter; the built-in ones are in data/augment.py.
AUGMENTATIONS: dict[str, Callable[[Any, Any], Any] | None] = dict.fromkeys(("none", "randaugment", "trivialaugment"))


def register_attention(
    name: str,
    make: Callable[..., Any],
    *,
    label: str | None = None,
    maps: Callable[[int], int] = int,
    refuse: Callable[[int], str] | None = None,
) -> None:
    """Add an attention of your own to the values of ``--model.attention``.

    Args:
        name: what the setting calls it.
        make: see :class:`AttentionKind`; a subclass of :class:`diffvit.models.attention.Attention` will do.
        label: the model's name in tables and plots; by default ``name``.
        maps: see :class:`AttentionKind`.
        refuse: see :class:`AttentionKind`.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in ATTENTION:
        raise ValueError(f"attention {name!r} is registered already")
    ATTENTION[name] = AttentionKind(make, label or name, maps, refuse)


def register_position(name: str, make: Callable[[tuple[int, int], int, int], Any]) -> None:
    """Add a position embedding of your own to the values of ``--model.pos-embed``, alone or as ``NAME+rope-2d``.

    Args:
        name: what the setting calls it.
        make: ``make(grid, dim, prefix)`` gives a module. Called without arguments, that gives what is added to the
            tokens, (1, prefix + rows * columns, dim): the ``prefix`` tokens before the patches first, then the patches
            of ``grid`` (rows, columns) row by row.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in position_names() or "+" in name:
        raise ValueError(f"position embedding {name!r} is registered already, or has a + in its name")
    POSITIONS[name] = make


def register_source(name: str, load: Callable[..., Any]) -> None:
    """Add a data source of your own to the values of ``--data``.

    Args:
        name: what the setting calls it.
        load: ``load(split, *, data_dir, image_size, **more)`` gives the :class:`diffvit.data.images.Images` of
            ``"train"`` or ``"test"``, always the same in the same order; another size than ``image_size`` is resized.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in SOURCES:
        raise ValueError(f"data source {name!r} is registered already")
    SOURCES[name] = load


def register_augmentation(name: str, augment: Callable[[Any, Any], Any]) -> None:
    """Add an augmentation of your own to the values of ``--augment.policy``.

    Args:
        name: what the setting calls it.
        augment: ``augment(pixels, draws)`` gives the changed pixels, uint8 (batch, chans, height, width) as given.
            ``draws`` are 16 uniform random numbers in [0, 1) for each sample, float32 (batch, 16), which depend on the
            run's seed, the epoch and the sample alone: draw nothing else, and resuming repeats every bit.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in AUGMENTATIONS:
        raise ValueError(f"augmentation {name!r} is registered already")
    AUGMENTATIONS[name] = augment


def position_names() -> list[str]:
    """Every allowed value of ``pos_embed``: added, rotary, or both."""
    return [*POSITIONS, ROPE, *(f"{name}+{ROPE}" for name in POSITIONS if name != "none")]


def label_of(attention: object) -> str:
    """The name in tables of a model with this attention; the attention's own name where nothing registered it."""
    return ATTENTION[str(attention)].label if attention in ATTENTION else str(attention)


def load_plugins(files: Iterable[Path | str] = ()) -> None:
    """Import plugins, each once: these files, those that ``DIFFVIT_PLUGINS`` names, and those of installed packages.

    A package names its module as an entry point of the group ``diffvit.plugins``. Processes started from here load the
    same files. ConfigError where a file is missing, or a plugin raises an exception.
    """
    named = [str(Path(file).absolute()) for file in files]
    known = [file for file in os.environ.get(PLUGINS, "").split(os.pathsep) if file]
    for file in (every := list(dict.fromkeys([*known, *named]))):
        _import(file, partial(_import_file, Path(file)))
    if every:
        os.environ[PLUGINS] = os.pathsep.join(every)
    for each in entry_points(group=ENTRY_POINTS):
        _import(each.value, each.load)


def _import(plugin: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ConfigError:
        raise
    except Exception as error:
        why = f"cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ConfigError(f"plugin {plugin}", why, "Nothing was done; --debug shows where.") from error


def _import_file(path: Path) -> None:
    name = f"diffvit_plugin_{path.stem}"
    if name in sys.modules:
        if sys.modules[name].__file__ != str(path):
            raise ConfigError(f"plugin {path}", f"another of this name is loaded ({sys.modules[name].__file__})")
        return
    if not path.is_file():
        raise ConfigError(f"plugin {path}", "no such file", "Nothing was done.")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {path}", "is not a Python file (its name must end in .py)", "Nothing was done.")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
