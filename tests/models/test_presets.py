"""The table of presets tells the truth."""

from __future__ import annotations

import pytest
import torch

from diffvit.models.presets import PRESETS
from diffvit.models.vit import create_model


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in create_model(name, attention=attention).parameters())
            for attention in ("softmax", "differential")
        ]
    assert counts == [PRESETS[name].softmax, PRESETS[name].differential]


def test_every_preset_works_with_both_attentions_on_an_image() -> None:
    for name in PRESETS:
        for attention in ("softmax", "differential"):
            model = create_model(name, attention=attention, depth=1)
            assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
