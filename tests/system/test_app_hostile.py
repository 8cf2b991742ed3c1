"""200 hostile uploads to a running page: a message each time, never a traceback, and the memory comes back."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from explorer_page import explorer
from PIL import Image

from benchmarks.app_load import resident
from diffvit.app.images import MAX_BYTES

pytestmark = pytest.mark.system
_NAMES = ["a.png", "..\\..\\boot.ini", "../../../etc/passwd", "x\0.png", "<img src=x onerror=alert(1)>.gif"]
_NAMES.append("A" * 5_000)


def encoded(image: Image.Image, form: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    depth = {"RGB": 3, "CMYK": 4, "L": 1, "RGBA": 4, "LA": 2}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if depth == 1 else pixels, mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed_png(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated(draw: random.Random) -> bytes:
    whole = encoded(noise(), draw.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))
    return whole[: draw.randrange(1, len(whole))]


def flipped(draw: random.Random) -> bytes:
    whole = bytearray(encoded(noise(), draw.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP"])))
    for _ in range(20):
        whole[draw.randrange(4, len(whole))] = draw.randrange(256)
    return bytes(whole)


def bomb(draw: random.Random) -> bytes:
    """Few bytes that would be many pixels, by the header or by the data."""
    if draw.random() < 0.5:
        return claimed_png(draw.choice([60_000, 2**31 - 1]), draw.choice([60_000, 2**31 - 1]), zlib.compress(bytes(9)))
    return claimed_png(4_900, 5_000, zeros())  # just under the cap, and all of it zero


@cache
def zeros() -> bytes:
    return zlib.compress(bytes(60 * 2**20), 9)


def renamed(draw: random.Random) -> bytes:
    return draw.choice(
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n/x {pop} def\n",
            b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
            b"%PDF-1.7\n1 0 obj\n<< /OpenAction << /S /JavaScript >> >>\n",
            b"GIF89a" + b"<script>alert(1)</script>" * 9,
            b"II*\0" + bytes(200),
            b"\x00\x00\x00\x20ftypavif" + bytes(100),
            b"#!/bin/sh\nrm -rf /\n",
        ]
    )


def animated(draw: random.Random) -> bytes:
    frames = [noise(size=(32, 32)).rotate(number) for number in range(40)]
    return encoded(frames[0], draw.choice(["GIF", "WEBP"]), save_all=True, append_images=frames[1:])


def unusual(draw: random.Random) -> bytes:
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65_536, (40, 40), dtype=np.uint16))
    return draw.choice(
        [
            encoded(noise("CMYK"), "JPEG"),
            encoded(deep, "PNG"),
            encoded(noise("LA"), "PNG"),
            encoded(noise("RGBA"), "PNG"),
            encoded(noise().quantize(7), "PNG", transparency=0),
            encoded(noise("L"), "BMP"),
        ]
    )


def sized(draw: random.Random) -> bytes:
    size = draw.choice([(1, 1), (1, 20_000), (20_000, 1), (7, 7), (3, 9_000)])
    return encoded(Image.new("RGB", size, "red"), draw.choice(["PNG", "BMP"]))


def large(draw: random.Random) -> bytes:
    return b"\xff\xd8\xff" + bytes(MAX_BYTES + draw.randrange(2**20))


def empty(draw: random.Random) -> bytes:
    return bytes(draw.randrange(3))


# What is sent, and whether it must be refused, must be taken, or may be either.
KINDS: tuple[tuple[Callable[[random.Random], bytes], bool | None], ...] = (
    *((truncated, None), (flipped, None), (bomb, None), (renamed, False), (animated, True)),
    *((unusual, True), (sized, False), (large, False), (empty, False)),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    with explorer(folder) as (address, pid, log):
        yield address, pid, log, folder


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_two_hundred_hostile_uploads(page: tuple[str, int, Path, Path]) -> None:
    from diffvit.app.web.controls import INTERNAL_ERROR  # gradio takes seconds: only where it is needed

    address, pid, log, folder = page
    draw = random.Random(7)
    with httpx.Client(base_url=address, timeout=60) as client:

        def send(number: int) -> tuple[bool | None, dict[str, str]]:
            make, wanted = KINDS[number % len(KINDS)]
            name = quote(_NAMES[number % len(_NAMES)])
            answer = client.post("/picture", content=make(draw), headers={"x-picture-name": name})
            assert answer.status_code == 200
            assert "Traceback" not in answer.text
            return wanted, answer.json()

        for number in range(len(KINDS) * 2):  # every decoder is there, and the memories of pictures have their size
            send(number)
        before, known = resident(pid), files_of(folder)
        refused = 0
        for number in range(200):
            wanted, found = send(number)
            assert list(found) in (["token"], ["error"])
            assert wanted in (None, "token" in found), (KINDS[number % len(KINDS)][0].__name__, found)
            if "error" in found:
                refused += 1
                said = found["error"]
                assert said != INTERNAL_ERROR  # every fault is a known one
                assert len(said) < 400
                assert ".." not in said
                assert "\0" not in said
        after = resident(pid)
        assert client.get("/").status_code == 200
    assert refused > 90
    assert after < 1.1 * before, f"{after >> 20} MiB after {before >> 20} MiB"
    assert files_of(folder) == known  # nothing was written
    assert "Traceback" not in log.read_text()
