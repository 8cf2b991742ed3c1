"""The built-in data set: one of ten shapes per image, among clutter and noise, with the mask of where it is.

Only the outline depends on the class: colours, position, size and rotation are drawn independently of it. Every draw
is a hash of (seed, split, image index), so image i is the same whatever number of images is asked for, and clutter
and noise change an image without moving its shape. :class:`Look` makes a shape harder to find: of :data:`HARD` no map
of brightness, contrast or place finds it (:mod:`diffvit.attention.baselines`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from diffvit.data.images import Images, fingerprint
from diffvit.data.random_draws import Indices, hash_uniform, hash_words
from diffvit.errors import ConfigError, check_choice

# Outlines of the ten shapes and of the clutter: functions of coordinates (x to the right, y up) that return about the
# distance to the outline, negative inside and exact near straight edges. The shapes lie inside the unit circle.
Field = Float32[np.ndarray, "n h w"]
Outline = Callable[[Field, Field], Field]


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: Field, y: Field, radius: float) -> Field:
    return np.sqrt(x * x + y * y) - radius


def _star(x: Field, y: Field) -> Field:
    # Five points: fold the plane into one half-point of 36 degrees, where the outline is one straight edge from the
    # tip (radius 1, angle 0) to the notch (radius 0.42, angle 36 degrees).
    slice_ = np.float32(2 * np.pi / 5)
    angle = np.arctan2(y, x)
    folded = np.abs(angle - slice_ * np.rint(angle / slice_))
    radius = np.sqrt(x * x + y * y)
    tip, notch = np.array([1.0, 0.0]), 0.42 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - tip
    normal = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).astype(np.float32)
    return radius * (np.cos(folded) * normal[0] + np.sin(folded) * normal[1]) - normal[0]


def _heart(x: Field, y: Field) -> Field:
    # A square on its corner and a disc on each of its two upper edges.
    side = 0.46
    along, across = (x + y) * 0.70710678, (y - x) * 0.70710678
    lobes = np.minimum(_disc(along, across - side, side), _disc(along - side, across, side))
    return np.minimum(_box(along, across, side, side), lobes)


def _corner(x: Field, y: Field) -> Field:
    # Two strokes that meet: a piece of a polygon's outline.
    along = np.clip(0.6 * (x + 0.5) + 0.8 * np.abs(y), 0, 1.1)
    return np.hypot(x + 0.5 - 0.6 * along, np.abs(y) - 0.8 * along) - 0.2


SHAPES: dict[str, Outline] = {
    "circle": lambda x, y: _disc(x, y, 0.85),
    "ring": lambda x, y: np.abs(_disc(x, y, 0.75)) - 0.2,
    "crescent": lambda x, y: np.maximum(_disc(x, y, 0.95), -_disc(x - 0.5, y, 0.75)),
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    # Equilateral: three half-planes half a unit from the centre; the two slanted ones mirror each other.
    "triangle": lambda x, y: np.maximum(0.8660254 * np.abs(x) + 0.5 * y, -y) - 0.5,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.28), _box(x, y, 0.28, 0.92)),
    "heart": _heart,
    "arrow": lambda x, y: np.minimum(np.maximum(0.70710678 * (x + np.abs(y)) - 0.67, -x), _box(x + 0.4, y, 0.5, 0.22)),
    "hourglass": lambda x, y: np.maximum(0.8 * np.abs(x) - 0.6 * np.abs(y) - 0.04, np.abs(y) - 0.78),
}
CLUTTER: tuple[Outline, ...] = (
    lambda x, y: np.hypot(np.maximum(np.abs(x) - 0.75, 0), y) - 0.22,  # a stroke
    lambda x, y: (np.hypot(x / 0.75, y / 0.5) - 1) * 0.5,  # an ellipse
    lambda x, y: np.maximum(np.abs(_disc(x, y + 0.8, 0.8)) - 0.2, -y - 0.5),  # an arc, as of a ring or a heart
    _corner,
)
CLASSES = list(SHAPES)
_SPLITS = {"train": 0, "test": 1}
# Streams of the draws; each has its own so that a change to one leaves the others as they were.
_SCENE, _CLUTTER, _NOISE, _DECOYS, _DISTRACTORS, _OCCLUDERS = range(1000, 1006)
_SIGNS = 10  # stream of the pieces' signs, after that of the pieces
_CHUNK = 256  # images drawn at a time: their working arrays stay in the processor's cache
_SMALLEST = 0.32 / 0.45  # diameter of a shape, over the largest
_TURN = 1 / 6  # of a full turn: how far a shape may be rotated, from one end to the other
_PIECE = (0.10, 0.17)  # of a piece of clutter, likewise
_PIECE_SHARE = 0.0185  # mean share of the image that one piece covers, measured
_FAINT = 0.3  # contrast of a distractor, over that of a shape


@dataclass(frozen=True)
class Look:
    """What makes a shape hard to find, besides clutter and noise.

    Args:
        diameter: of the largest shape, over the image's side; the smallest is 0.71 of it.
        beyond: share of the shape's radius that may lie outside of the image; with it the middle is no likelier.
        contrast: 0 for dark clutter and shapes lighter than all else. Above 0 the background is of a middle tone, and
            shapes and clutter are lighter or darker at random, by a tenth of it to all of it in each channel.
        decoys: pieces of clutter as large as the shape.
        distractors: outlines of other classes, as large as the shape, with 0.3 of its contrast.
        occluders: pieces of clutter that are drawn after the shape and may cover a part of it.
    """

    diameter: float = 0.9
    beyond: float = 0.0
    contrast: float = 0.0
    decoys: int = 0
    distractors: int = 0
    occluders: int = 0


HARD = Look(diameter=0.58, beyond=0.5, contrast=0.45, decoys=5, occluders=1)


def generate(
    split: str,
    count: int | Indices,
    *,
    size: int = 32,
    clutter: float = 0.3,
    noise: float = 0.1,
    seed: int = 0,
    look: Look = Look(),
) -> Images:
    """Draw the first ``count`` images of a split, or those of the given indices; the class is the index modulo 10.

    ``split`` is train or test, which share no draws; ``size`` the side, pixels; ``clutter`` the share of the background
    that small pieces cover, and ``noise`` the standard deviation of the pixel noise, of full scale, both 0 to 1.
    ConfigError for an unknown split or a setting out of range.
    """
    check_choice("split", split, _SPLITS)
    indices = count if isinstance(count, Tensor) else torch.arange(max(count, 0))
    count = len(indices)
    first = int(indices.min()) if count else 0
    if not (0 <= clutter <= 1 and 0 <= noise <= 1 and size >= 16 and count and first >= 0):
        found = f"size {size}, clutter {clutter}, noise {noise}, count {count}, first index {first}"
        allowed = "size >= 16, clutter and noise 0 to 1, count >= 1, index >= 0"
        raise ConfigError("shapes", f"out of range (found {found} vs {allowed})")
    drawn = [_draw(some, _SPLITS[split], size, clutter, noise, seed, look) for some in indices.split(_CHUNK)]
    pixels, masks = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*drawn, strict=True))
    labels = indices % len(CLASSES)
    own = {} if look == HARD else {dial: value for dial, value in asdict(look).items() if value != getattr(Look, dial)}
    dials = ", ".join(f"{dial} {value:g}" for dial, value in {"clutter": clutter, "noise": noise, **own}.items())
    name = f"{'shapes-hard' if look == HARD else 'shapes'} ({dials})"
    return Images(pixels, labels, CLASSES, name, fingerprint(pixels, labels, CLASSES), masks)


def _draw(
    indices: Indices, split: int, size: int, clutter: float, noise: float, seed: int, look: Look
) -> tuple[UInt8[np.ndarray, "n 3 s s"], Bool[np.ndarray, "n s s"]]:
    def draws(stream: int, count: int, each: int) -> Float32[np.ndarray, "count n each"]:
        found = hash_uniform(seed, split, indices, stream, each * count).numpy()
        return found.reshape(len(indices), count, each).swapaxes(0, 1)

    def coloured(drawn: Float32[np.ndarray, "n 3"], sign: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, "n 3"]:
        """Colours that are lighter or darker than the background, each with probability 0.5."""
        apart = np.float32(look.contrast) * (np.float32(0.2) + np.float32(0.8) * drawn)
        return paper + np.where(sign[:, None] < 0.5, -apart, apart)

    scene, labels = draws(_SCENE, 1, 16)[0], indices.numpy() % len(CLASSES)
    # The canvas has a margin: a piece of clutter reaches so many pixels out of the image.
    edge = math.ceil(max(_PIECE[1], look.diameter / 2 if look.decoys else 0) * size) + 1
    paper = np.float32(0.3) * scene[:, 4:7] + np.float32(0.35 if look.contrast else 0)
    # A slight gradient of the paper.
    ramp, slope = np.linspace(-0.5, 0.5, size + 2 * edge, dtype=np.float32), np.float32(0.3) * (scene[:, 7:9] - 0.5)
    shade = slope[:, :1, None] * ramp[None, :, None] + slope[:, 1:, None] * ramp[None, None, :]
    canvas = paper[:, None, None] + shade[..., None]
    inner = canvas[:, edge : edge + size, edge : edge + size]

    def scatter(stream: int, count: int, radius: tuple[float, float]) -> None:
        signs = draws(stream + _SIGNS, count if look.contrast else 0, 1)
        for place, piece in enumerate(draws(stream, count, 7)):
            drawn = piece[:, 4:7]
            colour = coloured(drawn, signs[place, :, 0]) if look.contrast else drawn * np.float32(0.5)
            _add_piece(canvas, piece, colour, CLUTTER[place % len(CLUTTER)], size, edge, radius)

    # Pieces overlap: coverage is 1 - exp(-pieces * share).
    scatter(_CLUTTER, round(-math.log(1 - 0.95 * clutter) / _PIECE_SHARE), _PIECE)
    scatter(_DECOYS, look.decoys, (_SMALLEST * look.diameter / 2, look.diameter / 2))
    for other in draws(_DISTRACTORS, look.distractors, 9):
        not_mine = (labels + 1 + (9 * other[:, 7]).astype(np.int64)) % len(CLASSES)
        cover = _object_cover(other[:, :4], not_mine, size, look)
        colour = paper + np.float32(_FAINT) * (coloured(other[:, 4:7], other[:, 8]) - paper)
        inner += cover[..., None] * (colour[:, None, None] - inner)
    cover = _object_cover(scene[:, :4], labels, size, look)
    # Lighter than the paper in every channel where the contrast is 0.
    colour = paper + np.float32(0.35) + np.float32(0.35) * scene[:, 10:13]
    colour = coloured(scene[:, 10:13], scene[:, 13]) if look.contrast else colour
    inner += cover[..., None] * (colour[:, None, None] - inner)
    scatter(_OCCLUDERS, look.occluders, _PIECE)
    image = np.ascontiguousarray(inner.transpose(0, 3, 1, 2)) * np.float32(255)
    if noise:
        image += np.float32(noise * 255) * _normal(indices, split, size, seed)
    return np.rint(image).clip(0, 255).astype(np.uint8), cover >= 0.5


def _rotated(
    draw: Float32[np.ndarray, " n"], x: Float32[np.ndarray, "n 1 w"], y: Float32[np.ndarray, "n h 1"], turn: float = 1.0
) -> tuple[Float32[np.ndarray, "n h w"], Float32[np.ndarray, "n h w"]]:
    angle = (draw.astype(np.float64) - 0.5) * (2 * np.pi * turn)
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * x + sin * y, cos * y - sin * x


def _add_piece(
    canvas: Float32[np.ndarray, "n outer outer 3"],
    draws: Float32[np.ndarray, "n 7"],
    colour: Float32[np.ndarray, "n 3"],
    outline: Outline,
    size: int,
    edge: int,
    extremes: tuple[float, float],
) -> None:
    """Paint one piece of clutter into every image, its radius between ``extremes``: in a window, since it is small."""
    n, outer = canvas.shape[:2]
    radius = (extremes[0] + (extremes[1] - extremes[0]) * draws[:, :1, None]) * np.float32(size)
    centre = draws[:, 1:3] * np.float32(size)
    corner = np.floor(centre).astype(np.int64)  # the window's first row and column on the canvas
    steps = np.arange(2 * edge, dtype=np.float32)
    offset = (corner - edge - centre + np.float32(0.5)).astype(np.float32)
    x, y = (offset[:, 0, None] + steps)[:, None, :] / radius, (offset[:, 1, None] + steps)[:, :, None] / radius
    x, y = _rotated(draws[:, 3], x, y)
    cover = np.clip(np.float32(0.5) - outline(x, y) * radius, 0, 1)
    place = np.arange(2 * edge)
    rows, columns = (corner[:, 1, None] + place)[:, :, None], (corner[:, 0, None] + place)[:, None, :]
    flat = (np.arange(n)[:, None, None] * outer + rows) * outer + columns
    pixels = canvas.reshape(-1, 3)
    under = pixels[flat]
    pixels[flat] = under + cover[..., None] * (colour[:, None, None] - under)


def _object_cover(
    draws: Float32[np.ndarray, "n 4"], labels: Int64[np.ndarray, " n"], size: int, look: Look
) -> Float32[np.ndarray, "n s s"]:
    """How much of each pixel the shape covers, 0 to 1; it lies whole inside the image where nothing may be beyond."""
    smallest, largest = _SMALLEST * look.diameter / 2, look.diameter / 2
    radius = (smallest + (largest - smallest) * draws[:, :1, None]) * np.float32(size)
    nearest = radius[:, :, 0] * np.float32(1 - look.beyond)  # of its centre to the border
    centre = nearest + draws[:, 1:3] * (size - 2 * nearest)
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    x, y = (grid - centre[:, :1])[:, None, :] / radius, (grid - centre[:, 1:])[:, :, None] / radius
    x, y = _rotated(draws[:, 3], x, y, _TURN)
    cover = np.empty((len(draws), size, size), dtype=np.float32)
    for label, name in enumerate(CLASSES):
        mine = labels == label
        cover[mine] = np.clip(np.float32(0.5) - SHAPES[name](x[mine], y[mine]) * radius[mine], 0, 1)
    return cover


def _normal(indices: Int64[Tensor, " n"], split: int, size: int, seed: int) -> Float32[np.ndarray, "n 3 s s"]:
    """Nearly normal numbers of mean 0 and variance 1: the sum of four random bytes (Irwin-Hall), two sums a word."""
    count = 3 * size * size
    words = hash_words(seed, split, indices, _NOISE, (count + 1) // 2).numpy()
    every_other = 0x00FF00FF00FF00FF
    pairs = ((words & every_other) + ((words >> 8) & every_other)).view(np.int16)
    sums = (pairs[:, 0::2] + pairs[:, 1::2])[:, :count]
    scale = math.sqrt(4 * (256**2 - 1) / 12)
    return ((sums - 510) * np.float32(1 / scale)).astype(np.float32).reshape(len(indices), 3, size, size)
