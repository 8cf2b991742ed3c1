"""Model sizes by name: a small table with the expected parameter counts, asserted in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of :class:`diffvit.VisionTransformer` and the parameter counts they lead to.

    Args:
        settings: constructor arguments that differ from the defaults.
        softmax: parameters with softmax attention (32 pixels, patch 4, [CLS], learned-1d, 10 classes).
        differential: the same with differential attention.
    """

    settings: Mapping[str, int | float | str]
    softmax: int
    differential: int


PRESETS: dict[str, Preset] = {
    "vit_pico": Preset({"embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}, 546_186, 546_954),
    "vit_nano": Preset({"embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0}, 811_146, 812_298),
    "vit_tiny": Preset({"embed_dim": 192, "depth": 9, "num_heads": 6, "mlp_ratio": 2.0}, 2_697_610, 2_699_338),
    "vit_mini": Preset({"embed_dim": 256, "depth": 8, "num_heads": 8, "mlp_ratio": 2.0}, 4_249_354, 4_250_890),
    "vit_small": Preset({"embed_dim": 384, "depth": 7, "num_heads": 12, "mlp_ratio": 1.0}, 6_268_810, 6_270_154),
}
