"""A small desk for tests: packaged shapes models, no CIFAR-10, and the server without a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.testclient import TestClient
from starlette.types import ASGIApp

from diffvit.app.desk import Desk
from diffvit.app.gate import Gate
from diffvit.app.models import Models, offers_of
from diffvit.app.web.server import application

HOST = "http://127.0.0.1:7860"


def made_desk(gate: Gate | None = None) -> Desk:
    """All packaged models on the CPU."""
    return Desk(Models(offers_of([], Path("none")), "cpu"), None, gate)


def made_client(desk: Desk) -> TestClient:
    """Asks the server as a browser on this machine would; its faults are raised here."""

    async def made() -> ASGIApp:
        return application(desk)

    # Inside a loop: outside one Gradio starts loops of its own and does not close them.
    return TestClient(asyncio.run(made()), base_url=HOST)
