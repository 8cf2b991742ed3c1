"""Configs of the smallest runs, for tests that need one."""

from __future__ import annotations

from typing import Any

from diffvit.config import Config, merge, parse

SMALL: dict[str, Any] = {
    **{"data": "shapes", "shapes": {"train": 40, "test": 20, "size": 16}, "validation_size": 0},
    **{"epochs": 1, "batch_size": 16, "threads": 1, "precision": "fp32", "device": "cpu"},
    "model": {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


def small(*layers: dict[str, Any], **changes: Any) -> Config:
    """One epoch of forty images by a model of one block, with changes laid over."""
    return parse(merge(SMALL, *layers, changes))
