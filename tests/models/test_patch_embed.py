"""Patches: the matrix product is the convolution whose weights it holds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.models.patch_embed import PatchEmbed


@settings(deadline=None, max_examples=20)
@given(
    side=st.sampled_from([1, 2, 4, 8]),
    grid=st.integers(1, 4),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_equals_the_convolution(side: int, grid: int, channels: int, batch: int, channels_last: bool) -> None:
    layer = PatchEmbed(side * grid, side, channels, 5).double()
    images = torch.randn(batch, channels, side * grid, side * grid, dtype=torch.float64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    expected = layer.proj(images).flatten(2).mT
    assert layer(images).shape == (batch, grid * grid, 5)
    assert torch.allclose(layer(images), expected, atol=1e-12)
