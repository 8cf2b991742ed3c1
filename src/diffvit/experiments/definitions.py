"""The studies: what each asks, its arms, and how they differ from the base recipe of a tier. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
BOTH = ("softmax", "differential")
SOFTMAX, DIFFERENTIAL, WIDE = "softmax", "differential", "softmax, half the heads"


@dataclass(frozen=True)
class Study:
    """An experiment: arms that differ in what it asks about, and in nothing else.

    Args:
        name: of the study and of its folders.
        question: what it asks.
        arms: settings of each, by name; they are laid over the tier's recipe.
        attentions: every arm is run with each of them; empty where the arms say it themselves.
        exploratory: two seeds, and no winner is named.
        seeds: how many, where more than the usual three.
        base: laid over the tier's recipe before the arms, for ``short`` and for ``full``.
        fit: whether the report says how close arms fit their own images, and what more epochs would change.
        search: whether the arms are not given but looked for (see :mod:`diffvit.experiments.search`).
    """

    name: str
    question: str
    arms: Mapping[str, Settings]
    attentions: tuple[str, ...] = BOTH
    exploratory: bool = True
    seeds: int = 3
    base: Mapping[str, Settings] = field(default_factory=dict)
    fit: bool = False
    search: bool = False


def _model(**settings: Any) -> Settings:
    return {"model": settings}


_NONE: Settings = {
    **{"flip": False, "crop": 0, "color_jitter": 0.0, "policy": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0},
    "mix_probability": 0.5,
}
_PLAIN: Settings = {**_NONE, "flip": True, "crop": 4}
# Strengths are DeiT's (arXiv 2012.12877, table 9) or the papers' own.
_ADDED: Mapping[str, Settings] = {
    "colour jitter": {"color_jitter": 0.3},
    "RandAugment": {"policy": "randaugment", "policy_ops": 2, "policy_magnitude": 9.0},
    "erasing": {"erasing": 0.25},
    "mixup": {"mixup": 0.8},
    "CutMix": {"cutmix": 1.0},
}
_ALL: Settings = {key: value for added in _ADDED.values() for key, value in added.items()}

PATCH_SIZE = Study(
    "patch-size",
    "Which patch size: 2, 4 or 8 pixels?",
    {f"patch {size}": _model(patch_size=size) for size in (2, 4, 8)},
    exploratory=False,
)
POSITION = Study(
    "position",
    "Which position embedding: none, learned or sinusoidal, in one dimension or two?",
    {name: _model(pos_embed=name) for name in ("none", "learned-1d", "learned-2d", "sincos-1d", "sincos-2d")},
    exploratory=False,
)
AUGMENTATION = Study(
    "augmentation",
    "Which augmentation?",
    {
        "none": {"augment": _NONE},
        "flip + crop": {"augment": _PLAIN},
        **{f"+ {name}": {"augment": {**_PLAIN, **added}} for name, added in _ADDED.items()},
        "all": {"augment": {**_PLAIN, **_ALL}},
    },
    exploratory=False,
    base={"short": {"epochs": 12}},
    fit=True,
)
VIT_VS_DIFFVIT = Study(
    "vit-vs-diffvit",
    "Does differential attention help, at equal parameters and FLOPs?",
    {
        SOFTMAX: _model(attention="softmax"),
        DIFFERENTIAL: _model(attention="differential"),
        # As many heads as the differential arm has, with values as wide (github.com/microsoft/unilm, issue 1716).
        WIDE: _model(attention="softmax", num_heads=2),
    },
    attentions=(),
    exploratory=False,
    seeds=5,
    base={"full": _model(num_heads=4)},
)
WIDTH = Study(
    "width",
    "How wide a model?",
    {f"width {width}": _model(embed_dim=width, num_heads=width // 32) for width in (64, 128, 192)},
)
DEPTH = Study("depth", "How many blocks?", {f"depth {depth}": _model(depth=depth) for depth in (2, 4, 6)})
MLP_RATIO = Study(
    "mlp-ratio", "How wide an MLP?", {f"ratio {ratio}": _model(mlp_ratio=float(ratio)) for ratio in (1, 2, 4)}
)
HEADS = Study(
    "heads", "How many heads, at equal width?", {f"{heads} heads": _model(num_heads=heads) for heads in (2, 4, 8)}
)
POOLING = Study(
    "pooling", "Does the head read the [CLS] token, or the mean?", {pool: _model(pool=pool) for pool in ("cls", "mean")}
)
HEAD = Study("head", "A linear head, or an MLP?", {head: _model(head=head) for head in ("linear", "mlp")})
OPTIMIZER = Study(
    "optimizer",
    "AdamW or Muon?",
    {
        "AdamW": {"optimizer": {"name": "adamw", "lr": 1e-3}},
        "AdamW, rate 0.003": {"optimizer": {"name": "adamw", "lr": 3e-3}},
        "AdamW, rate 0.01": {"optimizer": {"name": "adamw", "lr": 1e-2}},
        "Muon": {"optimizer": {"name": "muon", "lr": 2e-3, "muon_lr": 5e-3, "split_qkv": True}},
    },
)
INITIALISATION = Study(
    "initialisation",
    "How do weights start?",
    {
        "truncated normal": {"whiten": False, **_model(init="trunc-normal")},
        "whitened patches": {"whiten": True, **_model(init="trunc-normal")},
        "mimetic": {"whiten": False, **_model(init="mimetic")},
    },
)
SEARCH = Study("search", "What do the recipe's main dials want?", {}, search=True)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        *(VIT_VS_DIFFVIT, PATCH_SIZE, POSITION, AUGMENTATION),  # in order of worth
        *(WIDTH, DEPTH, MLP_RATIO, HEADS, POOLING, HEAD, OPTIMIZER, INITIALISATION, SEARCH),
    )
}
