"""How much a study is run: seconds to see that it works, a few hours on a CPU, or the whole on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TierName = Literal["smoke", "short", "full"]


@dataclass(frozen=True)
class Tier:
    """A base recipe and how often it is run.

    Args:
        words: what it is for.
        recipe: of every arm, before the study's and the arm's own settings.
        seeds: of a study, at most; an exploratory one has two.
    """

    words: str
    recipe: Mapping[str, Any]
    seeds: int


_OPTIMIZER = {"name": "muon", "lr": 0.002, "muon_lr": 0.005, "weight_decay": 0.05, "split_qkv": True}
_MODEL = {"mlp_ratio": 2.0, "pool": "cls", "pos_embed": "sincos-2d"}
_SHORT: Mapping[str, Any] = {
    "data": "cifar10",
    "validation_size": 5_000,  # the best arm is chosen on these
    "epochs": 8,
    "batch_size": 128,
    "label_smoothing": 0.1,
    "whiten": True,
    "model": {**_MODEL, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4},
    "augment": {"flip": True, "crop": 4},
    "optimizer": _OPTIMIZER,
    "schedule": {"name": "linear", "warmup": 0.05},
}
TIERS: dict[str, Tier] = {
    "smoke": Tier(
        "seconds, on the built-in shapes: shows that everything works, and nothing else",
        {
            "data": "shapes",
            "validation_size": 100,
            "epochs": 2,
            "batch_size": 64,
            "model": {**_MODEL, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4},
            "optimizer": _OPTIMIZER,
            "shapes": {"train": 640, "test": 200},
        },
        seeds=1,
    ),
    "short": Tier("up to hours of two CPU cores a study: 8 epochs and more of CIFAR-10, patch 8", _SHORT, seeds=5),
    "full": Tier(
        "50 epochs of CIFAR-10, patch 4, for a GPU",
        {
            **_SHORT,
            "epochs": 50,
            "batch_size": 500,  # divides the images: a smaller last batch would be compiled too
            "compile": True,
            "checkpoint_every": 10,
            "model": {**_MODEL, "patch_size": 4, "embed_dim": 256, "depth": 8, "num_heads": 8},
            "augment": {"flip": True, "crop": 4, "policy": "trivialaugment", "cutmix": 1.0, "mix_probability": 0.5},
            "schedule": {"name": "linear", "warmup": 0.04},
        },
        seeds=5,
    ),
}
