import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from diffvit.data.augment import OPERATIONS, Policy, Space, randaugment_space, trivialaugment_space

SIZE = (16, 20)
FILL = torch.tensor([120, 60, 200], dtype=torch.uint8)


def smooth_noise(batch):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 4, 5, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").to(torch.uint8)


def pillow(pixels, name, space, strength):
    """One operation as the papers define it, with Pillow; ``strength`` is signed."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    fill = tuple(FILL.tolist())

    def transform(*matrix):
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=fill)

    shear, move = space.shear * strength, round(space.translate * strength)
    factor = 1 + space.enhance * strength
    changed = {
        "identity": lambda: picture,
        "shear-x": lambda: transform(1, shear, 0, 0, 1, 0),
        "shear-y": lambda: transform(1, 0, 0, shear, 1, 0),
        "translate-x": lambda: transform(1, 0, move, 0, 1, 0),
        "translate-y": lambda: transform(1, 0, 0, 0, 1, move),
        "rotate": lambda: picture.rotate(space.rotate * strength, fillcolor=fill),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "posterize": lambda: ImageOps.posterize(picture, 8 - round(space.posterize * abs(strength))),
        "solarize": lambda: ImageOps.solarize(picture, round(256 * (1 - abs(strength)))),
        "auto-contrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    }[name]()
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("space", [randaugment_space(9.0, SIZE[1]), trivialaugment_space()], ids=["rand", "trivial"])
def test_every_operation_at_every_strength_equals_pillow(name, space):
    policy = Policy(space, 1, SIZE, FILL)
    signed = [sign * level for sign in (-1, 1) for level in space.levels]
    pixels = smooth_noise(len(signed))
    operation = torch.full((len(signed),), OPERATIONS.index(name))
    result = policy.apply(pixels, operation, torch.arange(len(signed)))
    for picture, changed, strength in zip(pixels, result, signed, strict=True):
        expected = pillow(picture, name, space, strength).int()
        # Pillow's autocontrast cuts floats, which can end one below the whole number.
        assert int((changed.int() - expected).abs().max()) <= (name == "auto-contrast"), strength


def test_spaces_are_the_papers():
    rand = Space((1.0,), shear=0.3, translate=150.0, rotate=30.0, enhance=0.9, posterize=4)
    assert randaugment_space(10.0, 331) == rand
    trivial = trivialaugment_space()
    assert (len(trivial.levels), trivial.levels[0], trivial.levels[-1]) == (31, 0.0, 1.0)
    assert trivial == Space(trivial.levels, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)


def test_magnitude_zero_leaves_only_the_operations_without_strength():
    pixels = smooth_noise(14)
    policy = Policy(randaugment_space(0.0, SIZE[1]), 1, SIZE, FILL)
    result = policy.apply(pixels, torch.arange(14), torch.zeros(14, dtype=torch.int64))
    changed = {name for name, old, new in zip(OPERATIONS, pixels, result, strict=True) if not torch.equal(old, new)}
    assert changed == {"auto-contrast", "equalize"}


@pytest.mark.parametrize("space", [trivialaugment_space(), randaugment_space(9.0, SIZE[1])])
def test_doing_every_operation_to_every_image_gives_the_drawn_one(space):
    pixels, indices = smooth_noise(200), torch.arange(200)
    some, every = (Policy(space, 2, SIZE, FILL, every=choice)(pixels, 5, 1, indices) for choice in (False, True))
    assert torch.equal(some, every)


def test_draws_reach_all_operations_both_signs_and_all_strengths_alike():
    """Recover what was drawn by watching the calls, 14 operations x 62 strengths, 200,000 images of one pixel."""
    seen = []

    class Watched(Policy):
        def apply(self, pixels, operation, strength):
            seen.append((operation, strength))
            return pixels

    n = 200_000
    Watched(trivialaugment_space(), 2, (1, 1), FILL)(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), 0, 1, torch.arange(n))
    assert len(seen) == 2
    for operation, strength in seen:
        counts = torch.bincount(operation * 62 + strength, minlength=14 * 62).double()
        expected = n / len(counts)
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert len(counts) == 14 * 62
        assert abs(chi2 - 867) < 5 * (2 * 867) ** 0.5
    assert not torch.equal(seen[0][0], seen[1][0])
