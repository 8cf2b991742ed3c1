"""Everyone can use the page: every tab, laptop and phone, light and dark, under axe-core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from explorer_page import axe
from playwright.sync_api import Browser, expect

from app_browser.watching import ARTEFACTS, go, opened

pytestmark = pytest.mark.system
TABS = ("Attention", "Compare", "Zero-shot", "Shapes", "Models")
SIZES = {"laptop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return axe(tmp_path_factory.mktemp("axe"))


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
            page.get_by_role("button", name="Classify").click()
            expect(page.locator("#dv-named .dv-model").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(400)
        for each in page.evaluate("axe.run()")["violations"]:
            problems.append((tab, each["impact"], each["id"], [node["html"][:120] for node in each["nodes"]]))
        page.screenshot(path=ARTEFACTS / f"{tab.lower()}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, f"{tab} is wider than the screen"
    page.context.close()
    assert [each for each in problems if each[1] in ("serious", "critical")] == []
    assert (found.outside, found.complaints) == ([], [])
