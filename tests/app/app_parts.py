"""A small explorer for tests: packaged shapes models, no CIFAR-10, and the server without a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from starlette.types import ASGIApp

from diffvit.app.explorer import Explorer
from diffvit.app.limits import Limiter
from diffvit.app.models import Models, list_models
from diffvit.app.web.server import application

HOST = "http://127.0.0.1:7860"
# Values of the first tab's controls after the models.
DIALS: dict[str, Any] = {
    **{"layer": 1, "head": 0, "average": True, "method": "none", "target": "the predicted class"},
    **{"query": "the model", "row": 0, "column": 0, "strength": 1.0, "colours": "inferno", "mass": 1.0},
    **{"fusion": "mean", "sign": "clamp", "discard": 0.0, "residual": 0.5},
}


def made_explorer(limiter: Limiter | None = None) -> Explorer:
    """All packaged models on the CPU."""
    return Explorer(Models(list_models([], Path("none")), "cpu"), None, limiter)


def made_client(explorer: Explorer) -> TestClient:
    """Asks the server as a browser on this machine would; its faults are raised here."""

    async def made() -> ASGIApp:
        return application(explorer)

    # Inside a loop: outside one Gradio starts loops of its own and does not close them.
    return TestClient(asyncio.run(made()), base_url=HOST)
