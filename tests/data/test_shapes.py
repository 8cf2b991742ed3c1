"""Shapes: one image per (seed, split, index), with a true mask, and nothing but the outline tells the class."""

import numpy as np
import pytest
import torch

from diffvit.data import sources
from diffvit.data.shapes import CLASSES, HARD, SHAPES, Look, generate
from diffvit.errors import ConfigError


def test_what_comes_back():
    images = generate("train", 25)
    assert images.pixels.shape == (25, 3, 32, 32)
    assert images.pixels.dtype == torch.uint8
    assert images.masks.shape == (25, 32, 32)
    assert images.labels.tolist() == [index % 10 for index in range(25)]
    assert images.classes == list(SHAPES) == CLASSES
    assert len(set(CLASSES)) == 10
    assert images.name == "shapes (clutter 0.3, noise 0.1)"


def test_an_image_depends_on_seed_split_and_index_alone():
    few, many = generate("train", 7), generate("train", 300)  # 300 crosses the generator's chunks
    assert torch.equal(few.pixels, many.pixels[:7])
    assert torch.equal(few.masks, many.masks[:7])
    assert generate("train", 300).fingerprint == many.fingerprint
    others = [generate("test", 7), generate("train", 7, seed=1), generate("train", 7, seed=-1)]
    for other in others:
        assert all(not torch.equal(a, b) for a, b in zip(other.pixels, few.pixels, strict=True))
    assert len({images.fingerprint for images in (few, many, *others)}) == 5


def test_the_dials_change_the_image_and_not_the_shape():
    plain = generate("train", 20, clutter=0.0, noise=0.0)
    for clutter, noise in ((0.5, 0.0), (0.0, 0.2), (1.0, 1.0)):
        other = generate("train", 20, clutter=clutter, noise=noise)
        assert torch.equal(other.masks, plain.masks)
        assert not torch.equal(other.pixels, plain.pixels)
        assert other.name == f"shapes (clutter {clutter:g}, noise {noise:g})"


def test_without_noise_the_clutter_leaves_the_object_alone():
    plain, cluttered = (generate("train", 60, clutter=clutter, noise=0.0) for clutter in (0.0, 0.8))
    inside = torch.nn.functional.max_pool2d((~plain.masks).float()[:, None], 3, 1, 1)[:, 0] == 0
    inside = inside[:, None].expand(-1, 3, -1, -1)
    assert inside.sum() > 1000
    assert torch.equal(plain.pixels[inside], cluttered.pixels[inside])


@pytest.mark.parametrize("clutter", [0.0, 0.3, 0.8])
def test_the_clutter_dial_is_the_covered_share_of_the_background(clutter):
    plain, cluttered = (generate("train", 200, clutter=value, noise=0.0) for value in (0.0, clutter))
    background = torch.nn.functional.max_pool2d(plain.masks.float()[:, None], 3, 1, 1)[:, 0] == 0
    changed = (plain.pixels.int() - cluttered.pixels.int()).abs().amax(1) > 6
    assert abs(changed[background].float().mean().item() - clutter) < 0.06


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_the_noise_dial_is_a_standard_deviation(noise):
    plain, noisy = (generate("train", 100, clutter=0.0, noise=value) for value in (0.0, noise))
    off_the_ends = (plain.pixels > 90) & (plain.pixels < 165)
    difference = (noisy.pixels.float() - plain.pixels.float())[off_the_ends] / 255
    assert abs(difference.mean().item()) < 0.002
    assert abs(difference.std().item() / noise - 1) < 0.03
    within = (difference.abs() < noise + 0.5 / 255).float().mean().item()  # pixels are whole steps of 1 / 255
    assert abs(within - 0.69) < 0.03  # a normal distribution has 0.683 within one standard deviation


@pytest.mark.parametrize("size", [16, 33, 64])
def test_the_mask_is_the_object_whatever_the_size(size):
    images = generate("train", 60, size=size, clutter=0.0, noise=0.0)
    assert images.pixels.shape[-1] == size
    share = images.masks.float().mean((1, 2))
    assert share.min() > 0.05
    assert share.max() < 0.7
    for pixels, mask in zip(images.pixels.float().sum(1), images.masks, strict=True):
        assert pixels[mask].min() > pixels[~mask].max() - 150  # the object is lighter than its background
        assert pixels[mask].mean() > pixels[~mask].mean() + 60


def test_colours_do_not_tell_the_class():
    images = generate("train", 1000, clutter=0.0, noise=0.0)
    masks = images.masks[:, None].float()
    paper = images.pixels[:, :, 0, 0].float()
    ink = (images.pixels * masks).sum((2, 3)) / masks.sum((2, 3))
    for value in (*paper.T, *ink.T):
        means = torch.stack([value[images.labels == label].mean() for label in range(10)])
        assert (means - value.mean()).abs().max() < 0.4 * value.std()


def test_the_object_is_anywhere_in_the_image():
    images = generate("train", 1000, size=32)
    circles = images.masks[images.labels == 0].float()
    centre = (circles.sum(1) * torch.arange(32)).sum(1) / circles.sum((1, 2))
    assert centre.min() < 13
    assert centre.max() > 18
    assert abs(centre.mean().item() - 15.5) < 1


