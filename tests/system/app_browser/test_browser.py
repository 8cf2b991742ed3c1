"""The page in a browser: its maps, its pictures, its other tabs, and that everyone can use all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explorer_page import axe
from PIL import Image
from playwright.sync_api import Browser, Route, expect

from app_browser.watching import ARTEFACTS, FIRST, SECOND, Watched, changed, go, inner, opened, words

pytestmark = pytest.mark.system
TABS = ("Attention", "Compare", "Zero-shot", "Shapes", "Models")
SIZES = {"laptop": (1280, 900), "phone": (390, 844)}


def test_two_models_side_by_side_layers_and_heads(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#dv-view .dv-model h2")).to_have_text(["vit", "diffvit"])
    one, two = (page.locator(each).bounding_box() for each in (FIRST, SECOND))
    assert one is not None
    assert two is not None
    assert two["x"] > one["x"] + one["width"] - 1  # side by side
    assert page.locator(f"{FIRST} >> img").count() == 3
    assert page.locator(f"{SECOND} >> img").count() == 5  # image, A1, lambda A2, their difference, rollout
    assert "layer 2 (of 0 to 2), mean of 4 heads" in words(page)
    page.get_by_role("slider", name="Layer").first.fill("0")
    expect(page.locator(FIRST)).to_contain_text("layer 0 (of 0 to 2), mean of 4 heads")
    page.get_by_role("checkbox", name="Average the heads").uncheck()
    expect(page.locator(FIRST)).to_contain_text("layer 0 (of 0 to 2), head 0 (of 0 to 3)")
    before = inner(page, "#dv-view")
    page.get_by_role("slider", name="Head").first.fill("3")
    expect(page.locator(FIRST)).to_contain_text("head 3 (of 0 to 3)")
    expect(page.locator(SECOND)).to_contain_text("head 1 (of 0 to 1)")  # the differential model has as many
    assert inner(page, "#dv-view") != before
    page.get_by_role("slider", name="Layer").first.focus()
    page.keyboard.press("ArrowRight")  # by keyboard too
    expect(page.locator(FIRST)).to_contain_text("layer 1 (of 0 to 2), head 3 (of 0 to 3)")


def test_an_answer_that_was_overtaken_is_not_shown(watched: Watched) -> None:
    """The first answer is held back until the second is there."""
    page, held = watched.page, list[Any]()

    def hold(route: Route) -> None:
        if '"layer' not in str(route.request.post_data) and not held:
            held.append(route)
        else:
            route.continue_()

    page.wait_for_timeout(500)
    page.route("**/gradio_api/run/predict*", hold)
    page.get_by_role("slider", name="Layer").first.fill("0")
    for _ in range(100):
        if not held:
            page.wait_for_timeout(100)
    assert len(held) == 1
    late = held[0].fetch()  # asked now, answered later
    page.get_by_role("slider", name="Row").first.fill("2")
    page.wait_for_timeout(600)
    before = inner(page, "#dv-view")
    held[0].fulfill(response=late)
    page.wait_for_timeout(600)
    assert inner(page, "#dv-view") == before


def test_a_click_makes_a_patch_the_query_and_the_figure_can_be_had_as_a_file(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    picture = page.locator(f"{FIRST} >> [data-ask]")
    box = picture.bounding_box()
    assert box is not None
    picture.click(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 8})
    expect(page.locator(FIRST)).to_contain_text("Attention of the patch in row 2, column 5: layer 2")
    expect(page.get_by_role("radio", name="a patch")).to_be_checked()
    marks = page.locator("#dv-view .dv-query")
    assert marks.count() == 2
    mark = marks.first.bounding_box()
    assert mark is not None
    assert abs(mark["x"] - box["x"] - box["width"] * 5 / 8) < 4
    assert abs(mark["y"] - box["y"] - box["height"] * 2 / 8) < 4
    page.get_by_role("radio", name="the model").check()
    expect(page.locator(FIRST)).to_contain_text("Attention of [CLS]")
    for form in ("PNG", "SVG", "npz", "CSV"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=form, exact=True).click()
        assert waiting.value.suggested_filename == f"diffvit-attention.{form.lower()}"
        waiting.value.save_as(tmp_path / form)
    with Image.open(tmp_path / "PNG") as figure:
        assert figure.width > 1000
    assert b"<svg" in (tmp_path / "SVG").read_bytes()
    with np.load(tmp_path / "npz") as arrays:
        assert [arrays[f"{name}, rollout"].shape for name in ("vit", "diffvit")] == [(8, 8), (8, 8)]
        shown = float(arrays["vit, attention"][2, 5])
    lines = (tmp_path / "CSV").read_text().splitlines()
    assert f"vit,attention,2,5,{shown!r}" in lines


def test_attribution_of_a_class_values_under_the_pointer_and_a_map_enlarged(watched: Watched) -> None:
    page = watched.page
    page.get_by_label("Attribution", exact=True).click()
    page.get_by_role("option", name="grad-cam").click()
    best = page.inner_text(f"{FIRST} >> .dv-probabilities .dv-name >> nth=0").removesuffix(" (true)")
    expect(page.locator(FIRST)).to_contain_text(f"grad-cam for {best}")
    other = "heart" if best != "heart" else "star"
    before = page.get_attribute(f"{FIRST} >> img >> nth=3", "src")
    page.get_by_label("Explained class").click()
    page.get_by_role("option", name=other).click()
    expect(page.locator(FIRST)).to_contain_text(f"grad-cam for {other}")
    assert page.get_attribute(f"{FIRST} >> img >> nth=3", "src") != before
    map_of = page.locator(f"{FIRST} >> [data-values]").first
    box, values = map_of.bounding_box(), json.loads(map_of.get_attribute("data-values") or "")
    assert box is not None
    assert (len(values), len(values[0])) == (8, 8)
    map_of.hover(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 8})
    expect(page.locator(f"{FIRST} >> .dv-value").first).to_have_text(f"row 2, column 5: {values[2][5]}")
    expect(page.locator(FIRST)).to_contain_text("line: uniform attention, 0.015")  # one of 65 tokens
    mark = page.locator(f"{FIRST} >> .dv-scale b").first.bounding_box()
    scale = page.locator(f"{FIRST} >> .dv-scale i").first.bounding_box()
    most = float(page.inner_text(f"{FIRST} >> .dv-scale > span >> nth=1"))
    assert mark is not None
    assert scale is not None
    assert (mark["x"] + 1 - scale["x"]) / scale["width"] == pytest.approx(1 / 65 / most, abs=0.03)
    page.get_by_role("button", name="Enlarge rollout of vit", exact=True).click()
    enlarged = page.get_by_role("dialog").locator("img")
    large = enlarged.bounding_box()
    assert large is not None
    assert large["width"] > 3 * box["width"]
    enlarged.hover(position={"x": large["width"] / 16, "y": large["height"] / 16})
    expect(page.get_by_role("dialog")).to_contain_text("row 0, column 0: ")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_address_names_what_is_shown(watched: Watched, address: str) -> None:
    """A reload shows the same, and so does another visitor's window; what is not possible in it is said."""
    page = watched.page
    page.get_by_label("Second model", exact=True).first.click()
    page.get_by_role("option", name="none").click()
    page.get_by_label("Attribution", exact=True).click()
    page.get_by_role("option", name="attnlrp").click()
    page.locator("#dv-thumbs button").nth(2).click()
    page.get_by_role("slider", name="Layer").first.fill("1")
    page.get_by_role("checkbox", name="Average the heads").uncheck()
    page.get_by_role("slider", name="Head").first.fill("2")
    expect(page.locator(FIRST)).to_contain_text("layer 1 (of 0 to 2), head 2 (of 0 to 3)")
    expect(page.locator(FIRST)).to_contain_text("attnlrp for")
    shown = page.locator(f"{FIRST} >> .dv-pictures").inner_html()
    page.reload()
    page.wait_for_selector(FIRST, timeout=60_000)
    expect(page.locator(FIRST)).to_contain_text("layer 1 (of 0 to 2), head 2 (of 0 to 3)")
    expect(page.locator(FIRST)).to_contain_text("attnlrp for")
    assert page.locator(f"{FIRST} >> .dv-pictures").inner_html() == shown
    expect(page.get_by_label("Attribution", exact=True)).to_have_value("attnlrp")
    expect(page.get_by_role("slider", name="Head").first).to_have_value("2")
    page.goto(page.url.replace("method=attnlrp", "method=magic"))
    page.wait_for_selector(FIRST, timeout=60_000)
    expect(page.get_by_role("alert").first).to_contain_text(
        "address: Attribution is not possible (found 'magic' vs none"
    )
    expect(page.locator(FIRST)).to_contain_text("layer 1 (of 0 to 2), head 2 (of 0 to 3)")  # all else holds
    page.goto(f"{address}?first=shapes-vit&second=none&layer=3&method=grad-cam&target=ring&strength=5&row=99")
    page.wait_for_selector(FIRST, timeout=60_000)
    expect(page.get_by_role("alert").first).to_contain_text("Overlay is not possible (found '5' vs 0 to 1.2)")
    expect(page.get_by_role("alert").first).to_contain_text("Row is not possible here (found '99')")
    expect(page.locator(FIRST)).to_contain_text("grad-cam for ring")
    page.get_by_label("Model", exact=True).first.click()
    page.get_by_role("option", name="vit", exact=True).click()  # of three layers: the last of them
    expect(page.locator(FIRST)).to_contain_text("layer 2 (of 0 to 2), mean of 4 heads")
    expect(page.get_by_role("slider", name="Layer").first).to_have_value("2")


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


