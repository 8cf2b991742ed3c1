"""Outlines of the ten shapes and of the clutter, as functions that are negative inside.

Every function takes coordinates (x to the right, y up) and returns about the distance to the outline, in the unit of
the coordinates: exact near straight edges, which is all that smooth edges need. The shapes lie inside the unit circle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Field = Float32[np.ndarray, "n h w"]
Outline = Callable[[Field, Field], Field]


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: Field, y: Field, radius: float) -> Field:
    return np.sqrt(x * x + y * y) - radius


def _circle(x: Field, y: Field) -> Field:
    return _disc(x, y, 0.85)


def _ring(x: Field, y: Field) -> Field:
    return np.abs(_disc(x, y, 0.75)) - 0.2


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(_disc(x, y, 0.95), -_disc(x - 0.5, y, 0.75))


def _square(x: Field, y: Field) -> Field:
    return _box(x, y, 0.7, 0.7)


def _triangle(x: Field, y: Field) -> Field:
    # Equilateral: three half-planes half a unit from the centre; the two slanted ones mirror each other.
    return np.maximum(0.8660254 * np.abs(x) + 0.5 * y, -y) - 0.5


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


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(_box(x, y, 0.92, 0.28), _box(x, y, 0.28, 0.92))


def _heart(x: Field, y: Field) -> Field:
    # A square on its corner and a disc on each of its two upper edges.
    side = 0.46
    along, across = (x + y) * 0.70710678, (y - x) * 0.70710678
    lobes = np.minimum(_disc(along, across - side, side), _disc(along - side, across, side))
    return np.minimum(_box(along, across, side, side), lobes)


def _arrow(x: Field, y: Field) -> Field:
    head = np.maximum(0.70710678 * (x + np.abs(y)) - 0.67, -x)
    return np.minimum(head, _box(x + 0.4, y, 0.5, 0.22))


def _hourglass(x: Field, y: Field) -> Field:
    return np.maximum(0.8 * np.abs(x) - 0.6 * np.abs(y) - 0.04, np.abs(y) - 0.78)


SHAPES: dict[str, Outline] = {
    "circle": _circle,
    "ring": _ring,
    "crescent": _crescent,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "arrow": _arrow,
    "hourglass": _hourglass,
}


def _stroke(x: Field, y: Field) -> Field:
    return np.hypot(np.maximum(np.abs(x) - 0.75, 0), y) - 0.22


def _blob(x: Field, y: Field) -> Field:
    return (np.hypot(x / 0.75, y / 0.5) - 1) * 0.5


def _bow(x: Field, y: Field) -> Field:
    # A short arc of a wide circle: a piece of a ring's or a heart's outline.
    return np.maximum(np.abs(_disc(x, y + 0.8, 0.8)) - 0.2, -y - 0.5)


def _corner(x: Field, y: Field) -> Field:
    # Two strokes that meet: a piece of a polygon's outline.
    along = np.clip(0.6 * (x + 0.5) + 0.8 * np.abs(y), 0, 1.1)
    return np.hypot(x + 0.5 - 0.6 * along, np.abs(y) - 0.8 * along) - 0.2


CLUTTER: tuple[Outline, ...] = (_stroke, _blob, _bow, _corner)
