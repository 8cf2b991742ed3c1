"""The plot of both models' accuracies by class, and the pictures of the page."""

from __future__ import annotations

import io
import re
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from diffvit.clip.compare_page import _thumbnail, decided_note, scatter, shift_statements
from diffvit.clip.evaluate import outliers
from diffvit.reporting.style import LIGHT


def made_rows(count: int, images: int, seed: int = 0) -> list[dict[str, Any]]:
    """Classes of which the second model gets more."""
    draw = np.random.default_rng(seed)
    rows = []
    for place in range(count):
        first, second = (int(draw.binomial(images, chance)) / images for chance in draw.beta((2, 5), (2, 2)))
        apart = first - second
        interval = {"low": apart - 0.1, "high": apart + 0.1, "decided": abs(apart) > 0.3, "p_value": 1 - abs(apart)}
        name = f"class ${place}" * (1 + place % 3)
        rows.append(
            {"class": name, "images": images, "first": first, "second": second, "difference": apart, **interval}
        )
    return rows


def test_of_five_pictures_no_interval_can_exclude_zero() -> None:
    """The smallest p-value of McNemar's exact test on five pictures is 2 / 2^5."""
    rows = [{"images": images, "low": -1.0, "high": 1.0, "decided": False} for images in (1, 5, 6, 100) * 10]
    assert re.findall(r"[\d.]*\d", decided_note(rows)) == ["0", "40", "95", "1.0", "0", "40"]


@pytest.mark.parametrize(("count", "images"), [(1, 5), (10, 100), (100, 50), (1000, 50), (1000, 1)])
def test_the_scatter_plot_names_the_outliers_and_no_name_is_over_another(count: int, images: int) -> None:
    rows = made_rows(count, images)
    named = [rows[place] for place in outliers(rows)]
    made = scatter(rows, named, "the first", "the second")
    [axes] = made.axes
    [dots] = axes.collections
    shades = [to_hex(shade, keep_alpha=False) for shade in dots.get_facecolor()]  # pyright: ignore
    seen = {(*place, shade) for place, shade in zip(np.asarray(dots.get_offsets()).tolist(), shades, strict=True)}
    assert seen == {
        (100 * row["second"], 100 * row["first"], LIGHT.series[(row["difference"] < 0) if row["decided"] else 6])
        for row in rows
    }
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1
    said = [line for text in axes.texts for line in text.get_text().split("\n")]
    assert sorted(said) == sorted(row["class"][:26] for row in named)
    made.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    frame = axes.get_window_extent()
    assert all(frame.count_contains(box.corners()) == 4 for box in boxes)
    assert not any(one.overlaps(two) for place, one in enumerate(boxes) for two in boxes[:place])


@pytest.mark.parametrize(
    ("original", "under", "decided", "more", "has"),
    [
        ((0.9, 0.8), (0.5, 0.6), True, "one", None),  # 40 against 20 points, of 80 that the second has
        ((0.9, 0.3), (0.5, 0.2), True, "one", "two has only 30.0"),
        ((0.01, 0.8), (0.0, 0.5), True, "two", "one has only 1.0"),
        ((0.01, 0.8), (0.0, 0.5), False, None, None),
    ],
)
def test_which_model_loses_more_and_whether_the_other_could(
    original: tuple[float, float],
    under: tuple[float, float],
    decided: bool,
    more: str | None,
    has: str | None,
) -> None:
    change = (under[0] - under[1]) - (original[0] - original[1])
    kind = {"shift": "blur", "first": under[0], "second": under[1], "change": change, "decided": decided}
    shifts = {
        "original": {"first": original[0], "second": original[1]},
        "kinds": [kind | {"low": change - 0.01, "high": change + 0.01}],
    }
    (said,) = shift_statements({"models": [{"model": "one"}, {"model": "two"}], "shifts": shifts})
    assert (f"{more} loses more" in said) == decided
    assert ("has only" in said) == (has is not None)
    assert (has or "") in said


@pytest.mark.parametrize(("size", "kind", "shown"), [((640, 480), "JPEG", (160, 120)), ((32, 30), "PNG", (160, 150))])
def test_large_pictures_are_shrunk_as_jpeg_and_small_ones_enlarged_exactly(
    size: tuple[int, int], kind: str, shown: tuple[int, int]
) -> None:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    with urlopen(_thumbnail(pixels)) as file, Image.open(io.BytesIO(file.read())) as picture:
        assert (picture.format, picture.size) == (kind, shown)
        if kind == "PNG":
            assert np.array_equal(np.asarray(picture)[::5, ::5].transpose(2, 0, 1), pixels)
