"""What the decoder refuses: claims larger than life, damage, and what is no image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, picture
from PIL import Image

from diffvit.data.images import MAX_PIXELS, decode
from diffvit.errors import InputError


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [100_000, 20_000, 5_001])
def test_a_large_claim_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(InputError, match="too many pixels"):
        decode(png_header(side, side), name="bomb.png")
    assert side * side > MAX_PIXELS


def test_a_large_claim_in_other_formats() -> None:
    webp = encoded(Image.new("RGB", (8, 8)), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    place = webp.index(b"VP8X") + 12
    wide = webp[:place] + b"\xff\x3f\0\xff\x3f\0" + webp[place + 6 :]
    gif = bytearray(encoded(Image.new("RGB", (8, 8)), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    for data in (wide, bytes(gif)):
        with pytest.raises(InputError):
            decode(data, name="bomb")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"BM",
        b"RIFF",
        b"%PDF-1.4",
        b"II*\0",
        b"hello" * 100,
        png_header(0, 5),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_not_an_image_is_one_clear_line(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode(data, name="cat.png")
    assert str(caught.value).startswith("cat.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(picture(40, 40)), kind)
    with pytest.raises(InputError):
        decode(data[: len(data) // 2], name="x")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]), st.data())
def test_flipped_bytes_give_pixels_or_a_refusal(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(Image.fromarray(picture(12, 12)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(damaged), name="x")
    except InputError:
        return
    assert found.dtype == np.uint8
    assert found.shape[0] == 3


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "red"), "PNG"))
    assert decode(path, name="a.png").shape == (3, 2, 3)
    for missing in (tmp_path / "none.png", tmp_path, Path("nul\0.png")):
        with pytest.raises(InputError, match="cannot be read"):
            decode(missing, name="that")


def test_a_file_over_the_byte_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(129 * 2**20)  # sparse
    with pytest.raises(InputError, match="too large"):
        decode(path, name="large.png")
