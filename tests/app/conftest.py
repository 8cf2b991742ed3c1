"""One explorer for all tests of the app, and a server for each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from app_parts import made_client, made_explorer
from starlette.testclient import TestClient

from diffvit.app.explorer import Explorer


@pytest.fixture(scope="session")
def explorer() -> Explorer:
    return made_explorer()


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[TestClient]:
    with made_client(explorer) as made:
        yield made
