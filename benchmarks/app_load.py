"""The explorer under load: ``python -m benchmarks.app_load`` starts it, lets many visitors ask at once, and counts.

Each visitor opens the page and then, with pauses as people make them, moves dials, picks test images, brings a picture
of its own and fetches figures. Every answer is counted: given, "busy", or lost; beside it a probe asks the server for
a small file each second, and its memory is read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from diffvit.app.explorer import MAPS_BUDGET
from diffvit.app.images import UPLOAD_BUDGET
from diffvit.app.web.guard import UPLOAD
from diffvit.errors import DiffvitError, EnvironmentFault
from diffvit.files import Row, disk_faults, replace, to_json, write_csv
from diffvit.training.environment import describe
from tools import pages
from tools.app_load import FOLDER, QUESTIONS, SECONDS, SUMMARY, of_folder

_RUN = "/gradio_api/run/predict"
_PATIENCE = 60.0  # seconds that a visitor waits for an answer before it counts as lost
_PAUSE = (0.2, 1.2)  # seconds between a visitor's questions
_START = 120.0  # seconds until the page must be there
_KINDS = {"dials": 40, "pick": 8, "upload": 2, "figure": 1}  # questions and how often they come
_DIALS = 18  # inputs of the handler that draws the first tab


@dataclass
class Tally:
    """What came of every question.

    Args:
        begin: when the load began, monotonic seconds.
        answers: (seconds since the begin, seconds taken, kind of question, outcome).
        probes: (seconds since the begin, seconds taken by the probe; None where it was not answered).
        memory: (seconds since the begin, bytes of the server).
    """

    begin: float = field(default_factory=time.monotonic)
    answers: list[tuple[float, float, str, str]] = field(default_factory=list)
    probes: list[tuple[float, float | None]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.begin


class Visitor:
    """Someone who plays with the page.

    Args:
        client: asks the server.
        number: of the visitor; seeds what it does.
        tally: where its answers are counted.
    """

    def __init__(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        self._client, self._tally = client, tally
        self._random = random.Random(number)
        self._session = f"visitor-{number}"
        self._functions: dict[str, int] = {}
        self._link = ""  # to the figure of the last answer
        self._models = ("shapes-vit", "shapes-diffvit")

    async def stay(self, until: float) -> None:
        """Open the page and ask until this second of the load."""
        await asyncio.sleep(self._random.uniform(0, 2))
        await self._count("page", self._open())
        while self._tally.now() < until:
            kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
            await self._count(kind, self._question(kind))
            await asyncio.sleep(self._random.uniform(*_PAUSE))

    async def warm(self) -> None:
        """One question of each kind, counted nowhere."""
        await self._open()
        for kind in _KINDS:
            await self._question(kind)

    async def _count(self, kind: str, question: Any) -> None:
        start = self._tally.now()
        try:
            outcome = await question
        except (httpx.HTTPError, ValueError, LookupError):
            outcome = "lost"
        self._tally.answers.append((start, self._tally.now() - start, kind, outcome))

    async def _open(self) -> str:
        page = await self._client.get("/")
        config = (await self._client.get("/config")).json()
        for each in config["dependencies"]:
            if len(each["inputs"]) == _DIALS:
                self._functions["dials"] = each["id"]
            if any(event == "select" for _, event in each["targets"]):
                self._functions["pick"] = each["id"]
        return "answered" if page.status_code == 200 and len(self._functions) == 2 else "lost"

    async def _ask(self, kind: str, data: list[Any], event: dict[str, Any] | None = None) -> str:
        asked = {"data": data, "fn_index": self._functions[kind], "session_hash": self._session, "event_data": event}
        answer = await self._client.post(_RUN, json=asked)
        if answer.status_code != 200:
            return "lost"
        found = answer.json()["data"]
        if "is busy" in str(found[-1]):
            return "busy"
        if kind == "dials":
            self._link = str(found[0]).partition('class="dv-download" href="')[2].partition('"')[0]
        return "answered" if not found[-1] else "lost"

    async def _dials(self) -> str:
        draw = self._random
        dials = [draw.randint(0, 3), draw.randint(0, 3), draw.random() < 0.5, "none", "the predicted class"]
        dials += [draw.choice(["the model", "a patch"]), draw.randint(0, 7), draw.randint(0, 7), draw.random()]
        dials += ["viridis", draw.uniform(0.1, 1), "mean"]
        return await self._ask("dials", [None, *self._models, *dials, "clamp", 0.0, 0.5])

    async def _pick(self) -> str:
        return await self._ask("pick", [], {"index": self._random.randrange(2_000), "owner": self._models[0]})

    async def _upload(self) -> str:
        pixels = np.random.default_rng(self._random.randrange(10**6)).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        found = (await self._client.post(UPLOAD, content=buffer.getvalue())).json()
        return "answered" if "token" in found else "busy" if "is busy" in found["error"] else "lost"

    async def _figure(self) -> str:
        if not self._link:
            return await self._dials()
        answer = await self._client.get(f"/{self._link}")
        return {200: "answered", 503: "busy"}.get(answer.status_code, "lost")

    async def _question(self, kind: str) -> str:
        return await {"dials": self._dials, "pick": self._pick, "upload": self._upload, "figure": self._figure}[kind]()


async def load(address: str, pid: int, clients: int, seconds: float) -> Tally:
    """Let so many visitors ask for so long; what came of it.

    Args:
        address: of the page.
        pid: of its process.
        clients: visitors at a time.
        seconds: how long.
    """
    tally = Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=_PATIENCE, limits=limits) as client:
        watching = asyncio.create_task(_watch(client, pid, tally))
        await asyncio.gather(*(Visitor(client, number, tally).stay(seconds) for number in range(clients)))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return tally


async def _watch(client: httpx.AsyncClient, pid: int, tally: Tally) -> None:
    """Each second: is the server there, and how much memory has it."""
    while True:
        start = tally.now()
        tally.memory.append((start, resident(pid)))
        try:
            answer = await client.get("/theme.css", timeout=10)
            tally.probes.append((start, tally.now() - start if answer.status_code == 200 else None))
        except httpx.HTTPError:
            tally.probes.append((start, None))
        await asyncio.sleep(1)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@contextlib.asynccontextmanager
async def page(folder: Path | None = None) -> AsyncIterator[tuple[str, int]]:
    """``diffvit app`` as a process of its own: its address and its number.

    Args:
        folder: where it starts, and looks for runs; by default here.

    Raises:
        EnvironmentFault: it did not come.
    """
    command = [sys.executable, "-m", "diffvit.cli.main", "app", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START):
            while not (line := await asyncio.to_thread(process.stdout.readline)).startswith("{"):
                if not line:
                    raise EnvironmentFault("diffvit app", "ended before its page was there")
        yield json.loads(line)["page"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 20)
        if process.stdout is not None:
            process.stdout.close()


def summary(tally: Tally, clients: int, seconds: float, known: Mapping[str, Any]) -> dict[str, Any]:
    """What came of the load in a few figures; seconds, and bytes of memory.

    Args:
        tally: every answer.
        clients: visitors at a time.
        seconds: how long they asked.
        known: of :func:`diffvit.training.environment.describe`.
    """
    kinds = {}
    for kind in QUESTIONS:
        mine = [each for each in tally.answers if each[2] == kind]
        given = [each[1] for each in mine if each[3] == "answered"]
        outcomes = {name: sum(each[3] == name for each in mine) for name in ("answered", "busy", "lost")}
        kinds[kind] = {"asked": len(mine), **outcomes, **_quantiles(given)}
    probes = [taken for _, taken in tally.probes if taken is not None]
    return {
        **{"clients": clients, "seconds": seconds, "kinds": kinds},
        "probes": {"asked": len(tally.probes), "answered": len(probes), **_quantiles(probes)},
        "memory": {"first": tally.memory[0][1], "most": max(each for _, each in tally.memory)}
        | {"last": tally.memory[-1][1]},
        "kept": MAPS_BUDGET + UPLOAD_BUDGET,
        **{key: known[key] for key in ("hardware", "cores", "torch", "python", "diffvit", "commit")},
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"median": values[0] if values else None, "p95": None, "worst": max(values, default=None)}
    return {
        "median": round(statistics.median(values), 4),
        "p95": round(statistics.quantiles(values, n=20)[-1], 4),
        "worst": round(max(values), 4),
    }


def by_second(tally: Tally) -> list[Row]:
    """A row for each second: answers given, busy and lost, their median time, and the server's memory."""
    rows = []
    for second in range(int(max(start for start, *_ in tally.answers)) + 1):
        mine = [each for each in tally.answers if int(each[0]) == second]
        memory = [each for at, each in tally.memory if at <= second + 1]
        given = [each[1] for each in mine if each[3] == "answered"]
        counts = {name: sum(each[3] == name for each in mine) for name in ("answered", "busy", "lost")}
        seconds = round(statistics.median(given), 4) if given else None
        rows.append({"second": second, **counts, "median_seconds": seconds, "memory": memory[-1] if memory else None})
    return rows


