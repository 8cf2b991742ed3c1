"""One Chromium and one served page for this folder; a watched page for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from explorer_page import browser, explorer
from playwright.sync_api import Browser

from app_browser.watching import ARTEFACTS, Watched, opened
from diffvit.config import parse
from diffvit.training.loop import train


@pytest.fixture(scope="package")
def chrome() -> Iterator[Browser]:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with browser() as found:
        yield found


@pytest.fixture(scope="package")
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


@pytest.fixture
def watched(chrome: Browser, address: str) -> Iterator[Watched]:
    found = opened(chrome, address)
    yield found
    found.page.context.close()
    assert found.outside == []
    assert found.complaints == []
