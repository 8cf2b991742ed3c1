"""How soon a slider is answered in the browser."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import pytest
import torch
from playwright.sync_api import Browser, expect

from app_browser.watching import ARTEFACTS, opened, words

pytestmark = [pytest.mark.system, pytest.mark.alone]


def test_how_soon_a_slider_is_answered(
    chrome: Browser, address: str, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark, for the record: from the key to the new picture in the browser, two CIFAR-10 models of 32 pixels."""
    found = opened(chrome, address)
    page = found.page
    for label, name in (("Model", "cifar10-vit"), ("Second model", "cifar10-diffvit")):
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
            "before => document.querySelector('#dv-view .dv-text').innerText !== before", arg=before, polling=4
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
