"""What reaches the server: own addresses, this machine, small questions without files."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from app_parts import HOST
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from diffvit.app.web.guard import MAX_BODY, Guard


def test_the_page_comes_with_a_policy_that_lets_it_ask_nobody_else(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert client.get("/config").json()["title"] == "diffvit"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert client.get("/theme.css").status_code == 200
    assert "url(http" not in client.get("/theme.css").text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/gradio_api/upload",
        "/gradio_api/openapi.json",
        "/gradio_api/vibe-code/",
        "/gradio_api/runs",
        "/file=/etc/passwd",
        "/docs",
        "/static/../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/login",
        "/figure/nothing.png",
        "/figure/%2e%2e%2fsecret",
    ],
)
def test_other_addresses_are_not_there(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, path)
        assert answer.status_code in (404, 405)
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:7860"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": HOST}, 200),
        ({"host": "localhost:7860"}, 200),
    ],
)
def test_other_hosts_and_pages_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/config", headers=headers).status_code == status


FILE = {"path": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/component_server"])
@pytest.mark.parametrize(
    "data", [[FILE], [[[FILE]]], [{"a": FILE}], [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]]
)
def test_a_question_that_names_a_file_is_refused(client: TestClient, path: str, data: list[Any]) -> None:
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": "x"}).replace("path", "\\u0070ath")
    answer = client.post(path, content=body)
    assert (answer.status_code, answer.json()) == (400, {"detail": "diffvit: must not name a file."})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (MAX_BODY + 1), 413),
        (b"[" * 100_000, 400),
        (b"no json", 400),
        (b"\xff\xfe", 400),
        (b"multipart; boundary", 400),
    ],
)
def test_strange_questions_are_refused(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post("/gradio_api/queue/join", content=body)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_a_body_in_pieces_reaches_the_application_whole() -> None:
    seen: list[bytes] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(message["body"])
        assert not message["more_body"]
        assert (await receive())["type"] == "http.disconnect"

    pieces = [
        {"type": "http.request", "body": b'{"data":', "more_body": True},
        {"type": "http.request", "body": b" [1]}", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/run/x", "headers": [(b"host", b"localhost:1")]}
    asyncio.run(Guard(inner)(scope, receive, send))
    assert seen == [b'{"data": [1]}']


@pytest.mark.parametrize("headers", [{}, {"origin": HOST}, {"origin": "http://evil.example"}])
def test_a_websocket_is_refused_before_it_opens(headers: dict[str, str]) -> None:
    async def opens(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    for path in ("/", "/gradio_api/queue/join"):
        with (
            pytest.raises(WebSocketDisconnect),
            TestClient(Guard(opens), base_url=HOST).websocket_connect(path, headers=headers),
        ):
            pass
