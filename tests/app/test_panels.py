"""The HTML of a forward pass: every image has words, names from outside are escaped, images are exact."""

from __future__ import annotations

import base64
import dataclasses
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from diffvit.app.explorer import Explorer, ForwardPass, MapSelection
from diffvit.app.models import Models
from diffvit.app.panels import FORMATS, OverlayStyle, download, html, panel
from diffvit.attention.inputs import Sample, load_model
from diffvit.data.shapes import generate


class Tags(HTMLParser):
    """Tags with their attributes, and the text; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._open = "", list[str]()
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "br", "input", "path"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def forward(name: str, *, mask: bool = False, label: str = "star") -> ForwardPass:
    images = generate("test", torch.tensor([5]))
    assert images.masks is not None
    shown = Sample("5", images.pixels[0], label, images.masks[0] if mask else None)
    return Explorer(Models([])).forward(load_model(name, device="cpu"), shown)


@pytest.mark.parametrize(("name", "maps"), [("shapes-vit", 1), ("shapes-diffvit", 3)])
def test_it_shows_picture_maps_rollout_and_probabilities(name: str, maps: int) -> None:
    result = forward(name, mask=True)
    found = Tags(panel(result, MapSelection(3, 0, (0.5, 0.5)), OverlayStyle(mass=0.6), link="figure/x"))
    images = found.of("img")
    assert len(images) == 1 + maps + 1
    assert all(image["alt"] for image in images)
    assert "row" in str(images[1]["alt"])
    assert len(found.of("li")) == 5
    assert "Attention of the patch in row 4, column 4: layer 3 (of 0 to 3), head 0 (of 0 to" in found.words
    assert "star (true)" in found.words
    assert [link["href"] for link in found.of("a")] == [f"figure/x.{form}" for form in FORMATS]
    for image in images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    assert "Click" not in panel(result, MapSelection(), OverlayStyle(), clickable=False)


def test_hostile_names_stay_text() -> None:
    result = forward("shapes-vit", label='<script>x()</script>" onload="y()')
    bad = '<img src=x onerror="z()">'
    result = dataclasses.replace(result, model=dataclasses.replace(result.model, name=bad, classes=[bad] * 10))
    text = (
        panel(result, MapSelection(), OverlayStyle())
        + html("alert", text=bad)
        + html("table", columns=[bad, ""], rows=[[bad, bad]], caption=bad)
    )
    found = Tags(text)
    assert not found.of("script")
    assert all("onerror" not in attributes and "onload" not in attributes for _, attributes in found.tags)
    assert len(found.of("img")) == 3


def test_strength_and_threshold_change_what_is_drawn() -> None:
    result = forward("shapes-vit")

    def drawn(style: OverlayStyle) -> np.ndarray:
        source = Tags(panel(result, MapSelection(3), style)).of("img")[1]["src"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(str(source).split(",")[1])))).astype(int)

    grey = drawn(OverlayStyle(strength=0.0))
    assert (grey.max(axis=2) == grey.min(axis=2)).all()
    assert (drawn(OverlayStyle()) != grey).any()
    few = (drawn(OverlayStyle(mass=0.3)) != grey).any(axis=2).mean()
    assert 0 < few < 0.5 < (drawn(OverlayStyle()) != grey).any(axis=2).mean()
    assert (drawn(OverlayStyle(colours="viridis")) != drawn(OverlayStyle())).any()


def test_a_download_has_what_is_shown_and_leaves_out_a_class_that_a_model_lacks() -> None:
    result = forward("shapes-diffvit")
    chosen = MapSelection(2, method="grad-cam", target="ring")
    with np.load(io.BytesIO(download([result], chosen, "npz"))) as arrays:
        shown = {part.name: part.values for part in (*result.maps(chosen), *result.followed(chosen))}
        assert {name: arrays[f"shapes-diffvit, {name}"].tolist() for name in shown} == {
            name: values.tolist() for name, values in shown.items()
        }
        assert len(arrays) == 5
    lacking = download([result], MapSelection(2, method="grad-cam", target="cat"), "csv").decode().splitlines()
    assert len(lacking) == 1 + 4 * 64
    assert not any("grad-cam" in line for line in lacking)
