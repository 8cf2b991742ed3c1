"""The explorer in a browser: ``make screenshot`` (needs Debian's chromium and CIFAR-10).

Writes the README's picture, and prints how soon the page answers a slider.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from playwright.async_api import Page, async_playwright

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
            await tab.get_by_role("slider", name="Layer").first.fill("2")
            await tab.wait_for_function("document.querySelector('#dv-view').innerText.includes('layer 2 (of')")
            await tab.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
            await tab.mouse.move(0, 0)
            await tab.wait_for_timeout(500)
            await tab.screenshot(path=out)
            print(json.dumps(await slider_latency(tab)))
            await opened.close()


async def slider_latency(tab: Page, turns: int = 40) -> dict[str, Any]:
    """Milliseconds from a key on the layer's slider to the new maps of both models: median and worst."""
    text = "document.querySelector('#dv-view .dv-text').innerText"
    await tab.get_by_role("slider", name="Layer").first.focus()
    seconds = []
    for turn in range(turns):
        before = await tab.evaluate(text)
        start = time.perf_counter()
        await tab.keyboard.press("ArrowLeft" if turn % 2 == 0 else "ArrowRight")
        await tab.wait_for_function(f"before => {text} !== before", arg=before, polling=4)
        seconds.append(time.perf_counter() - start)
    median, worst = (round(1000 * each, 1) for each in (statistics.median(seconds), max(seconds)))
    machine = {"cores": os.cpu_count(), "torch": torch.__version__}
    return {"slider_median_ms": median, "slider_worst_ms": worst, "answers": turns, **machine}


if __name__ == "__main__":
    asyncio.run(screenshot(Path(sys.argv[1])))
