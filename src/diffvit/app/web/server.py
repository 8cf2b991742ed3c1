"""The web server: the page with its tabs, and two routes of our own, for uploaded pictures and drawn figures."""

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
from gradio import themes
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from diffvit.app.explorer import WAITING, WORKERS, Explorer
from diffvit.app.images import MAX_BYTES
from diffvit.app.panels import FORMATS
from diffvit.app.web import attention_tab, tabs
from diffvit.app.web.controls import INTERNAL_ERROR
from diffvit.app.web.guard import UPLOAD, Guard
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, InputError, check_choice

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
_HEADING = (
    "# diffvit\nLook inside Vision Transformers, Differential Vision Transformers and CLIP. "
    "Everything runs on this machine: no picture leaves it, none is written to its disk."
)


def application(explorer: Explorer) -> ASGIApp:
    """The whole server as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, explorer)
    theme = themes.Base(
        primary_hue=themes.colors.blue,
        neutral_hue=themes.colors.slate,
        font=["system-ui", "sans-serif"],  # the machine's own fonts
        font_mono=["ui-monospace", "monospace"],
        text_size=themes.sizes.text_md,
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
    mounted = gradio.mount_gradio_app(
        app,
        build_page(explorer),
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
        theme=theme,
        css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
    )
    return Guard(mounted)


def build_page(explorer: Explorer) -> gradio.Blocks:
    """The page with all its tabs."""
    with gradio.Blocks(title="diffvit", analytics_enabled=False, fill_width=False) as page:
        gradio.Markdown(_HEADING, elem_classes="dv-heading")
        image = gradio.State(explorer.start[0])
        with gradio.Tabs():
            with gradio.Tab("Attention"):
                attention_tab.build(explorer, image, page)
            with gradio.Tab("Compare"):
                tabs.build_compare(explorer)
            with gradio.Tab("Zero-shot"):
                tabs.build_zero_shot(explorer, image)
            with gradio.Tab("Shapes"):
                tabs.build_shapes(explorer, page)
            with gradio.Tab("Models"):
                tabs.build_models(explorer)
    return page.queue(max_size=WAITING, default_concurrency_limit=WORKERS, api_open=False)


def _add_routes(app: FastAPI, explorer: Explorer) -> None:
    @app.post(UPLOAD)
    async def picture(request: Request) -> JSONResponse:
        """A file as the request's body; the response is its token, or what is wrong with it."""
        data = bytearray()
        async for part in request.stream():
            if len(data) <= MAX_BYTES:  # the rest is read and dropped, so that the sender gets the response
                data += part
        name = unquote(request.headers.get("x-picture-name", ""), errors="replace")
        return JSONResponse(await run_in_threadpool(_add_upload, explorer, bytes(data), name))

    @app.get("/figure/{name}")
    async def figure(name: str) -> Response:
        """A figure that the page offered, drawn now."""
        token, _, form = name.rpartition(".")
        try:
            check_choice("format", form, FORMATS)
            content = await run_in_threadpool(explorer.figure, token, form)
        except DiffvitError as error:
            return JSONResponse({"detail": error.line}, 404 if isinstance(error, InputError | ConfigError) else 503)
        headers = {"content-disposition": f'attachment; filename="diffvit-attention.{form}"'}
        return Response(content, media_type=FORMATS[form], headers=headers)


def _add_upload(explorer: Explorer, data: bytes, name: str) -> dict[str, str]:
    """Its token or an error line. The status is 200 for both: a browser logs others in its console."""
    try:
        return {"token": explorer.limiter.call(lambda: explorer.uploads.add(data, name))}
    except DiffvitError as error:
        return {"error": error.line}
    except Exception:
        log.exception("an upload failed")
        return {"error": INTERNAL_ERROR}


@contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A listening socket that only this machine can reach; port 0 finds a free one.

    Raises:
        EnvironmentFault: the port is taken or not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            hint = "Take another with --port; 0 finds a free one."
            raise EnvironmentFault("--port", f"is not available (found {port}: {error.strerror})", hint) from None
        listening.listen(128)  # connections wait while the page is built, and are not refused
        yield listening


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until a signal stops it."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=30)
    uvicorn.Server(config).run(sockets=[listening])
