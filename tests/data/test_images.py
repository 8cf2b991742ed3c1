"""The decoder: right pixels from every kind of picture, one clear refusal for everything else."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pillow_heif import register_heif_opener

from diffvit.data.images import MAX_PIXELS, Images, decode, fingerprint, read_image, resize
from diffvit.errors import InputError

register_heif_opener()  # which also lets Pillow write them


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


LOSSLESS = [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats_give_back_the_pixels(kind, options):
    pixels = picture()
    found = decode(encoded(Image.fromarray(pixels), kind, **options), name="x")
    assert found.shape == (3, 6, 9)
    assert np.array_equal(found.transpose(1, 2, 0), pixels)


def test_pictures_of_telephones_and_scanners():
    """AVIF and HEIC lose little; a big-endian TIFF of 16-bit grey is scaled by its range, and floats are refused."""
    pixels = np.kron(picture(4, 4), np.ones((16, 16, 1), np.uint8))
    for kind in ("AVIF", "HEIF"):
        found = decode(encoded(Image.fromarray(pixels), kind, quality=95), name="x").transpose(1, 2, 0)
        assert np.abs(found.astype(int) - pixels).mean() < 8
    avif = encoded(Image.fromarray(pixels), "AVIF")
    assert np.array_equal(decode(avif[:8] + b"mif1" + avif[12:], name="x"), decode(avif, name="x"))
    scan = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert decode(encoded(scan, "TIFF"), name="x").tolist() == [[[0, 1, 255]]] * 3
    with pytest.raises(InputError, match="no fixed range"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), name="x")


@pytest.mark.parametrize(("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("RGB", False), ("P", False)])
def test_grey_is_what_is_stored_as_grey(mode, grey):
    assert read_image(encoded(Image.new(mode, (4, 4)), "PNG"), name="x")[1] is grey


GREY = picture()[..., 0]
RED = np.array([[[200, 0, 0, alpha] for alpha in (0, 255, 51)]], np.uint8)
PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([10, 20, 30, 40, 50, 60])
PALETTE.putpixel((1, 0), 1)
MODES = {
    "grey": (Image.fromarray(GREY), {}, [GREY] * 3),
    "one bit": (Image.fromarray(GREY > 127), {}, [np.where(GREY > 127, 255, 0)] * 3),
    "16-bit grey, by its range": (
        Image.fromarray(np.array([[0, 256, 257, 32896, 65535]], dtype=np.uint16)), {}, [[[0, 1, 1, 128, 255]]] * 3,
    ),
    "white behind transparency": (Image.fromarray(RED, "RGBA"), {}, [[[255, 200, 244]], *[[[255, 0, 204]]] * 2]),
    "palette": (PALETTE, {"transparency": bytes([0, 255])}, [[[255, 40]], [[255, 50]], [[255, 60]]]),
    "grey with alpha": (Image.new("LA", (2, 2), (7, 255)), {}, np.full((3, 2, 2), 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name):
    image, options, expected = MODES[name]
    assert np.array_equal(decode(encoded(image, "PNG", **options), name="x"), expected)


@pytest.mark.parametrize(("ink", "colour"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0))])
def test_cmyk_jpeg(ink, colour):
    found = decode(encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=95), name="x")
    assert np.abs(found[:, 4, 4].astype(int) - colour).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # white top left, on its own
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = decode(encoded(stored, kind, exif=exif.tobytes(), **options), name="x")
    assert found.shape == (3, 16, 24)
    assert np.abs(found.transpose(1, 2, 0).astype(int) - upright).max() <= 12


def test_orientation_is_also_read_from_xmp():
    xmp, text = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>', PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    stored = Image.fromarray(picture())
    for data in (encoded(stored, "PNG", pnginfo=text), encoded(stored, "WEBP", lossless=True, xmp=xmp.encode())):
        assert np.array_equal(decode(data, name="x"), np.rot90(picture(), -1).transpose(2, 0, 1))


def test_broken_exif_leaves_the_image_as_it_lies():
    pixels = picture()
    found = decode(encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense"), name="x")
    assert np.array_equal(found.transpose(1, 2, 0), pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10, **options)
    assert np.array_equal(decode(data, name="x")[:, 0, 0], [255, 0, 0])


def test_resize_takes_the_centred_square():
    pixels = np.zeros((3, 10, 30), dtype=np.uint8)
    pixels[:, :, 10:20] = 90
    assert np.array_equal(resize(pixels, 10), np.full((3, 10, 10), 90))
    assert resize(pixels, 5)[:, :, 1:4].min() == 90
    same = picture(32, 32).transpose(2, 0, 1)
    assert np.array_equal(resize(same, 32), same)
    for size in ((1, 20_000), (20_000, 1), (1, 1)):
        found = decode(encoded(Image.new("RGB", size, "teal"), "PNG"), name="x")
        assert np.array_equal(resize(found, 32), np.broadcast_to(np.array([0, 128, 128])[:, None, None], (3, 32, 32)))


@pytest.mark.parametrize(
    ("size", "box"),  # of a photograph, 640 pixels wide and 427 high
    [
        ((32, 64), (0, 53, 640, 373)),
        ((64, 32), (213, 0, 426, 427)),
        ((30, 45), (0, 0, 640, 426)),
        (48, (106, 0, 533, 427)),
    ],
)
def test_resize_to_height_and_width_takes_the_largest_centred_part_of_that_shape(size, box):
    from sklearn.datasets import load_sample_image  # seconds

    photograph = load_sample_image("china.jpg")
    height, width = size if isinstance(size, tuple) else (size, size)
    expected = Image.fromarray(photograph).resize((width, height), Image.Resampling.BILINEAR, box=box)
    assert np.array_equal(resize(photograph.transpose(2, 0, 1), size).transpose(1, 2, 0), np.asarray(expected))


def small():
    pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 1, 0])
    return Images(pixels, labels, ["a", "b"], "small", fingerprint(pixels, labels, ["a", "b"]), pixels[:, 0] > 20)


def test_select_keeps_images_labels_and_masks_together():
    images = small()
    some = images.select(torch.tensor([3, 1]))
    assert len(some) == 2
    assert torch.equal(some.pixels, images.pixels[[3, 1]])
    assert some.labels.tolist() == [0, 1]
    assert torch.equal(some.masks, images.masks[[3, 1]])
    assert some.fingerprint != images.fingerprint
    assert some.fingerprint == images.select([3, 1]).fingerprint
    assert len(images.select([])) == 0


def test_the_fingerprint_sees_pixels_labels_order_and_classes():
    images = small()
    prints = {
        images.fingerprint,
        fingerprint(images.pixels ^ 1, images.labels, images.classes),
        fingerprint(images.pixels, 1 - images.labels, images.classes),
        fingerprint(images.pixels.flip(0), images.labels, images.classes),
        fingerprint(images.pixels, images.labels, ["a", "c"]),
        fingerprint(images.pixels.view(4, 3, 1, 4), images.labels, images.classes),
    }
    assert len(prints) == 6


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [100_000, 20_000, 10_001])
def test_a_large_claim_is_refused_before_decoding(side):
    with pytest.raises(InputError, match="too many pixels"):
        decode(png_header(side, side), name="bomb.png")
    assert side * side > MAX_PIXELS


def test_a_large_claim_in_other_formats():
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
    [b"", *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"), b"%PDF-1.4", b"II*\0", png_header(0, 5)],
    ids=lambda data: repr(data[:8]),
)
def test_not_an_image_is_one_clear_line(data):
    with pytest.raises(InputError) as caught:
        decode(data, name="cat.png")
    assert str(caught.value).startswith("cat.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_truncated_image_is_refused(kind):
    data = encoded(Image.fromarray(picture(40, 40)), kind)
    with pytest.raises(InputError):
        decode(data[: len(data) // 2], name="x")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF"]), st.data())
def test_flipped_bytes_give_pixels_or_a_refusal(kind, data):
    damaged = bytearray(encoded(Image.fromarray(picture(12, 12)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(damaged), name="x")
    except InputError:
        return
    assert found.dtype == np.uint8
    assert found.shape[0] == 3


def test_files(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(513 * 2**20)  # sparse
    with pytest.raises(InputError, match="too large"):
        decode(tmp_path / "large.png", name="large.png")
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "red"), "PNG"))
    assert decode(path, name="a.png").shape == (3, 2, 3)
    for missing in (tmp_path / "none.png", tmp_path, Path("nul\0.png")):
        with pytest.raises(InputError, match="cannot be read"):
            decode(missing, name="that")
