"""Images in memory, and the one decoder every picture from outside passes through.

The decoder trusts nothing: the format must be on a short list, the size in the header is checked before a pixel is
decoded, and whatever a broken file raises inside Pillow comes out as one :class:`InputError`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor

from diffvit.data.mapped import mapped
from diffvit.errors import EnvironmentFault, InputError
from diffvit.files import cache_folder

MAX_PIXELS = 25_000_000
MAX_BYTES = 128 * 2**20
MAX_IN_MEMORY = 2 * 2**30  # bytes of pixels that a choice of images may take without a file


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's reader; it would look into the EXIF for a resolution, and warn about damage there."""

    def getexif(self) -> Image.Exif:
        """Nothing; see :func:`_orientation`."""
        return Image.Exif()


# First bytes -> Pillow's reader. The readers are called directly: Image.open would try every installed format, and
# warns about large headers (a process-wide matter) before this module can refuse them.
_READERS = {
    b"\xff\xd8\xff": _Jpeg,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"GIF87a": GifImagePlugin.GifImageFile,
    b"GIF89a": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}
FORMATS = "JPEG, PNG, GIF, BMP, WebP"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Images:
    """Labelled images of one split.

    Attributes:
        pixels: RGB, 0 to 255; may lie in a memory-mapped file. Read only, by agreement.
        labels: index into ``classes``.
        classes: class names in label order.
        name: what to call the data wherever a result is quoted, e.g. ``"CIFAR-10 (JPEG)"``.
        fingerprint: SHA-256 (hex) of what is in it, see :func:`fingerprint`.
        masks: where the object is, for sources that know (shapes).
        exact: which images are the data set's own pixels, where some are known not to be; None where nothing is said.
        note: the footnote that a figure on these images must carry, e.g. "117 of 60,000 images from a JPEG copy".
    """

    pixels: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    classes: list[str]
    name: str
    fingerprint: str
    masks: Bool[Tensor, "n h w"] | None = None
    exact: Bool[Tensor, " n"] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int64[Tensor, " m"] | Sequence[int]) -> Images:
        """These images, in this order; the fingerprint is derived from this one's and the indices.

        A choice of more than 2 GiB goes to an unnamed file in the cache, since the whole may exceed memory.

        Raises:
            EnvironmentFault: the cache's disk has no room for such a file.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + chosen.numpy().tobytes()).hexdigest()
        masks, exact = (None if each is None else each[chosen] for each in (self.masks, self.exact))
        pixels = _chosen(self.pixels, chosen)
        return replace(self, pixels=pixels, labels=self.labels[chosen], fingerprint=digest, masks=masks, exact=exact)


def _chosen(pixels: UInt8[Tensor, "n 3 h w"], indices: Int64[Tensor, " m"]) -> UInt8[Tensor, "m 3 h w"]:
    if len(indices) * pixels[:1].numel() <= MAX_IN_MEMORY:
        return pixels[indices]
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            for part in indices.split(4096):
                file.write(pixels[part].numpy().data)
            file.flush()
            return mapped(file, (len(indices), *pixels.shape[1:]))
    except OSError as error:
        raise EnvironmentFault(
            str(cache_folder()), f"has no room for a part of the images ({error.strerror})"
        ) from None


def fingerprint(pixels: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], classes: Sequence[str]) -> str:
    """SHA-256 (hex) of shape, pixels, labels and class names, in this order of images."""
    digest = hashlib.sha256(repr((tuple(pixels.shape), list(classes))).encode())
    for part in pixels.split(4096):  # a memory-mapped set need not fit into memory
        digest.update(part.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def decode(data: bytes | Path, *, name: str) -> UInt8[np.ndarray, "3 h w"]:
    """Decode one image to upright RGB.

    JPEG, PNG, GIF, BMP and WebP up to 25 megapixels. Of an animation the first frame counts; 16-bit grey is scaled by
    its range; transparency shows white; CMYK, palettes and EXIF orientation are resolved.

    Args:
        data: the encoded bytes, or a file of at most 128 MiB.
        name: what an error calls the image.

    Raises:
        InputError: not such an image, damaged, or over a limit.
    """
    encoded = _read(data, name) if isinstance(data, Path) else data
    reader = next((reader for magic, reader in _READERS.items() if encoded.startswith(magic)), None)
    if reader is None:
        found = "an empty file" if not encoded else f"first bytes {encoded[:4].hex(' ')}"
        raise InputError(name, f"is not an image of a known format (found {found}, allowed {FORMATS})")
    try:
        with reader(io.BytesIO(encoded)) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return np.ascontiguousarray(np.asarray(_to_rgb(image)).transpose(2, 0, 1))
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(name, f"cannot be decoded as an image ({why})") from None
    raise InputError(name, f"has too many pixels ({width} x {height} vs at most {MAX_PIXELS // 10**6} megapixels)")


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            claimed = os.fstat(file.fileno()).st_size
            data = b"" if claimed > MAX_BYTES else file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(name, f"cannot be read ({why})") from None
    if max(claimed, len(data)) > MAX_BYTES:
        raise InputError(name, f"is too large for an image (over {MAX_BYTES // 2**20} MiB)")
    return data


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if (turn := _UPRIGHT.get(_orientation(image.info))) is not None:
        image = image.transpose(turn)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey = np.rint(np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        paper = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(paper, colours).convert("RGB")
    return image.convert("RGB")


def _orientation(info: Mapping[Any, Any]) -> int:
    """The orientation in EXIF, else in XMP; 1, as it lies, where neither has one or can be read.

    Pillow's own reader is not used: it warns about damaged EXIF, which is common, and the filters of Python's warnings
    belong to all threads, so that no thread may change them for a while.
    """
    try:
        text = str(info.get("Raw profile type exif", ""))
        record = info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:]))
        if (found := _tag(record.removeprefix(b"Exif\0\0"), 0x0112)) is not None:
            return found
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp.encode() if isinstance(xmp, str) else xmp)
        return int(match[1]) if match else 1
    except (AttributeError, TypeError, ValueError, struct.error):
        return 1


def _tag(tiff: bytes, wanted: int) -> int | None:
    """The whole number (SHORT or LONG) of a tag in the first directory of a TIFF file; None where it is not there."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHL", tiff, place)
        if tag == wanted and kind in (3, 4) and number == 1:
            return int(struct.unpack_from(order + {3: "H", 4: "L"}[kind], tiff, place + 8)[0])
    return None


def resize(pixels: UInt8[np.ndarray, "3 h w"], size: int) -> UInt8[np.ndarray, "3 s s"]:
    """The largest centred square, resampled (bilinear, antialiased) to ``size`` pixels a side."""
    _, height, width = pixels.shape
    if height == width == size:
        return pixels
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    scaled = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))
