"""Maps without a model, against other libraries' filters; and that on shapes-hard none of them finds the objects."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffvit.attention.baselines import of_images, table
from diffvit.data.images import Images
from diffvit.data.shapes import HARD, generate

EASY = generate("test", 40, clutter=0.6)
LUMA = np.tensordot(EASY.pixels.numpy().astype(np.float64) / 255, [0.299, 0.587, 0.114], axes=([1], [0]))


def by_patch(values):
    return values.reshape(-1, 8, 4, 8, 4).mean((2, 4))


def spectral_residual(luma):
    """As the paper has it, in float64, one image at a time."""
    spectrum = np.fft.fft2(luma)
    amplitude = np.log(np.abs(spectrum))
    residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return ndimage.gaussian_filter(saliency, 1.5, radius=4, mode="mirror")


COLOURS = EASY.pixels.numpy().astype(np.float64) / 255
ORACLES = {
    "brightness": lambda: by_patch(LUMA),
    "darkness": lambda: 1 - by_patch(LUMA),
    "saturation": lambda: by_patch(COLOURS.max(1) - COLOURS.min(1)),
    "distance to the median": lambda: by_patch(
        np.linalg.norm(COLOURS - np.median(COLOURS, axis=(2, 3), keepdims=True), axis=1)
    ),
    "Sobel": lambda: by_patch(
        np.stack([np.hypot(*(ndimage.sobel(each, axis=axis, mode="mirror") for axis in (0, 1))) for each in LUMA])
    ),
    "local contrast": lambda: COLOURS.reshape(-1, 3, 8, 4, 8, 4).std((3, 5)).mean(1),
    "spectral residual": lambda: by_patch(np.stack([spectral_residual(each) for each in LUMA])),
}


@pytest.mark.parametrize("name", ORACLES)
def test_each_is_what_another_library_computes(name):
    found = of_images(EASY, (8, 8))
    assert set(found) == set(ORACLES)
    np.testing.assert_allclose(found[name].numpy(), ORACLES[name](), rtol=2e-3, atol=2e-5)


def test_grey_images_have_no_saturation():
    grey = Images(EASY.pixels[:, :1], EASY.labels, EASY.classes, "grey", "0")
    found = of_images(grey, (8, 8))
    assert torch.equal(found["saturation"], torch.zeros(40, 8, 8))
    np.testing.assert_allclose(found["brightness"], by_patch(grey.pixels[:, 0].numpy() / 255), rtol=1e-5)


@pytest.mark.parametrize(("size", "clutter"), [(32, 0.1), (32, 0.3), (32, 0.6), (64, 0.1)])
def test_on_hard_shapes_no_map_without_a_model_finds_the_object(size, clutter):
    test, train = (generate(split, 2000, size=size, clutter=clutter, look=HARD) for split in ("test", "train"))
    found = {name: row["pointing"] for name, row in table(test, train, patch=size // 8).items()}
    assert len(found) == 11  # ten, and the uniform map
    assert all(value <= 0.30 for value in found.values()), found
    assert 0.08 < found["uniform"] < 0.12  # patches that the object covers


def test_on_easy_shapes_brightness_alone_finds_it():
    found = table(generate("test", 300), generate("train", 300))
    assert found["brightness"]["pointing"] > 0.99
    assert found["darkness"]["pointing"] < 0.01
    assert next(iter(found)) == "brightness"  # the best comes first
