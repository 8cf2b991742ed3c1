"""Shifts against slow loops in float64 that were written from their words, and what each must keep."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffvit.data.shifts import CORRUPTIONS, KINDS, WAYS, Shift, shifts

LUMA = (0.299, 0.587, 0.114)


def only(kind: str) -> tuple[Shift, ...]:
    return shifts([kind])


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, a dark square with hard borders, and a little grain."""
    down, right = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([120 + 90 * np.sin(5 * down), 200 * right + 20, 110 + 80 * np.cos(4 * (down + right))])
    smooth[:, height // 4 : height // 2, width // 4 : width // 2] *= 0.2
    grain = np.random.default_rng(seed).normal(0, 6, smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def luma(pixels: np.ndarray, y: int, x: int) -> float:
    return sum(weight * float(pixels[channel, y, x]) for channel, weight in enumerate(LUMA))


def naive_smooth(plane: list[list[float]], spread: float) -> list[list[float]]:
    """One Gaussian in two dimensions at once; beyond the border stands the border's value."""
    height, width, radius = len(plane), len(plane[0]), math.ceil(3 * spread)
    steps = range(-radius, radius + 1)
    weights = {(a, b): math.exp(-(a * a + b * b) / (2 * spread**2)) for a in steps for b in steps}
    total = sum(weights.values())

    def at(y: int, x: int) -> float:
        return plane[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    return [
        [sum(weight * at(y + a, x + b) for (a, b), weight in weights.items()) / total for x in range(width)]
        for y in range(height)
    ]


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for ties and float32: off by one at most, and rarely."""
    off = np.abs(found.astype(int) - np.rint(wanted).clip(0, 255))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize(("severity", "share"), [(1, 0.2), (3, 0.6), (5, 1.0)])
def test_grey(severity: int, share: float) -> None:
    pixels = picture(7, 9)
    wanted = np.empty(pixels.shape)
    for channel, y, x in np.ndindex(pixels.shape):
        wanted[channel, y, x] = (1 - share) * float(pixels[channel, y, x]) + share * luma(pixels, y, x)
    close(only("grey")[severity - 1].apply(pixels, 0), wanted)


@pytest.mark.parametrize(("severity", "percent"), [(1, 1.5), (5, 7.5)])
def test_blur(severity: int, percent: float) -> None:
    pixels = picture(24, 31)
    wanted = np.stack([naive_smooth(plane.astype(float).tolist(), percent / 100 * 24) for plane in pixels])
    close(only("blur")[severity - 1].apply(pixels, 0), wanted)


@pytest.mark.parametrize(("side", "severity", "share"), [(16, 5, 1.0), (16, 2, 0.4), (40, 5, 1.0)])
def test_edges(side: int, severity: int, share: float) -> None:
    pixels = picture(side, side + 3)
    grey = [[luma(pixels, y, x) for x in range(side + 3)] for y in range(side)]
    grey = naive_smooth(grey, side / 128)
    wanted = np.empty(pixels.shape)
    for channel, y, x in np.ndindex(pixels.shape):
        down = (grey[min(y + 1, side - 1)][x] - grey[max(y - 1, 0)][x]) / 2
        right = (grey[y][min(x + 1, side + 2)] - grey[y][max(x - 1, 0)]) / 2
        paper = 255 - min(2 * side / 32 * math.sqrt(down**2 + right**2), 255)
        wanted[channel, y, x] = (1 - share) * float(pixels[channel, y, x]) + share * paper
    close(only("edges")[severity - 1].apply(pixels, 0), wanted)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.75), (3, 0.4), (5, 0.15)])
def test_contrast(severity: int, share: float) -> None:
    pixels = picture(7, 9)
    wanted = np.empty(pixels.shape)
    for channel, plane in enumerate(pixels.tolist()):
        mean = math.fsum(map(math.fsum, plane)) / 63
        wanted[channel] = [[mean + share * (value - mean) for value in row] for row in plane]
    close(only("contrast")[severity - 1].apply(pixels, 0), wanted)


def test_inversion_and_all_their_words() -> None:
    assert [(shift.name, shift.severity) for shift in shifts()] == [(kind, s) for kind in KINDS for s in range(1, 6)]
    assert len({shift.words for shift in shifts(WAYS)}) == 35
    assert {*KINDS, *CORRUPTIONS} == {*WAYS}
    assert shifts(["blur"], [5])[0].words == "Gaussian blur, deviation 7.5% of the shorter side"
    pixels = np.arange(3 * 16 * 16).reshape(3, 16, 16).astype(np.uint8)
    for shift, threshold in zip(only("inversion"), (204, 153, 102, 51, 0), strict=True):
        wanted = [255 - value if value >= threshold else value for value in pixels.flatten().tolist()]
        assert shift.apply(pixels, 0).flatten().tolist() == wanted
    assert np.array_equal(only("inversion")[4].apply(pixels, 0), 255 - pixels)


def test_jpeg_is_pillows_at_the_quality_in_its_words() -> None:
    pixels = picture(40, 50)
    for shift in only("jpeg"):
        file = io.BytesIO()
        quality = int(shift.words.removeprefix("JPEG quality "))
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            assert np.array_equal(shift.apply(pixels, 0), np.asarray(image).transpose(2, 0, 1))


def test_noise_has_its_deviation_and_depends_on_the_number() -> None:
    grey = np.full((3, 200, 200), 128, dtype=np.uint8)
    mild = only("noise")[0]
    found = mild.apply(grey, 7).astype(float) - 128
    assert found.std() == pytest.approx(10, rel=0.02)
    assert abs(found.mean()) < 0.15
    channels = np.corrcoef(found.reshape(3, -1))
    assert np.abs(channels - np.eye(3)).max() < 0.03
    again, other = mild.apply(grey, 7).astype(float) - 128, mild.apply(grey, 8).astype(float) - 128
    assert np.array_equal(found, again)
    assert abs(np.corrcoef(found.flatten(), other.flatten())[0, 1]) < 0.02
    dark = only("noise")[4].apply(np.zeros((3, 64, 64), dtype=np.uint8), 0)
    assert (dark == 0).mean() == pytest.approx(0.5, abs=0.03)  # clipped, not wrapped round


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("size", [(32, 32), (90, 120)])
def test_a_higher_severity_is_further_from_the_picture(kind: str, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    far = [float(np.square(shift.apply(pixels, 3).astype(float) - pixels).mean()) for shift in only(kind)]
    assert far == sorted(far)
    assert len(set(far)) == 5
    assert far[0] > 0


@pytest.mark.parametrize("kind", ["edges", "blur"])
def test_lengths_follow_the_shorter_side(kind: str) -> None:
    down, right = np.mgrid[0:256, 0:256] / 256
    smooth = 127.5 + 100 * np.sin(6 * down) * np.cos(7 * right)
    large = np.stack([smooth, smooth[::-1], smooth.T]).astype(np.uint8)
    small = large.reshape(3, 64, 4, 64, 4).mean((2, 4)).astype(np.uint8)
    shift = only(kind)[4]
    reduced = shift.apply(large, 0).reshape(3, 64, 4, 64, 4).mean((2, 4))
    assert np.abs(reduced - shift.apply(small, 0))[:, 4:-4, 4:-4].mean() < 2


@given(height=st.integers(1, 40), width=st.integers(1, 40), severity=st.integers(1, 5), number=st.integers())
@settings(max_examples=40, deadline=None)
def test_any_size_keeps_its_shape_and_its_source(height: int, width: int, severity: int, number: int) -> None:
    pixels = picture(height, width)
    before = pixels.copy()
    for kind in WAYS:
        shift = only(kind)[severity - 1]
        found = shift.apply(pixels, number)
        assert (found.shape, found.dtype) == (pixels.shape, np.dtype(np.uint8))
        assert np.array_equal(found, shift.apply(pixels, number))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(300, 600, (256, 512)), (400, 257, (398, 256)), (256, 3000, (256, 3000)), (1, 70_000, (1, 70_000))],
)
def test_large_pictures_are_reduced_and_none_is_enlarged(height: int, width: int, wanted: tuple[int, int]) -> None:
    pixels = picture(height, width)
    image = Image.fromarray(pixels.transpose(1, 2, 0)).resize(wanted[::-1], Image.Resampling.BICUBIC)
    reduced = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(only("inversion")[4].apply(pixels, 0), 255 - reduced)
    for kind in WAYS:
        assert only(kind)[0].apply(pixels, 0).shape == (3, *wanted)