def test_every_outline_is_whole_inside_the_unit_circle_and_unlike_the_others():
    line = np.linspace(-1.2, 1.2, 121, dtype=np.float32)
    x, y = np.broadcast_arrays(line[None, None, :], line[None, :, None])
    drawn = {name: (outline(x, y) < 0)[0] for name, outline in SHAPES.items()}
    outside = (x * x + y * y)[0] > 1.03
    for name, inside in drawn.items():
        assert not inside[outside].any(), name
        assert 0.1 < inside.mean() < 0.6, name
    names = list(drawn)
    for first in range(10):
        for second in range(first):
            a, b = drawn[names[first]], drawn[names[second]]
            assert (a & b).sum() / (a | b).sum() < 0.9, (names[first], names[second])


@pytest.mark.parametrize(
    "dials", [{"clutter": 1.1}, {"clutter": -0.1}, {"noise": 2.0}, {"noise": float("nan")}, {"size": 8}, {"count": 0}]
)
def test_dials_out_of_range(dials):
    with pytest.raises(ConfigError, match="out of range"):
        generate("train", **{"count": 10, **dials})


def test_chosen_images_are_those_of_the_whole_set():
    whole, some = generate("test", 60, seed=3), torch.tensor([59, 0, 7, 7])
    found = generate("test", some, seed=3)
    assert torch.equal(found.pixels, whole.pixels[some])
    assert torch.equal(found.labels, whole.labels[some])
    assert torch.equal(found.masks, whole.masks[some])
    with pytest.raises(ConfigError, match="first index -1"):
        generate("test", torch.tensor([3, -1]))


def test_the_hard_set_has_its_own_look():
    images = generate("test", 500, look=HARD)
    assert images.name == "shapes-hard (clutter 0.3, noise 0.1)"
    loaded = sources.load("shapes-hard", "test", data_dir=None, image_size=32, shapes={"test": 500})
    assert loaded.fingerprint == images.fingerprint
    with pytest.raises(ConfigError, match=r"shapes\.decoys: is fixed for shapes-hard"):
        sources.load("shapes-hard", "test", data_dir=None, image_size=32, shapes={"decoys": 3})


def test_the_hard_set_is_the_same_in_every_version():
    images = generate("test", 6, size=64, look=HARD)
    areas = [416, 531, 329, 675, 440, 347]
    left = [119.72, 145.36, 109.57, 91.74, 126.58, 106.42]  # mean brightness of each half; processors may round apart
    right = [134.46, 124.38, 121.22, 85.65, 137.55, 109.34]
    assert images.masks is not None
    assert np.abs(images.masks.flatten(1).sum(1).numpy() - areas).max() <= 2
    halves = images.pixels.double().unflatten(3, (2, 32)).mean((1, 2, 4)).numpy()
    assert np.abs(halves - np.array([left, right]).T).max() < 0.05


def test_the_diameter_is_that_of_the_circle_around_the_shape():
    small, large = (generate("train", 400, size=64, look=Look(diameter=value)) for value in (0.45, 0.9))
    circles = torch.arange(0, 400, 10)  # 0.85 of it; area goes with its square
    area = [(images.masks[circles].flatten(1).sum(1) / 64**2).double() for images in (small, large)]
    assert torch.allclose(area[0] * 4, area[1], rtol=0.06)
    assert abs(area[1].max().item() - np.pi * (0.85 * 0.45) ** 2) < 0.02


def test_shapes_may_lie_partly_outside_and_then_the_middle_is_no_likelier():
    inside, beyond = (generate("train", 1000, look=Look(diameter=0.5, beyond=part)).masks for part in (0.0, 1.0))
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (inside & border).flatten(1).any(1).float().mean() < 0.2
    assert (beyond & border).flatten(1).any(1).float().mean() > 0.4
    middle, corner = (beyond.float().mean(0)[part].mean() for part in ((slice(12, 20),) * 2, (slice(0, 8),) * 2))
    assert 0.4 < corner / middle < 1.1


def test_with_contrast_shapes_and_clutter_have_the_same_colours():
    """Lighter and darker than the background equally often; without it every shape is lighter."""
    plain, either = (generate("train", 600, clutter=0.0, noise=0.0, look=Look(contrast=value)) for value in (0.0, 0.4))
    for images, share in ((plain, 1.0), (either, 0.5)):
        luma = images.pixels.float().mean(1)
        inside = torch.stack([pixels[mask].mean() for pixels, mask in zip(luma, images.masks, strict=True)])
        outside = torch.stack([pixels[~mask].mean() for pixels, mask in zip(luma, images.masks, strict=True)])
        assert abs((inside > outside).float().mean().item() - share) < 0.08
        assert ((inside - outside).abs() <= (255 if share == 1 else 0.4 * 255 + 30)).all()


@pytest.mark.parametrize("dial", ["decoys", "distractors", "occluders"])
def test_more_of_what_distracts_changes_the_image_and_not_the_shape(dial):
    none, some = (generate("train", 60, clutter=0.0, noise=0.0, look=Look(contrast=0.4, **{dial: n})) for n in (0, 4))
    assert torch.equal(none.masks, some.masks)
    changed = (none.pixels != some.pixels).any(1)
    background = torch.nn.functional.max_pool2d(none.masks.float()[:, None], 3, 1, 1)[:, 0] == 0
    inside = torch.nn.functional.max_pool2d((~none.masks).float()[:, None], 3, 1, 1)[:, 0] == 0
    assert changed[background].float().mean() > 0.05
    covered = changed[inside].float().mean()  # only what is drawn after the shape covers it
    assert covered > 0.03 if dial == "occluders" else covered == 0
