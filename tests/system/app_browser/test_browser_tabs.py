"""The other tabs in a browser: own labels, shapes, runs side by side, models."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from app_browser.watching import Watched, changed, go, inner

pytestmark = pytest.mark.system


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


def test_shapes_with_their_scores(watched: Watched) -> None:
    page = watched.page
    go(page, "Shapes")
    expect(page.locator("#dv-shapes table")).to_have_count(2)
    before = inner(page, "#dv-shapes")
    page.get_by_role("slider", name="Clutter").first.fill("0.9")
    changed(page, "#dv-shapes", before)
    expect(page.locator("#dv-shapes")).to_contain_text("a uniform map")
    assert page.locator("#dv-shapes svg.dv-outline").count() == 2


def test_runs_side_by_side_and_the_models(watched: Watched) -> None:
    page = watched.page
    go(page, "Compare")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#dv-compare img:visible").first).to_be_visible(timeout=60_000)
    expect(page.locator("#dv-compare")).to_contain_text("Test accuracy")
    assert page.locator("#dv-compare figure").count() == 6  # loss, accuracy, lambda, classes, two confusion matrices
    go(page, "Models")
    expect(page.get_by_role("group", name="Available models")).to_contain_text("shapes-diffvit")
