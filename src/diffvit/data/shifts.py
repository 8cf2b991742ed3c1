"""Pictures made harder in seven ways and five severities, to see what a model depends on.

A picture whose shorter side is over 256 pixels is first brought to 256. Lengths are shares of the shorter side after
that, so that a severity means the same for a small picture and a large one; JPEG's blocks of 8 pixels and the grain of
the noise, one pixel, stay what they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from diffvit.data.images import to_array, to_picture
from diffvit.errors import check_choice

KINDS = ("edges", "grey", "blur", "jpeg", "noise", "inversion")  # of a comparison with CLIP
CORRUPTIONS = ("noise", "blur", "jpeg", "contrast")  # of diffvit evaluate --robustness
SEVERITIES = (1, 2, 3, 4, 5)
LARGEST = 256  # pixels of the shorter side
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601
_PENCIL, _GRID = 1 / 128, 1 / 32  # of the shorter side: what is smoothed before lines are drawn; a line's step
_JPEG_SIDE = 65_488  # whole blocks, below the longest side that libjpeg writes
_DARKNESS = 2.0  # of a line, for each grey level of a step

_Pixels = UInt8[np.ndarray, "3 h w"]
_Real = Float32[np.ndarray, "c h w"]


@dataclass(frozen=True)
class Shift:
    """One way to change a picture, named as in :data:`WAYS`, in a severity from 1 (mild) to 5; see :func:`shifts`."""

    name: str
    severity: int
    words: str

    @property
    def title(self) -> str:
        """All that it does, in words; a part of the cache's key."""
        return f"{self.name} {self.severity}: {self.words}"

    def apply(self, pixels: UInt8[np.ndarray, "3 h w"], number: int) -> UInt8[np.ndarray, "3 h2 w2"]:
        """The picture (RGB, 0 to 255), changed; noise depends on its size and ``number``, which picture it is."""
        change, strengths, _ = _CHANGES[self.name]
        more = (number,) if self.name == "noise" else ()
        return change(_reduced(pixels), strengths[self.severity - 1], *more)


def shifts(kinds: Sequence[str] = KINDS, severities: Sequence[int] = SEVERITIES) -> tuple[Shift, ...]:
    """The shifts of these kinds, each in these severities, in the order given.

    Raises:
        ConfigError: no such kind.
    """
    found = []
    for kind in kinds:
        check_choice("shift", kind, WAYS)
        _, strengths, words = _CHANGES[kind]
        found += [Shift(kind, severity, words(strengths[severity - 1])) for severity in severities]
    return tuple(found)


def _reduced(pixels: _Pixels) -> UInt8[np.ndarray, "3 h2 w2"]:
    """At most :data:`LARGEST` pixels on the shorter side (bicubic, antialiased)."""
    _, height, width = pixels.shape
    short = min(height, width)
    if short <= LARGEST:
        return pixels
    sides = (round(width * LARGEST / short), round(height * LARGEST / short))
    return to_array(to_picture(pixels).resize(sides, Image.Resampling.BICUBIC))


def _bytes(values: _Real) -> _Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _blended(pixels: _Pixels, other: Float32[np.ndarray, "h w"], share: float) -> _Pixels:
    real = pixels.astype(np.float32)
    return _bytes(real + np.float32(share) * (other - real))


def _luminance(pixels: _Pixels) -> Float32[np.ndarray, "h w"]:
    return np.tensordot(_LUMA, pixels.astype(np.float32), axes=1)


def _smoothed(values: _Real, spread: float) -> _Real:
    """Gaussian of this standard deviation in pixels, cut off at three; the outermost pixels go on beyond the border."""
    radius = int(np.ceil(3 * spread))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / spread) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        margins = [(radius, radius) if place == axis else (0, 0) for place in range(3)]
        windows = sliding_window_view(np.pad(values, margins, mode="edge"), len(weights), axis)
        values = np.zeros_like(values)
        for place, weight in enumerate(weights):
            values += weight * windows[..., place]
    return values


def _edges(pixels: _Pixels, share: float) -> _Pixels:
    """Dark lines where the luminance changes, on white, laid over the picture."""
    short = min(pixels.shape[1:])
    grey = np.pad(_smoothed(_luminance(pixels)[None], short * _PENCIL)[0], 1, mode="edge")
    down, right = (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2, (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2
    lines = np.hypot(down, right) * np.float32(short * _GRID * _DARKNESS)
    return _blended(pixels, 255 - lines.clip(0, 255), share)


def _jpeg(pixels: _Pixels, quality: float) -> _Pixels:
    long = 1 if pixels.shape[1] > pixels.shape[2] else 2
    pieces = np.split(pixels, range(_JPEG_SIDE, pixels.shape[long], _JPEG_SIDE), axis=long)
    return np.concatenate([_encoded(piece, int(quality)) for piece in pieces], axis=long)


def _encoded(pixels: _Pixels, quality: int) -> _Pixels:
    file = io.BytesIO()
    to_picture(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as image:
        return to_array(image)


def _noise(pixels: _Pixels, deviation: float, number: int) -> _Pixels:
    """Independent in each pixel and channel; the severities of a picture differ in strength alone."""
    generator = np.random.Generator(np.random.Philox(key=number % 2**64))
    draws = generator.standard_normal(pixels.shape, dtype=np.float32)
    return _bytes(pixels + np.float32(deviation) * draws)


def _flattened(pixels: _Pixels, share: float) -> _Pixels:
    """Each channel's differences from its mean, times ``share``."""
    means = pixels.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _bytes(means + np.float32(share) * (pixels - means))


_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
# Of each kind: what it does, how strongly in each severity, and that in words.
_CHANGES: dict[str, tuple[Callable[..., _Pixels], Sequence[float], Callable[[float], str]]] = {
    "edges": (_edges, _SHARES, "{:.0%} of the way to dark lines on white".format),
    "grey": (
        lambda pixels, share: _blended(pixels, _luminance(pixels), share),
        _SHARES,
        "{:.0%} of the way to grey".format,
    ),
    "blur": (
        lambda pixels, spread: _bytes(_smoothed(pixels.astype(np.float32), spread * min(pixels.shape[1:]))),
        (0.015, 0.025, 0.04, 0.055, 0.075),
        "Gaussian blur, deviation {:.1%} of the shorter side".format,
    ),
    "jpeg": (_jpeg, (50.0, 30.0, 18.0, 10.0, 6.0), "JPEG quality {:.0f}".format),
    "noise": (_noise, (10.0, 20.0, 35.0, 55.0, 80.0), "Gaussian noise, deviation {:.0f} of 255".format),
    "inversion": (
        lambda pixels, threshold: np.where(pixels >= threshold, 255 - pixels, pixels),
        (204.0, 153.0, 102.0, 51.0, 0.0),
        lambda low: f"values from {low:.0f} up inverted" if low else "all inverted",
    ),
    "contrast": (_flattened, (0.75, 0.55, 0.4, 0.25, 0.15), "{:.0%} of the contrast".format),
}
WAYS = tuple(_CHANGES)
