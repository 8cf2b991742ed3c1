"""Names beside marks: none over another where the other side has room."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from diffvit.experiments.labels import Name, name_all, settle

Spots = Sequence[tuple[float, float]]


def drawn(left: Spots, right: Spots) -> tuple[Figure, Axes, list[Annotation]]:
    """Marks whose names stand left of them, and marks whose names stand right of them."""
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    axes.plot(*zip(*left, *right, strict=True), "o")
    axes.margins(0.4)
    names = [Name("some words", spot, spot, side, "k") for side, spots in ((-1, left), (1, right)) for spot in spots]
    return figure, axes, name_all(axes, names)


def sides(names: Sequence[Annotation]) -> list[int]:
    return [-1 if name.xyann[0] < 0 else 1 for name in names]


def overlaps(names: Sequence[Annotation]) -> int:
    boxes = [Text.get_window_extent(name) for name in names]
    return sum(one.overlaps(two) for one, two in combinations(boxes, 2))


def test_names_that_face_each_other_are_turned_away() -> None:
    figure, axes, names = drawn(left=[(1.5, 1)], right=[(1, 1), (0, 0), (2, 2)])
    figure.draw_without_rendering()
    assert overlaps(names) == 1
    settle(figure, [(axes, names)])
    assert overlaps(names) == 0
    assert sides(names) == [1, -1, 1, 1]
    assert [name.get_horizontalalignment() for name in names] == ["left", "right", "left", "left"]


def test_names_that_can_be_read_stay() -> None:
    figure, axes, names = drawn(left=[(0, 0), (1, 1)], right=[(0, 1), (1, 0)])
    before = [name.xyann for name in names]
    settle(figure, [(axes, names)])
    assert [name.xyann for name in names] == before


def test_names_of_one_side_stand_below_each_other() -> None:
    figure, _, names = drawn(left=[(0, 0)], right=[(1, 1), (1, 1.01), (1, 0.99), (1, 1)])
    figure.draw_without_rendering()
    assert overlaps(names) == 0
    assert names[0].xyann[1] == 0
    assert len({name.xyann[1] + 190 * name.xy[1] for name in names[1:]}) == 4


def test_what_cannot_be_mended_ends() -> None:
    """Six names at one place: no side is right for all, and the search comes to an end."""
    figure, axes, names = drawn(left=[(0, 0)] * 3, right=[(0, 0)] * 3)
    settle(figure, [(axes, names)])
    assert sorted(sides(names)) == [-1, -1, -1, 1, 1, 1]
