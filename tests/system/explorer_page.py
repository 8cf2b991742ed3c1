"""``diffvit app`` as its own process, and Debian's Chromium to look at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

_PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
_AXE = "axe-core@4.14.1"


def chromium() -> str:
    """The browser's program; Debian's package is installed where that is allowed."""
    found = next((place for place in _PLACES if Path(place).exists()), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        given = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run(["apt-get", *command], env=given, check=False, stdout=subprocess.DEVNULL)
        found = next((place for place in _PLACES if Path(place).exists()), None)
    assert found is not None, "Chromium is not installed: apt-get install chromium"
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def axe(folder: Path) -> Path:
    """axe-core's script, from its npm package."""
    done = subprocess.run(
        ["npm", "pack", "--silent", _AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"npm could not fetch {_AXE}: {done.stderr}"
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        (folder / "axe.min.js").write_bytes(member.read())
    return folder / "axe.min.js"


@contextmanager
def explorer(folder: Path, arguments: Sequence[str] = (), data: str = "") -> Iterator[tuple[str, int, Path]]:
    """The page's address, its process and its log, while it runs in an empty folder."""
    log = folder / "app.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIFFVIT_")}
    environment |= {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
        **({"DIFFVIT_DATA": data} if data else {}),
    }
    command = [sys.executable, "-m", "diffvit.cli.main", "app", "--port", "0", "--json", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield _address(process, log), process.pid, log
        finally:
            process.terminate()
            assert process.wait(20) in (0, -15, 143), log.read_text()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
        if lines:
            return json.loads(lines[0])["page"]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"the page did not come: {log.read_text()}")
