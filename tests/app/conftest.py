"""One explorer for all tests of the app, and a server for each file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from app_parts import made_client, made_explorer
from starlette.testclient import TestClient

from diffvit.app.explorer import Explorer
from diffvit.data import shapes

_DRAWN = cache(shapes.generate)


@pytest.fixture(autouse=True)
def _drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All explorers show the same 2,000 test images."""
    monkeypatch.setattr(shapes, "generate", _DRAWN)


@pytest.fixture(scope="session")
def explorer() -> Explorer:
    return made_explorer()


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[TestClient]:
    with made_client(explorer) as made:
        yield made
