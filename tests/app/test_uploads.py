from __future__ import annotations

import io

import pytest
from PIL import Image

from diffvit.app.uploads import BUDGET, MAX_BYTES, SECONDS, Uploads, harmless
from diffvit.errors import InputError


def png(width: int = 20, height: int = 10, noise: bool = False) -> bytes:
    image = (
        Image.effect_noise((width, height), 90).convert("RGB") if noise else Image.new("RGB", (width, height), "red")
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0 if noise else 6)
    return buffer.getvalue()


def test_a_picture_comes_back_as_it_was_sent() -> None:
    uploads = Uploads()
    token = uploads.add(png(), "holiday.png")
    name, pixels = uploads.pixels(token)
    assert (name, pixels.shape) == ("holiday.png", (3, 10, 20))
    assert pixels[0].min() == 255
    assert len({uploads.add(png(), "a.png") for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cat.png: is not an image of a known format (found an empty file"),
        (b"%PDF-1.7", "is not an image of a known format"),
        (png(40, 40, noise=True)[:900], "cannot be decoded as an image"),
        (png(7, 400), "is too small (7 x 400 vs at least 8 pixels a side)"),
        (bytes(MAX_BYTES + 1), "is too large (over 8 MiB)"),
    ],
    ids=["empty", "pdf", "cut", "narrow", "large"],
)
def test_what_is_no_picture_is_one_line(data: bytes, said: str) -> None:
    uploads = Uploads()
    with pytest.raises(InputError) as caught:
        uploads.add(data, "cat.png")
    assert said in str(caught.value)
    assert len(uploads) == 0


def test_pictures_are_forgotten_after_a_time_and_when_there_are_too_many() -> None:
    now = 0.0
    uploads = Uploads(lambda: now)
    token = uploads.add(png(), "a.png")
    now = SECONDS + 1
    with pytest.raises(InputError, match="no longer kept"):
        uploads.pixels(token)
    big = png(1500, 1500, noise=True)
    assert 6 * 2**20 < len(big) < MAX_BYTES
    tokens = [uploads.add(big, "b.png") for _ in range(12)]
    assert len(uploads) * len(big) <= BUDGET
    with pytest.raises(InputError):
        uploads.pixels(tokens[0])
    assert uploads.pixels(tokens[-1])[0] == "b.png"
    with pytest.raises(InputError):
        uploads.pixels("../../etc/passwd")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("a\0b\n.png", "ab.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("..", "picture"),
        ("", "picture"),
        ("x" * 300, "x" * 40),
        ("Katze 🐈.png", "Katze 🐈.png"),
    ],
)
def test_names_are_made_harmless(name: str, shown: str) -> None:
    assert harmless(name) == shown
