"""Pictures in a browser: test images by class and by error, and uploads of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from app_browser.watching import FIRST, Watched, changed, inner

pytestmark = pytest.mark.system


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
