"""The page in a real browser: every control that the issue of looking inside a model needs, on a laptop and a phone."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from explorer_page import axe, browser, explorer
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from diffvit.config import parse
from diffvit.training.loop import train

pytestmark = pytest.mark.system
ARTEFACTS = Path("artefacts/explorer").resolve()
TABS = ("Look", "Compare", "Zero-shot", "Shapes", "Models")
SIZES = {"laptop": (1280, 900), "phone": (390, 844)}
_FIRST, _SECOND = "#dv-view .dv-model >> nth=0", "#dv-view .dv-model >> nth=1"


@dataclass
class Watched:
    """A page, and what it asked for and complained of."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return axe(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, _outside: dict[str, str]) -> Iterator[str]:
    """The page over two small runs of shapes, with everything packaged beside them."""
    folder = tmp_path_factory.mktemp("explorer")
    for name, attention in (("vit", "softmax"), ("diffvit", "differential")):
        model = {"attention": attention, "embed_dim": 32, "depth": 3, "num_heads": 4}
        shapes = {"train": 200, "test": 120}
        values = {"data": "shapes", "epochs": 2, "validation_size": 0, "model": model, "shapes": shapes}
        train(parse(values, "test"), out=folder / "runs" / name)
    runs = ["--run", str(folder / "runs" / "vit"), "--run", str(folder / "runs" / "diffvit")]
    with explorer(folder, runs, _outside.get("DIFFVIT_DATA", "")) as (found, _, log):
        yield found
    assert "Traceback" not in log.read_text()


