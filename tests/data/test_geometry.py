from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffvit.data.image_ops import affine, box_mask, crop_and_flip, fixed_point

FILL = torch.tensor([10, 20, 30], dtype=torch.uint8)
sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def noise(batch: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_crop_and_flip_equal_padding_cutting_and_mirroring(size: tuple[int, int], data: st.DataObject):
    pad = data.draw(st.integers(0, min(size) - 1))
    batch = 5
    shift = data.draw(st.lists(st.tuples(*[st.integers(-pad, pad)] * 2), min_size=batch, max_size=batch))
    mirror = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    pixels = noise(batch, size)
    padded = F.pad(pixels.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    expected = [
        picture[:, pad + dy : pad + dy + size[0], pad + dx : pad + dx + size[1]]
        for picture, (dy, dx) in zip(padded, shift, strict=True)
    ]
    expected = [picture.flip(-1) if flip else picture for picture, flip in zip(expected, mirror, strict=True)]
    assert torch.equal(crop_and_flip(pixels, torch.tensor(shift), torch.tensor(mirror)), torch.stack(expected))


def turned(angle: float, size: tuple[int, int]) -> tuple[float, ...]:
    cos, sin, x, y = math.cos(angle), math.sin(angle), size[1] / 2, size[0] / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    # Where both slants are zero Pillow takes another path, with float positions.
    matrix=st.tuples(*[st.floats(-2, 2), st.floats(0.01, 2), st.floats(-30, 30)] * 2),
)
def test_affine_equals_pillow(size: tuple[int, int], matrix: tuple[float, ...]):
    pixels = noise(1, size)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=tuple(FILL.tolist())
    )
    expected = torch.from_numpy(np.array(moved)).permute(2, 0, 1)
    result = affine(pixels, torch.tensor([fixed_point(matrix)]), FILL)[0]
    assert torch.equal(result, expected)


def test_each_image_has_its_own_map():
    pixels = noise(4, (9, 7))
    maps = torch.tensor([fixed_point(turned(angle, (9, 7))) for angle in (-1.0, 0.0, 0.5, 3.0)])
    whole = affine(pixels, maps, FILL)
    assert torch.equal(whole[1], pixels[1])
    for i in range(4):
        assert torch.equal(affine(pixels[i : i + 1], maps[i : i + 1], FILL)[0], whole[i])


def test_a_full_turn_of_quarters_gives_the_image_back():
    pixels = noise(1, (8, 8))
    quarter = torch.tensor([fixed_point(turned(math.pi / 2, (8, 8)))])
    once = affine(pixels, quarter, FILL)
    assert torch.equal(once, pixels.rot90(1, (2, 3)))
    assert torch.equal(affine(affine(affine(once, quarter, FILL), quarter, FILL), quarter, FILL), pixels)


@pytest.mark.parametrize("matrix", [(1.0, 0.0, 100.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, -100.0)])
def test_what_comes_from_outside_is_filled(matrix: tuple[float, ...]):
    result = affine(noise(1, (5, 6)), torch.tensor([fixed_point(matrix)]), FILL)
    assert torch.equal(result, FILL.view(1, 3, 1, 1).expand(1, 3, 5, 6))


def test_box_mask_cuts_what_lies_outside():
    top, left, bottom, right = (torch.tensor(v) for v in ([1, -2, 0], [2, -3, 5], [3, 2, 9], [4, 1, 5]))
    mask = box_mask(top, left, bottom, right, (4, 5))
    expected = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    expected[0, 0, 1:3, 2:4] = True
    expected[1, 0, :2, :1] = True
    assert torch.equal(mask, expected)