def test_pictures_are_picked_by_class_and_by_error(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#dv-thumbs button")).to_have_count(12)
    before = inner(page, "#dv-thumbs")
    page.get_by_role("button", name="Next images").click()
    changed(page, "#dv-thumbs", before)
    expect(page.locator("#dv-thumbs")).to_contain_text("13 to 24 of 120")
    page.get_by_label("Class", exact=True).first.click()
    page.get_by_role("option", name="heart").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("1 to 12 of 12")
    page.get_by_label("Class", exact=True).first.click()
    page.get_by_role("option", name="all classes").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("1 to 12 of 120")
    page.get_by_label("Filter", exact=True).first.click()
    page.get_by_role("option", name="the first model is wrong", exact=True).click()
    expect(page.locator("#dv-thumbs")).not_to_contain_text("of 120,")
    before = inner(page, "#dv-view")
    page.locator("#dv-thumbs button").first.click()
    changed(page, "#dv-view", before)
    page.get_by_role("button", name="Next images").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("13 to 24 of")
    expect(page.locator("#dv-thumbs")).not_to_contain_text("of 120,")  # a page of those, not of all
    page.get_by_role("button", name="Previous images").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("1 to 12 of")
    truth = page.inner_text("#dv-thumbs button >> nth=0").strip()
    expect(page.locator(f"{FIRST} >> figcaption >> nth=0")).to_contain_text(truth)
    top = page.inner_text(f"{FIRST} >> .dv-probabilities li >> nth=0")
    assert not top.startswith(truth)  # wrong, as was asked for


def test_uploads_good_wrong_and_oversized(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    Image.effect_noise((200, 150), 80).convert("RGB").save(tmp_path / "noise.jpg")
    (tmp_path / "letter.png").write_bytes(b"%PDF-1.7 not a picture")
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9 * 2**20))
    Image.new("1", (6000, 5000)).save(tmp_path / "many.png")
    zone, before = page.locator("input[type=file]").first, inner(page, "#dv-view")
    for file, said in (
        ("letter.png", "letter.png: is not an image of a known format"),
        ("large.png", "large.png: is too large (over 8 MiB)"),
        ("many.png", "many.png: has too many pixels (6000 x 5000 vs at most 25 megapixels)"),
    ):
        zone.set_input_files(tmp_path / file)
        expect(page.locator(".dv-upload-said").first).to_contain_text(said)
    assert inner(page, "#dv-view") == before  # what was there stays
    zone.set_input_files(tmp_path / "noise.jpg")
    changed(page, "#dv-view", before)
    expect(page.locator(".dv-upload-said").first).to_contain_text("Showing noise.jpg")
    expect(page.locator("#dv-view")).not_to_contain_text("(true)")  # nobody knows its class


