"""Operations on images: equal to Pillow, to padding and cutting, or to the formula; each image on its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

from diffvit.data import image_ops
from diffvit.data.image_ops import affine, box_mask, crop_and_flip, fixed_point


def to_pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def from_pil(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def pictures(seed, size=(13, 17)):
    """Noise, a ramp, two values, one value, a narrow band, a skewed histogram, and channels that differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (3, *size), generator=generator)
    ramp = torch.arange(size[0] * size[1]).view(1, *size).expand(3, -1, -1) % 256
    value = int(torch.randint(0, 256, (), generator=generator))
    band = torch.randint(100, 110, (3, *size), generator=generator)
    skewed = (torch.rand(3, *size, generator=generator) ** 6 * 255).long()
    mixed = torch.stack([noise[0], band[1], torch.full(size, value)])
    kinds = [noise, ramp, torch.where(noise < 128, 7, 240), torch.full((3, *size), value), band, skewed, mixed]
    return torch.stack(kinds).to(torch.uint8)


ENHANCERS = {
    "brightness": (image_ops.brightness, ImageEnhance.Brightness),
    "contrast": (image_ops.contrast, ImageEnhance.Contrast),
    "saturation": (image_ops.saturation, ImageEnhance.Color),
    "sharpness": (image_ops.sharpness, ImageEnhance.Sharpness),
}
seeds = st.integers(0, 1000)
quick = settings(deadline=None, max_examples=15)


@pytest.mark.parametrize("name", list(ENHANCERS))
@quick
@given(seed=seeds, size=st.sampled_from([(13, 17), (1, 1), (2, 5), (3, 3)]), data=st.data())
def test_enhancers_equal_pillow(name, seed, size, data):
    ours, theirs = ENHANCERS[name]
    pixels = pictures(seed, size)
    factors = data.draw(st.lists(st.floats(0, 2, width=32), min_size=len(pixels), max_size=len(pixels)))
    expected = [from_pil(theirs(to_pil(p)).enhance(f)) for p, f in zip(pixels, factors, strict=True)]
    result = ours(pixels, torch.tensor(factors))
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))


def test_grey_of_every_corner_of_the_cube():
    corners = torch.cartesian_prod(*[torch.tensor([0, 1, 127, 128, 254, 255])] * 3).to(torch.uint8).T[None, :, :, None]
    expected = np.array(to_pil(corners[0]).convert("L"))
    assert torch.equal(image_ops.grey(corners)[0, 0], torch.from_numpy(expected))


@quick
@given(seed=seeds, size=st.tuples(st.integers(1, 40), st.integers(1, 40)), threshold=st.integers(0, 256))
def test_equalize_posterize_and_solarize_equal_pillow(seed, size, threshold):
    pixels, bits = pictures(seed, size), 1 + seed % 8

    def expected(change, *values):
        return torch.stack([from_pil(change(to_pil(p), *values)) for p in pixels])

    assert torch.equal(image_ops.equalize(pixels), expected(ImageOps.equalize))
    strength = torch.full((len(pixels),), bits, dtype=torch.uint8)
    assert torch.equal(image_ops.posterize(pixels, strength), expected(ImageOps.posterize, bits))
    strength = torch.full((len(pixels),), threshold)
    assert torch.equal(image_ops.solarize(pixels, strength), expected(ImageOps.solarize, threshold))


@quick
@given(seed=seeds)
def test_autocontrast_is_pillows_to_the_last_bit_of_its_floats(seed):
    pixels = pictures(seed)
    result = image_ops.autocontrast(pixels)
    expected = torch.stack([from_pil(ImageOps.autocontrast(to_pil(p))) for p in pixels])
    # Pillow works in floats, whose error can cut a whole number to the one below it.
    assert int((result.int() - expected.int()).abs().max()) <= 1
    for channel, before in zip(result.flatten(0, 1), pixels.flatten(0, 1), strict=True):
        values = sorted(set(before.flatten().tolist()))
        low, high = values[0], values[-1]
        exact = before if low == high else (before.long() - low) * 255 // (high - low)
        assert torch.equal(channel.long(), exact.long())


FILL = torch.tensor([10, 20, 30], dtype=torch.uint8)
sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def noise(batch, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_crop_and_flip_equal_padding_cutting_and_mirroring(size, data):
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


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    # Where both slants are zero Pillow takes another path, with float positions.
    matrix=st.tuples(*[st.floats(-2, 2), st.floats(0.01, 2), st.floats(-30, 30)] * 2),
)
def test_affine_equals_pillow(size, matrix):
    pixels = noise(1, size)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=tuple(FILL.tolist())
    )
    expected = torch.from_numpy(np.array(moved)).permute(2, 0, 1)
    result = affine(pixels, torch.tensor([fixed_point(matrix)]), FILL)[0]
    assert torch.equal(result, expected)


def test_box_mask_cuts_what_lies_outside():
    top, left, bottom, right = (torch.tensor(v) for v in ([1, -2, 0], [2, -3, 5], [3, 2, 9], [4, 1, 5]))
    mask = box_mask(top, left, bottom, right, (4, 5))
    expected = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    expected[0, 0, 1:3, 2:4] = True
    expected[1, 0, :2, :1] = True
    assert torch.equal(mask, expected)