async def measure(clients: int, seconds: float, out: Path) -> None:
    """Start the page, load it, and write the report.

    Raises:
        DiffvitError: the page did not come, or the disk refuses.
    """
    async with page() as (address, pid):
        async with httpx.AsyncClient(base_url=address, timeout=_PATIENCE) as client:  # models and pictures come first
            visitor = Visitor(client, 0, Tally())
            await visitor.warm()
        tally = await load(address, pid, clients, seconds)
        await asyncio.sleep(2)
        tally.memory.append((tally.now(), resident(pid)))
    known = describe(device="cpu", precision="fp32", threads=0, processes=1)
    write(summary(tally, clients, seconds, known), by_second(tally), out)


def write(found: Mapping[str, Any], rows: Sequence[Row], out: Path) -> None:
    """Write the figures, and the report and the plot from them.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        replace(out / SUMMARY, to_json(dict(found)))
    write_csv(out / SECONDS, rows)
    pages.update({Path(name): content for name, content in of_folder(out).items()}, "app_load", out, check=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_load", description=__doc__)
    parser.add_argument("--clients", type=int, default=50, help="visitors at a time (default 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"default {FOLDER}")
    given = parser.parse_args(arguments)
    try:
        asyncio.run(measure(given.clients, given.seconds, given.out))
    except DiffvitError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return error.exit_code
    print(given.out / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
