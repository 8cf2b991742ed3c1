"""``diffvit app``: what is wrong is one line, before anything is served."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from diffvit.app.web.server import HOST
from diffvit.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets up its own process; this one is not to keep that."""
    for name in ("OMP_NUM_THREADS", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setattr("diffvit.training.memory.give_memory_back", lambda: True)
    before = list(logging.getLogger("diffvit").handlers)
    yield
    logging.getLogger("diffvit").handlers = before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--port", "70000"], 2, "--port: must be 0 to 65535 (found 70000)"),
        (["--run", "no-such-run"], 3, "no-such-run"),
        (["--run", "no/such/run"], 3, "no/such/run"),
        (["--clip-weights", "no.pt"], 3, "no.pt: no such file. --clip-weights names OpenAI's RN50.pt"),
        (["--device", "gpu"], 2, "--device"),
        (["--pretrained", "no.pth"], 3, "no.pth: cannot be read (No such file or directory). Give a .safetensors"),
        (["--pretrained", "vit_smal"], 2, "pretrained: no model 'vit_smal' in timm"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["app", *arguments]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_taken_port_and_a_missing_library_are_named(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["app", "--port", str(port)]) == 4
    assert f"--port: is not available (found {port}: Address already in use)" in capsys.readouterr().err

    def missing(name: str) -> ModuleSpec | None:
        assert name == "gradio"
        return None

    monkeypatch.setattr("importlib.util.find_spec", missing)
    assert run(["app"]) == 4
    assert "needs Gradio, which is not installed. pip install 'diffvit[app]'" in capsys.readouterr().err


def test_the_browser_is_opened_where_that_is_asked_for(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    served, opened = list[str](), list[str]()
    monkeypatch.setattr("diffvit.app.web.server.application", lambda *_: "page")
    monkeypatch.setattr("diffvit.app.web.server.serve", lambda page, _: served.append(page))
    monkeypatch.setattr("webbrowser.open", opened.append)
    for flags in ([], ["--open", "--json"]):
        assert run(["app", "--port", "0", "--run", "shapes-vit", *flags]) == 0
    assert served == ["page", "page"]
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert opened == [found["page"]]
    assert found["models"][0] == "shapes-vit"
