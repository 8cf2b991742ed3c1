"""The explorer's picture in the README: ``make screenshot`` (needs Debian's chromium and CIFAR-10)."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from benchmarks.app_load import page

WIDTH, HEIGHT = 1280, 1040
IMAGE = 19  # of the test set
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


async def screenshot(out: Path) -> None:
    """Start the page, look at a test image with both packaged models, choose a layer, and keep the picture."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("error: no browser. apt-get install chromium")
    with tempfile.TemporaryDirectory() as empty:
        async with page(Path(empty)) as (address, _), async_playwright() as play:
            opened = await play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            tab = await opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            await tab.goto(address)
            await tab.wait_for_selector("#dv-view .dv-model")
            await tab.get_by_role("button", name="Next images").click()
            await tab.locator(f"#dv-thumbs [data-index='{IMAGE}']").click()
            await tab.get_by_role("slider", name="Layer").first.fill("3")
            await tab.wait_for_function("document.querySelector('#dv-view').innerText.includes('layer 3 of')")
            await tab.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
            await tab.mouse.move(0, 0)
            await tab.wait_for_timeout(500)
            await tab.screenshot(path=out)
            await opened.close()


if __name__ == "__main__":
    asyncio.run(screenshot(Path(sys.argv[1])))
