"""The maps in a browser: side by side, by layer and head, by patch, rollout, and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from app_browser.watching import FIRST, SECOND, Watched, inner, words

pytestmark = pytest.mark.system


def test_two_models_side_by_side_layers_and_heads(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#dv-view .dv-model h2")).to_have_text(["vit", "diffvit"])
    one, two = (page.locator(each).bounding_box() for each in (FIRST, SECOND))
    assert one is not None
    assert two is not None
    assert two["x"] > one["x"] + one["width"] - 1  # side by side
    assert page.locator(f"{FIRST} >> img").count() == 3
    assert page.locator(f"{SECOND} >> img").count() == 5  # image, A1, lambda A2, their difference, rollout
    assert "layer 3 of 3, mean of 4 heads" in words(page)
    page.get_by_role("slider", name="Layer").first.fill("1")
    expect(page.locator(FIRST)).to_contain_text("layer 1 of 3, mean of 4 heads")
    page.get_by_role("checkbox", name="Average the heads").uncheck()
    expect(page.locator(FIRST)).to_contain_text("layer 1 of 3, head 1 of 4")
    before = inner(page, "#dv-view")
    page.get_by_role("slider", name="Head").first.fill("3")
    expect(page.locator(FIRST)).to_contain_text("head 3 of 4")
    expect(page.locator(SECOND)).to_contain_text("head 2 of 2")  # the differential model has as many
    assert inner(page, "#dv-view") != before
    page.get_by_role("slider", name="Layer").first.focus()
    page.keyboard.press("ArrowRight")  # by keyboard too
    expect(page.locator(FIRST)).to_contain_text("layer 2 of 3, head 3 of 4")


def test_an_answer_that_was_overtaken_is_not_shown(watched: Watched) -> None:
    """The first answer is held back until the second is there."""
    page, held = watched.page, list[Any]()

    def hold(route: Route) -> None:
        if '"layer' not in str(route.request.post_data) and not held:
            held.append(route)
        else:
            route.continue_()

    page.wait_for_timeout(500)
    page.route("**/gradio_api/run/predict", hold)
    page.get_by_role("slider", name="Layer").first.fill("1")
    page.wait_for_timeout(300)
    assert len(held) == 1
    late = held[0].fetch()  # asked now, answered later
    page.get_by_role("slider", name="Row").first.fill("2")
    page.wait_for_timeout(600)
    before = inner(page, "#dv-view")
    held[0].fulfill(response=late)
    page.wait_for_timeout(600)
    assert inner(page, "#dv-view") == before


def test_a_click_makes_a_patch_the_query(watched: Watched) -> None:
    page = watched.page
    picture = page.locator(f"{FIRST} >> [data-ask]")
    box = picture.bounding_box()
    assert box is not None
    picture.click(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 8})
    expect(page.locator(FIRST)).to_contain_text("Attention of the patch in row 3, column 6: layer 3")
    expect(page.get_by_role("radio", name="a patch")).to_be_checked()
    marks = page.locator("#dv-view .dv-query")
    assert marks.count() == 2
    mark = marks.first.bounding_box()
    assert mark is not None
    assert abs(mark["x"] - box["x"] - box["width"] * 5 / 8) < 4
    assert abs(mark["y"] - box["y"] - box["height"] * 2 / 8) < 4
    page.get_by_role("radio", name="the model").check()
    expect(page.locator(FIRST)).to_contain_text("Attention of [CLS]")


def test_rollout_and_drawing_follow_their_controls(watched: Watched) -> None:
    page = watched.page
    rollout = f"{SECOND} >> figure >> nth=4 >> img"
    expect(page.locator(f"{SECOND} >> figcaption >> nth=4")).to_contain_text("rollout")
    page.get_by_role("button", name="Attention rollout").click()
    for control in ("max", "positive"):
        before = page.get_attribute(rollout, "src")
        page.get_by_role("radio", name=control, exact=True).check()
        expect(page.locator(rollout)).not_to_have_attribute("src", before or "")
    page.get_by_role("radio", name="signed").check()  # does not go with max: told, and the picture stays
    expect(page.get_by_role("alert").first).to_contain_text("sign signed: goes with fusion mean")
    page.get_by_role("radio", name="mean", exact=True).check()
    expect(page.locator(".dv-fault:visible")).to_have_count(0)
    page.get_by_role("button", name="Colours and threshold").click()
    first = f"{FIRST} >> figure >> nth=1 >> img"
    for slider, value in (("Overlay", "0.2"), ("Threshold", "0.4")):
        before = page.get_attribute(first, "src")
        page.get_by_role("slider", name=slider).first.fill(value)
        expect(page.locator(first)).not_to_have_attribute("src", before or "")


def test_the_figure_can_be_had_as_a_file(watched: Watched, tmp_path: Path) -> None:
    with watched.page.expect_download() as waiting:
        watched.page.get_by_role("link", name="Download this as a figure").click()
    waiting.value.save_as(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 1000
    assert waiting.value.suggested_filename == "diffvit-attention.png"