def opened(chrome: Browser, address: str, **settings: Any) -> Watched:
    """The page with its first answer there. The content policy is left aside only where a script is injected."""
    context = chrome.new_context(viewport={"width": 1280, "height": 900}, **settings)
    watched = Watched(context.new_page())

    def asked(url: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            watched.outside.append(url)

    watched.page.on("request", lambda request: asked(request.url))
    watched.page.on("console", lambda line: watched.complaints.append(line.text) if line.type == "error" else None)
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.goto(address)
    watched.page.wait_for_selector(_FIRST, timeout=60_000)
    return watched


@pytest.fixture
def watched(chrome: Browser, address: str) -> Iterator[Watched]:
    found = opened(chrome, address)
    yield found
    found.page.context.close()
    assert found.outside == []
    assert found.complaints == []


def go(page: Page, tab: str) -> None:
    """To a tab; on a phone some are behind a button."""
    wanted = page.get_by_role("tab", name=tab)
    if not wanted.first.is_visible():
        page.locator(".overflow-menu button, button.overflow-menu").first.click()
    wanted.first.click() if wanted.first.is_visible() else page.get_by_text(tab, exact=True).last.click()
    page.wait_for_timeout(700)  # a tab is made when it is first opened; what is typed before it listens is lost


def words(page: Page) -> str:
    return page.inner_text(f"{_FIRST} >> .dv-said >> nth=0")


def changed(page: Page, selector: str, before: str) -> None:
    """Wait until something is not what it was."""
    page.wait_for_function(
        "([selector, before]) => document.querySelector(selector)?.innerHTML !== before", arg=[selector, before]
    )


def inner(page: Page, selector: str) -> str:
    return page.locator(selector).inner_html()


def test_two_models_side_by_side_layers_and_heads(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#dv-view .dv-model h2")).to_have_text(["vit", "diffvit"])
    one, two = (page.locator(each).bounding_box() for each in (_FIRST, _SECOND))
    assert one is not None
    assert two is not None
    assert two["x"] > one["x"] + one["width"] - 1  # side by side
    assert page.locator(f"{_FIRST} >> img").count() == 3
    assert page.locator(f"{_SECOND} >> img").count() == 5  # picture, A1, lambda A2, what is left, rollout
    assert "layer 3 of 3, the mean of 4 heads" in words(page)
    page.get_by_role("slider", name="Layer").first.fill("1")
    expect(page.locator(_FIRST)).to_contain_text("layer 1 of 3, the mean of 4 heads")
    page.get_by_role("checkbox", name="Average the heads").uncheck()
    expect(page.locator(_FIRST)).to_contain_text("layer 1 of 3, head 1 of 4")
    before = inner(page, "#dv-view")
    page.get_by_role("slider", name="Head").first.fill("3")
    expect(page.locator(_FIRST)).to_contain_text("head 3 of 4")
    expect(page.locator(_SECOND)).to_contain_text("head 2 of 2")  # the differential model has as many
    assert inner(page, "#dv-view") != before
    page.get_by_role("slider", name="Layer").first.focus()
    page.keyboard.press("ArrowRight")  # by keyboard too
    expect(page.locator(_FIRST)).to_contain_text("layer 2 of 3, head 3 of 4")


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


def test_a_click_lets_a_patch_ask(watched: Watched) -> None:
    page = watched.page
    picture = page.locator(f"{_FIRST} >> [data-ask]")
    box = picture.bounding_box()
    assert box is not None
    picture.click(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 2.5 / 8})
    expect(page.locator(_FIRST)).to_contain_text("What the patch in row 3, column 6 reads in layer 3")
    expect(page.get_by_role("radio", name="a patch")).to_be_checked()
    marks = page.locator("#dv-view .dv-asks")
    assert marks.count() == 2
    mark = marks.first.bounding_box()
    assert mark is not None
    assert abs(mark["x"] - box["x"] - box["width"] * 5 / 8) < 4
    assert abs(mark["y"] - box["y"] - box["height"] * 2 / 8) < 4
    page.get_by_role("radio", name="the model").check()
    expect(page.locator(_FIRST)).to_contain_text("What [CLS] reads")


def test_rollout_and_drawing_follow_their_dials(watched: Watched) -> None:
    page = watched.page
    rollout = f"{_SECOND} >> figure >> nth=4 >> img"
    expect(page.locator(f"{_SECOND} >> figcaption >> nth=4")).to_contain_text("rollout")
    page.get_by_role("button", name="How attention is followed").click()
    for control, value in (("max", None), ("positive", None)):
        before = page.get_attribute(rollout, "src")
        page.get_by_role("radio", name=control, exact=True).check()
        expect(page.locator(rollout)).not_to_have_attribute("src", before or "")
        assert value is None
    page.get_by_role("radio", name="signed").check()  # does not go with max: told, and the picture stays
    expect(page.get_by_role("alert").first).to_contain_text("sign signed: goes with fusion mean")
    page.get_by_role("radio", name="mean", exact=True).check()
    expect(page.locator(".dv-fault:visible")).to_have_count(0)
    page.get_by_role("button", name="How it is drawn").click()
    first = f"{_FIRST} >> figure >> nth=1 >> img"
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
    page.get_by_label("Test images").first.click()
    page.get_by_role("option", name="heart").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("1 to 12 of 12")
    page.get_by_label("Test images").first.click()
    page.get_by_role("option", name="every class").click()
    expect(page.locator("#dv-thumbs")).to_contain_text("1 to 12 of 120")
    page.get_by_label("Which").first.click()
    page.get_by_role("option", name="the first model mistakes it", exact=True).click()
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
    expect(page.locator(f"{_FIRST} >> figcaption >> nth=0")).to_contain_text(truth)
    top = page.inner_text(f"{_FIRST} >> .dv-chances li >> nth=0")
    assert not top.startswith(truth)  # mistaken, as was asked for


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
    expect(page.locator(".dv-upload-said").first).to_contain_text("Looking at noise.jpg")
    expect(page.locator("#dv-view")).not_to_contain_text("(true)")  # nobody knows its class


def test_own_labels_with_clip(watched: Watched) -> None:
    page = watched.page
    go(page, "Zero-shot")
    page.get_by_label("Labels").fill("frog, a truck, the moon")
    page.get_by_role("button", name="Name the picture").click()
    expect(page.locator("#dv-named .dv-model h2").first).to_have_text("cifar10-clip, zero-shot", timeout=60_000)
    expect(page.locator("#dv-named .dv-model >> nth=0").locator("li")).to_have_count(3)
    expect(page.locator("#dv-named .dv-model")).to_have_count(2)
    page.get_by_label("Labels").fill("frog")
    page.get_by_role("button", name="Name the picture").click()
    expect(page.get_by_role("alert").first).to_contain_text("labels: give 2 to 40")


def test_shapes_with_their_scores(watched: Watched) -> None:
    page = watched.page
    go(page, "Shapes")
    expect(page.locator("#dv-shapes table")).to_have_count(2)
    before = inner(page, "#dv-shapes")
    page.get_by_role("slider", name="Clutter").first.fill("0.9")
    changed(page, "#dv-shapes", before)
    expect(page.locator("#dv-shapes")).to_contain_text("a map that looks at nothing")
    assert page.locator("#dv-shapes svg.dv-outline").count() == 2


def test_runs_side_by_side_and_the_models(watched: Watched) -> None:
    page = watched.page
    go(page, "Compare")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#dv-compare img:visible").first).to_be_visible(timeout=60_000)
    expect(page.locator("#dv-compare")).to_contain_text("Test accuracy")
    assert page.locator("#dv-compare figure").count() == 4  # curves, lambda, two confusion matrices
    go(page, "Models")
    expect(page.get_by_role("group", name="Models that are offered")).to_contain_text("shapes-diffvit")


def test_the_figure_can_be_had_as_a_file(watched: Watched, tmp_path: Path) -> None:
    with watched.page.expect_download() as waiting:
        watched.page.get_by_role("link", name="Download this as a figure").click()
    waiting.value.save_as(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 1000
    assert waiting.value.suggested_filename == "diffvit-attention.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_everyone_can_use_it(chrome: Browser, address: str, script: Path, size: str, scheme: Any) -> None:
    """axe-core finds no serious violation on any tab; screenshots are kept."""
    width, height = SIZES[size]
    found = opened(chrome, address, color_scheme=scheme, bypass_csp=True)
    page = found.page
    page.set_viewport_size({"width": width, "height": height})
    page.add_script_tag(path=script)
    problems = []
    for tab in TABS:
        go(page, tab)
        if tab == "Compare":
            page.get_by_role("button", name="Compare").click()
            expect(page.locator("#dv-compare img:visible").first).to_be_visible(timeout=60_000)
        if tab == "Zero-shot":
            page.get_by_role("button", name="Name the picture").click()
            expect(page.locator("#dv-named .dv-model").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(400)
        for each in page.evaluate("axe.run()")["violations"]:
            problems.append((tab, each["impact"], each["id"], [node["html"][:120] for node in each["nodes"]]))
        page.screenshot(path=ARTEFACTS / f"{tab.lower()}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, f"{tab} is wider than the screen"
    page.context.close()
    assert [each for each in problems if each[1] in ("serious", "critical")] == []
    assert (found.outside, found.complaints) == ([], [])


def test_how_soon_a_slider_is_answered(
    chrome: Browser, address: str, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark, for the record: from the key to the new picture in the browser, two CIFAR-10 models of 32 pixels."""
    found = opened(chrome, address)
    page = found.page
    for label, name in (("Model", "cifar10-vit"), ("Beside it", "cifar10-diffvit")):
        page.get_by_label(label, exact=True).first.click()
        page.get_by_role("option", name=name, exact=True).click()
        expect(page.locator("#dv-view")).to_contain_text(name)
    page.get_by_role("slider", name="Layer").first.focus()
    seconds = []
    for turn in range(40):
        before = words(page)
        start = time.perf_counter()
        page.keyboard.press("ArrowLeft" if turn % 2 == 0 else "ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('#dv-view .dv-said').innerText !== before", arg=before, polling=4
        )
        seconds.append(time.perf_counter() - start)
    page.context.close()
    figures = {
        "slider_median_ms": round(1000 * statistics.median(seconds), 1),
        "slider_worst_ms": round(1000 * max(seconds), 1),
        **{"cores": os.cpu_count(), "torch": torch.__version__, "answers": len(seconds)},
    }
    for key, value in figures.items():
        record_property(key, value)
    (ARTEFACTS / "slider.json").write_text(json.dumps(figures, indent=1))
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
    assert len(seconds) == 40