def test_own_labels_with_clip(watched: Watched) -> None:
    page = watched.page
    go(page, "Zero-shot")
    page.get_by_label("Labels").fill("frog, a truck, the moon")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#dv-named .dv-model h2").first).to_have_text("cifar10-clip, zero-shot", timeout=60_000)
    expect(page.locator("#dv-named .dv-model >> nth=0").locator("li")).to_have_count(3)
    expect(page.locator("#dv-named .dv-model")).to_have_count(2)
    page.get_by_label("Labels").fill("frog")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("alert").first).to_contain_text("labels: give 2 to 40")


def test_shapes_with_their_scores_runs_side_by_side_and_the_models(watched: Watched) -> None:
    page = watched.page
    go(page, "Shapes")
    expect(page.locator("#dv-shapes table")).to_have_count(2)
    before = inner(page, "#dv-shapes")
    page.get_by_role("slider", name="Clutter").first.fill("0.9")
    changed(page, "#dv-shapes", before)
    expect(page.locator("#dv-shapes")).to_contain_text("Uniform baseline")
    assert page.locator("#dv-shapes svg.dv-outline").count() == 2
    go(page, "Compare")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#dv-compare img:visible").first).to_be_visible(timeout=60_000)
    expect(page.locator("#dv-compare")).to_contain_text("Test accuracy")
    assert page.locator("#dv-compare figure").count() == 6  # loss, accuracy, lambda, classes, two confusion matrices
    go(page, "Models")
    expect(page.get_by_role("group", name="Available models")).to_contain_text("shapes-diffvit")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return axe(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("size", list(SIZES))
def test_everyone_can_use_it(chrome: Browser, address: str, script: Path, size: str) -> None:
    """axe-core finds no serious violation on any tab, laptop and phone, light and dark; screenshots are kept."""
    width, height = SIZES[size]
    found = opened(chrome, address, bypass_csp=True)
    page = found.page
    page.set_viewport_size({"width": width, "height": height})
    page.add_script_tag(path=script)
    problems = list[Any]()
    schemes: tuple[Any, ...] = ("light", "dark")
    for tab in TABS:
        go(page, tab)
        if tab == "Compare":
            page.get_by_role("button", name="Compare").click()
            expect(page.locator("#dv-compare img:visible").first).to_be_visible(timeout=60_000)
        if tab == "Zero-shot":
            page.get_by_role("button", name="Classify").click()
            expect(page.locator("#dv-named .dv-model").first).to_be_visible(timeout=60_000)
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(400)
            assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
            violations = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            problems += [(tab, scheme, each) for each in violations]
            page.screenshot(path=ARTEFACTS / f"{tab.lower()}-{size}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, f"{tab} is wider than the screen"
        schemes = schemes[::-1]
    page.context.close()
    assert [each for each in problems if each[2]["impact"] in ("serious", "critical")] == []
    assert (found.outside, found.complaints) == ([], [])
