"""The page behind its guard: Gradio for the controls, two routes of our own for pictures in and figures out."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import gradio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from diffvit.app.desk import Desk
from diffvit.app.uploads import MAX_BYTES
from diffvit.app.web.answers import WENT_WRONG
from diffvit.app.web.guard import UPLOAD, Guard
from diffvit.app.web.page import build, looks
from diffvit.errors import DiffvitError, EnvironmentFault, InputError

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
_NAME = "x-picture-name"


def application(desk: Desk, openai: Path | None = None) -> ASGIApp:
    """The whole server as an ASGI application; arguments as :func:`diffvit.app.web.page.build`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, desk)
    mounted = gradio.mount_gradio_app(
        app,
        build(desk, openai),
        path="/",
        server_name=HOST,
        show_error=False,
        max_file_size=0,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        **looks(),
    )
    return Guard(mounted)


@contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone; closed afterwards.

    Args:
        port: 0 finds a free one.

    Raises:
        EnvironmentFault: the port is taken or not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            hint = "Take another with --port; 0 finds a free one."
            raise EnvironmentFault("--port", f"cannot be had (found {port}: {error.strerror})", hint) from None
        listening.listen(128)  # whoever comes while the page is built waits, and is not refused
        yield listening


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until a signal stops it.

    Args:
        app: of :func:`application`.
        listening: of :func:`bound`.
    """
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=30)
    uvicorn.Server(config).run(sockets=[listening])


def _add_routes(app: FastAPI, desk: Desk) -> None:
    @app.post(UPLOAD)
    async def picture(request: Request) -> JSONResponse:
        """A file as the request's body; answers with its token, or with what is wrong with it."""
        data = bytearray()
        async for part in request.stream():
            if len(data) <= MAX_BYTES:  # the rest is read and dropped, so that the sender gets the answer
                data += part
        name = unquote(request.headers.get(_NAME, ""), errors="replace")
        return JSONResponse(await run_in_threadpool(_taken, desk, bytes(data), name))

    @app.get("/figure/{name}")
    async def figure(name: str) -> Response:
        """A figure that the page offered, drawn now."""
        try:
            content = await run_in_threadpool(desk.figure, name.removesuffix(".png"))
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 404)
        except DiffvitError as error:
            return JSONResponse({"detail": str(error)}, 503)
        headers = {"content-disposition": 'attachment; filename="diffvit-attention.png"'}
        return Response(content, media_type="image/png", headers=headers)


def _taken(desk: Desk, data: bytes, name: str) -> dict[str, str]:
    """What the page gets to know of an upload: status 200 whatever it is, since a browser complains of others."""
    try:
        return {"token": desk.gate.call(lambda: desk.uploads.add(data, name))}
    except DiffvitError as error:
        return {"error": str(error)}
    except Exception:
        log.exception("an upload failed")
        return {"error": WENT_WRONG}
