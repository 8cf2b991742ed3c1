"""The ASGI layer that filters requests: only the page's own addresses, from this machine, small, naming no files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY = 256 * 2**10  # bytes of a request to Gradio
UPLOAD = "/picture"
# What the page needs of Gradio; its routes for files, proxies, uploads and editing are not among it.
_PATHS = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", UPLOAD})
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/figure/")
_GRADIO = "/gradio_api/"
_GRADIO_ROUTES = (
    *("info", "queue/", "run/", "heartbeat/", "reset", "cancel", "startup-events", "app_id", "component_server"),
)
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
    """Wraps the whole application.

    It answers 403 to other hosts and origins and to every websocket, 404 to addresses that the page does not use, 413
    to large requests, and 400 to those that name a file or an address, since Gradio would open it. Every response gets
    a content security policy under which the browser sends requests to no other server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        refusal = _check_address(scope)
        if refusal is None and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body, refusal = await _read_body(receive)
            receive = _replay(body, receive)
        await (refusal or self._app)(scope, receive, send_with_headers)


def _check_address(scope: Scope) -> JSONResponse | None:
    """The refusal of a request by its host, origin, path or method; None if it is allowed."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        page = urlsplit(headers.get("origin", "")).netloc
    except ValueError:
        host = page = None
    if host not in HOSTS:
        return _refuse(403, "only requests from this machine are allowed")
    if "origin" in headers and page != headers.get("host"):
        return _refuse(403, "requests from other pages are refused")
    path = scope["path"]
    known = path in _PATHS or path.startswith(_FOLDERS)
    if path.startswith(_GRADIO):
        known = path.removeprefix(_GRADIO).startswith(_GRADIO_ROUTES)
    if not known or ".." in path or scope["method"] not in ("GET", "HEAD", "POST"):
        return _refuse(404, "no such address")
    return None


async def _read_body(receive: Receive) -> tuple[bytes, JSONResponse | None]:
    """The body, and the refusal if it is too large, not JSON, or names a file."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return b"", _refuse(413, f"is too large (over {MAX_BODY >> 10} KiB)")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            break
    if not body:
        return body, None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return b"", _refuse(400, "is not JSON")
    return body, _refuse(400, "must not name a file") if _names_a_file(values) else None


def _names_a_file(values: Any) -> bool:
    """Whether Gradio would take some part of this for a file: a path or an address that it then opens."""
    left = [values]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            if "path" in part or "meta" in part or "url" in part:
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then whatever comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _refuse(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": f"diffvit: {why}."}, status)
