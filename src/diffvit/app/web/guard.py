"""What may reach the page's server: its own addresses, from this machine, in small pieces, without files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_QUESTION = 256 * 2**10  # bytes of a question to Gradio
UPLOAD = "/picture"
# What the page needs of Gradio; its file, proxy, upload and editing routes are not among it.
_PAGES = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", UPLOAD})
_BELOW = ("/assets/", "/static/", "/svelte/", "/figure/")
_GRADIO = "/gradio_api/"
_ASKED = ("info", "queue/", "run/", "heartbeat/", "reset", "cancel", "startup-events", "app_id", "component_server")
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """An ASGI layer around the whole application.

    It answers 403 to other hosts and origins and to every websocket, 404 to addresses that the page does not use, 413
    to large questions and 400 to those that name a file or an address: Gradio would fetch it. Every answer gets a
    content policy under which the browser asks no other server for anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
            return
        refused = _refusal(scope)
        if refused is None and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body, refused = await _question(receive)
            receive = _again(body, receive)
        if refused is not None:
            await refused(scope, receive, _with_headers(send))
            return
        await self._app(scope, receive, _with_headers(send))


def _refusal(scope: Scope) -> JSONResponse | None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if _host(f"//{headers.get('host', '')}") not in HOSTS:
        return _says(403, "this page is for this machine alone")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return _says(403, "another page may not ask")
    path = scope["path"]
    known = path in _PAGES or path.startswith(_BELOW)
    if path.startswith(_GRADIO):
        known = path.removeprefix(_GRADIO).startswith(_ASKED)
    if not known or ".." in path or scope["method"] not in ("GET", "HEAD", "POST"):
        return _says(404, "no such address")
    return None


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _question(receive: Receive) -> tuple[bytes, JSONResponse | None]:
    """The body, and why it is refused if it is."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_QUESTION:
            return b"", _says(413, f"is too large (over {MAX_QUESTION >> 10} KiB)")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            break
    if not body:
        return body, None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return b"", _says(400, "is not JSON")
    return body, _says(400, "may name no file") if _names_a_file(asked) else None


def _names_a_file(asked: Any) -> bool:
    """Whether Gradio would take a part of this for a file: a path or an address that it then opens."""
    left = [asked]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            if "path" in part or "meta" in part or "url" in part:
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return sending


def _says(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": f"diffvit: {why}."}, status)
