"""A page that is watched: what it asked of other places, what it complained of, and hands to use it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

ARTEFACTS = Path("artefacts/explorer").resolve()
FIRST, SECOND = "#dv-view .dv-model >> nth=0", "#dv-view .dv-model >> nth=1"


@dataclass
class Watched:
    """A page, and what it asked for and complained of."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


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
    watched.page.wait_for_selector(FIRST, timeout=60_000)
    return watched


def go(page: Page, tab: str) -> None:
    """To a tab; on a phone some are behind a button."""
    wanted = page.get_by_role("tab", name=tab)
    if not wanted.first.is_visible():
        page.locator(".overflow-menu button, button.overflow-menu").first.click()
    wanted.first.click() if wanted.first.is_visible() else page.get_by_text(tab, exact=True).last.click()
    page.wait_for_timeout(700)  # a tab is made when it is first opened; what is typed before it listens is lost


def words(page: Page) -> str:
    return page.inner_text(f"{FIRST} >> .dv-text >> nth=0")


def changed(page: Page, selector: str, before: str) -> None:
    """Wait until something is not what it was."""
    page.wait_for_function(
        "([selector, before]) => document.querySelector(selector)?.innerHTML !== before", arg=[selector, before]
    )


def inner(page: Page, selector: str) -> str:
    return page.locator(selector).inner_html()
