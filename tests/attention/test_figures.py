"""Figures: what stands in them, what their colours mean, and that they come out as files."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from diffvit.attention import Record, capture, figures, rollout
from diffvit.attention.figures import blend, marked
from diffvit.attention.metrics import mass_mask
from diffvit.attention.statistics import head_statistics, position_similarity
from diffvit.models.attention import AttentionMaps
from diffvit.models.vit import VisionTransformer
from diffvit.reporting.style import to_png, to_svg

IMAGE = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model_of(attention: str, **settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 4, "attention": attention}
    model = VisionTransformer(**{**sizes, **settings}).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def record_of(attention: str, **settings: object) -> Record:
    model = model_of(attention, **settings)
    side = model.settings["image_size"]
    return capture(model, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)))


def words(made: Figure) -> str:
    return " | ".join(text.get_text() for text in made.findobj(Text) if isinstance(text, Text))


def picture(made: Figure) -> np.ndarray:
    """Its pixels, 60 an inch."""
    with Image.open(io.BytesIO(to_png(made))) as image:
        return np.asarray(image.convert("RGB"))[::2, ::2]


def images_in(made: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in made.axes for image in axes.images]


def test_a_grid_has_every_head_of_every_layer_and_says_who_asks() -> None:
    record = record_of("softmax")
    made = figures.maps_grid(record, 1, IMAGE, title="a title")
    said = words(made)
    for word in ("a title", "Attention of [CLS]", "head 0", "head 3", "layer 0", "layer 2"):
        assert word in said
    cells = images_in(made)
    assert len(cells) == 1 + 3 * 4  # the picture, and a cell per head and layer
    assert "Attention of patch 2,5 (outlined)" in words(figures.maps_grid(record, 0, IMAGE, query=(2, 5)))
    mean = record_of("softmax", pool="mean")
    assert "Attention of the patches, on average" in words(figures.maps_grid(mean, 0, IMAGE))


def test_a_cell_shows_its_map_and_a_row_one_scale() -> None:
    record = record_of("softmax")
    cells = images_in(figures.maps_grid(record, 1, IMAGE))[1:]
    for layer in range(3):
        maps = record.to_patches(layer)[1]
        for head in range(4):
            expected = colormaps[figures.SEQUENTIAL]((maps[head] / maps.max()).numpy())
            assert np.abs(cells[4 * layer + head] - expected).max() < 0.02


def test_signed_maps_are_white_at_zero_and_two_hues_around_it() -> None:
    record = record_of("differential")
    made = figures.differential_panels(record, 0, IMAGE)
    said = words(made)
    for word in ("head 0: A1", "head 1: A1", "A2", "white is zero", "layer 1"):
        assert word in said
    cells = images_in(made)[1:]
    assert len(cells) == 3 * 2 * 3
    for layer, maps in enumerate(record.layers):
        assert f"= {float(maps.lam or 0):.2f}" in said
        effective, first = record.to_patches(layer)[0, 1].numpy(), record.to_patches(layer, "positive")[0, 1].numpy()
        red, _, blue, _ = np.moveaxis(cells[6 * layer + 5], 2, 0)
        assert (red[effective > 0] >= blue[effective > 0]).all()
        assert (red[effective < 0] <= blue[effective < 0]).all()
        red, _, blue, _ = np.moveaxis(cells[6 * layer + 3], 2, 0)
        assert (red[first > 0] >= blue[first > 0]).all()  # what is not negative is never blue
    signed = figures.maps_grid(record, 0, IMAGE)
    assert "white is zero" in words(signed)
    assert "white is zero" not in words(figures.maps_grid(record, 0, IMAGE, kind="positive"))


def test_heat_over_a_picture() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 2.0
    blended, scale = blend(IMAGE, heat)
    assert blended.shape == (32, 32, 3)
    assert 0 <= blended.min() <= blended.max() <= 1
    assert scale.get_clim() == (0, 2)
    grey = IMAGE.float().mean(0).numpy() / 255
    assert np.corrcoef(blended[16:, :, 0].ravel(), grey[16:].ravel())[0, 1] > 0.95  # the picture is still there
    assert np.ptp(blended[8:16, 16:24, 2]) < np.ptp(blended[16:24, 16:24, 2])  # and covered where the heat is
    _, scale = blend(IMAGE, heat - 0.5)
    assert scale.get_clim() == (-1.5, 1.5)


def test_overlays_take_six_in_a_line_and_two_hues_where_asked() -> None:
    heat = torch.ones(4, 4)
    heat[0, 0] = 0.0
    made = figures.overlays(IMAGE, [(f"map {at}", heat) for at in range(10)], signed=["map 9"], unit="a unit")
    panels = [axes for axes in made.axes if axes.images]
    assert len(panels) == 11
    made.draw_without_rendering()
    assert len({round(axes.get_position().y0, 3) for axes in panels}) == 2
    assert words(made).count("a unit") == 10
    plain, signed = (np.asarray(panels[at].images[0].get_array()) for at in (9, 10))
    red, _, blue = signed[20, 20]
    assert red > blue + 0.2  # the largest value, in the hue of what speaks for
    assert np.ptp(signed[:8, :8], axis=2).max() < 0.02  # no colour at zero
    assert np.abs(plain - signed).max() > 0.1


def test_a_mask_darkens_what_it_does_not_keep() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    found = marked(IMAGE, mask)
    assert torch.equal(found[:, :8, :8], IMAGE[:, :8, :8])
    assert found[:, 8:].float().mean() < 0.3 * IMAGE[:, 8:].float().mean()


@cache
def every() -> dict[str, Callable[[], Figure]]:
    plain, differential = record_of("softmax", depth=2), record_of("differential", depth=2)
    heat, model = plain.to_patches(-1)[0].mean(0), model_of("differential", pos_embed="sincos-2d+rope-2d")
    names = [("heat", heat), ("rollout", rollout(differential)[0])]
    kept = [("mask", mass_mask(heat, 0.6))]
    found: dict[str, Callable[[], Figure]] = {
        "maps": lambda: figures.maps_grid(plain, 0, IMAGE),
        "panels": lambda: figures.differential_panels(differential, 0, IMAGE, query=(0, 7)),
        "overlays": lambda: figures.overlays(IMAGE, names, masks=kept, title="t"),
        "sheet": lambda: figures.contact_sheet([("a", IMAGE, heat)] * 5, title="t"),
        "kept": lambda: figures.kept_by_heads(IMAGE, mass_mask(plain.to_patches(-1)[0], 0.6), title="t"),
        "one": lambda: figures.contact_sheet([("a", IMAGE, heat)]),
        "heads": lambda: figures.heads_figure(head_statistics(differential), 65),
        "plain heads": lambda: figures.heads_figure(head_statistics(plain), 65),
        "lambda": lambda: figures.lambda_figure({0: -1.2, 1: 0.5}, {0: 0.2, 1: None}),
    }
    for kind, similarity in position_similarity(model).items():
        found[kind] = lambda similarity=similarity: figures.similarity_figure(similarity)
    return found


def test_every_figure_comes_out_and_files_are_the_same_each_time() -> None:
    for name, draw in every().items():
        pixels = picture(draw())
        assert pixels.shape[0] > 120, name
        assert pixels[0, 0, 0] == 255, name
        assert len(np.unique(pixels @ [1, 256, 256**2])) > 20, name  # colours
    assert to_png(every()["one"]()) == to_png(every()["one"]())
    found = to_svg(every()["lambda"]())
    assert found == to_svg(every()["lambda"]())
    assert b"<svg" in found


def test_head_figures_say_what_they_show() -> None:
    said = words(every()["heads"]())
    for word in ("Entropy", "ln 65", "nats", "Distance", "patches", "On [CLS] and registers", "Negative", "a head"):
        assert word in said
    assert "Negative" not in words(every()["plain heads"]())
    assert "lambda_init" in words(every()["lambda"]())


def test_large_grids_show_every_few_patches_and_say_so() -> None:
    similarity = torch.zeros(24, 30, 24, 30)
    made = figures.similarity_figure(similarity)
    assert "every 3. row and 3. column" in words(made)
    assert made.axes[0].images[0].get_clim() == (-1, 1)


def test_twelve_layers_of_twelve_heads_on_a_long_picture_are_drawn_in_time() -> None:
    maps = [(torch.randn(1, 12, 61, 61)).softmax(-1) for _ in range(12)]
    record = Record([AttentionMaps(each) for each in maps], list(range(12)), (6, 10), 1, "cls")
    image = torch.zeros(3, 96, 160, dtype=torch.uint8)
    before = time.process_time()
    with Image.open(io.BytesIO(to_png(figures.maps_grid(record, 0, image)))) as drawn:
        assert time.process_time() - before < 6
        assert drawn.width > drawn.height
