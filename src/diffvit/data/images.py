"""Labelled images, and the decoder for every image file.

Image files are untrusted input: only the formats of an allow-list are read, the size in the header is checked before
decoding, and whatever Pillow raises on a damaged file becomes an :class:`InputError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageDraw, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from diffvit.data.image_ops import grey
from diffvit.data.layout import named_files
from diffvit.errors import InputError, Size, sides
from diffvit.files import cache_folder, disk_faults

_Made = TypeVar("_Made")
MAX_PIXELS = 100_000_000
MAX_BYTES = 512 * 2**20
MAX_IN_MEMORY = 256 * 2**20  # bytes; a larger selection of images is memory-mapped
_PART = 4096  # images copied at a time
_PAGES = WeakValueDictionary[int, mmap.mmap]()  # the mapped files, by the address of their tensors' memory
_LINUX_NORESERVE = 0x4000  # mmap.MAP_NORESERVE, which Python 3.11 does not name


@dataclass(frozen=True)
class Images:
    """Labelled images of one split."""

    # RGB or grey, 0 to 255; may lie in a memory-mapped file. Read only, by agreement
    pixels: UInt8[Tensor, "n chans h w"]
    labels: Int64[Tensor, " n"]  # index into classes
    classes: list[str]
    name: str  # of the data in reports, as "CIFAR-10 (JPEG)"
    fingerprint: str  # SHA-256 (hex) of the content, see the function of this name
    masks: Bool[Tensor, "n h w"] | None = None  # the object's pixels, where the source knows them (shapes)
    exact: Bool[Tensor, " n"] | None = None  # which have the original pixels, where some are known to be re-encoded
    note: str = ""  # footnote for every number measured on them, as "117 of 60,000 images from a JPEG copy"
    validation: Images | None = None  # of a training set: the source's own validation images, where it has some
    own_test: bool = False  # of a training set: whether the source has test images of its own
    skipped: tuple[tuple[str, str], ...] = ()  # files that could not be read and were left out: path, reason

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int64[Tensor, " m"] | Sequence[int]) -> Images:
        """These images, in this order; the fingerprint is derived from this one's and the indices.

        A selection of more than 256 MiB is written to an unnamed file in the cache and memory-mapped; EnvironmentFault
        where the cache's disk has no room for it.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + chosen.numpy().tobytes()).hexdigest()
        masks, exact = (None if each is None else each[chosen] for each in (self.masks, self.exact))
        pixels = _chosen(self.pixels, chosen)
        return replace(self, pixels=pixels, labels=self.labels[chosen], fingerprint=digest, masks=masks, exact=exact)


def _chosen(pixels: UInt8[Tensor, "n chans h w"], indices: Int64[Tensor, " m"]) -> UInt8[Tensor, "m chans h w"]:
    if len(indices) and bool((indices.diff() == 1).all()):
        return pixels[int(indices[0]) : int(indices[-1]) + 1]  # consecutive: nothing is copied
    shape = (len(indices), *pixels.shape[1:])
    if math.prod(shape) <= MAX_IN_MEMORY:
        found = torch.empty(shape, dtype=torch.uint8)
        for place, part in enumerate(indices.split(_PART)):
            found[place * _PART :][: len(part)] = pixels[part]
            _forget(pixels)
        return found
    with disk_faults(cache_folder(), "It keeps a part of the images; XDG_CACHE_HOME names another place for it."):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            for part in indices.split(_PART):
                file.write(pixels[part].contiguous().numpy().data)
                _forget(pixels)
            file.flush()
            return mapped(file, shape)


def fingerprint(pixels: UInt8[Tensor, "n chans h w"], labels: Int64[Tensor, " n"], classes: Sequence[str]) -> str:
    """SHA-256 (hex) of shape, pixels, labels and class names, in this order of images."""
    digest = hashlib.sha256(repr((tuple(pixels.shape), list(classes))).encode())
    for part in pixels.split(_PART):  # a memory-mapped set need not fit into memory
        digest.update(part.contiguous().numpy().data)
        _forget(pixels)
    digest.update(labels.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def mapped(file: IO[bytes], shape: tuple[int, ...]) -> UInt8[Tensor, "n chans h w"]:
    """The first bytes of an open file as a memory-mapped tensor, which may be larger than memory.

    Writing to the tensor does not change the file. A lock on the file lasts until the tensor is gone.
    """
    options: dict[str, Any] = {"access": mmap.ACCESS_COPY}
    if sys.platform == "linux":
        # The same without reserving memory: else the system may refuse a file larger than memory.
        options = {"flags": mmap.MAP_PRIVATE | _LINUX_NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    pages = mmap.mmap(file.fileno(), 0, **options)
    found = torch.frombuffer(pages, dtype=torch.uint8, count=math.prod(shape)).view(shape)
    _PAGES[found.data_ptr()] = pages
    return found


def _forget(pixels: Tensor) -> None:
    """Give back the memory in which a mapped file was read; it is read again where need be."""
    if pages := _PAGES.get(pixels.untyped_storage().data_ptr()):
        pages.madvise(mmap.MADV_DONTNEED)


# First bytes -> Pillow's reader. The readers are called directly: Image.open would try every installed format, and
# warns about large headers (a process-wide matter) before this module can refuse them.
_READERS: dict[bytes, Any] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"GIF87a": GifImageFile,
    b"GIF89a": GifImageFile,
    b"BM": BmpImageFile,
    b"RIFF": WebPImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
FORMATS = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, HEIC"


def decode(data: bytes | Path, *, name: str, most: int = MAX_PIXELS) -> UInt8[np.ndarray, "3 h w"]:
    """Decode one image to upright RGB: the pixels of :func:`read_image`, which see."""
    return to_array(read_image(data, name=name, most=most)[0])


def read_image(data: bytes | Path, *, name: str, most: int = MAX_PIXELS) -> tuple[Image.Image, bool]:
    """Decode one image to upright RGB, and say whether it was stored as grey levels.

    JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, and HEIC where pillow-heif is installed, of at most ``most`` pixels, as bytes
    or a file of at most 512 MiB. Of an animation or of many pages the first is read; 16-bit grey is scaled by its
    range; transparency is drawn on white; CMYK, palettes and EXIF orientation are resolved. InputError, which calls the
    image ``name``, where it is none of these, damaged, or over a limit.
    """
    encoded = _read(data, name) if isinstance(data, Path) else data
    reader = _reader_of(encoded, name)
    if reader is None:
        found = "an empty file" if not encoded else f"first bytes {encoded[:4].hex(' ')}"
        raise InputError(name, f"is not an image of a known format (found {found}, allowed {FORMATS})")
    try:
        image = reader(io.BytesIO(encoded))
        width, height = image.size
        if width * height <= most:
            return to_rgb(image), is_grey(image)
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        why = " ".join(str(error).split())[:120] or type(error).__name__
        why = "not enough memory" if isinstance(error, MemoryError) else why
        raise InputError(name, f"cannot be decoded as an image ({why})") from None
    raise InputError(name, f"has too many pixels ({width} x {height} vs at most {most // 10**6} megapixels)")


def read_each(
    paths: Iterable[Path | str], made: Callable[[UInt8[np.ndarray, "3 h w"], str], _Made]
) -> tuple[list[tuple[Path, _Made]], list[InputError]]:
    """Every file meant (:func:`named_files`) with what is made of its pixels and name; an error for each unreadable."""
    found: list[tuple[Path, _Made]] = []
    bad: list[InputError] = []
    for name, file in named_files(paths):
        try:
            if isinstance(file, InputError):
                raise file
            found.append((file, made(decode(file, name=name), name)))
        except InputError as error:
            bad.append(error)
    return found, bad


def to_array(picture: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    """The pixels of Pillow's RGB picture, channels first."""
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def to_picture(pixels: UInt8[np.ndarray, "3 h w"]) -> Image.Image:
    """Pixels as Pillow's RGB picture."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _reader_of(encoded: bytes, name: str) -> Any:
    """Pillow's reader for these bytes; None where no format begins so."""
    if encoded[4:8] == b"ftyp":
        if b"avif" in encoded[8:64] or b"avis" in encoded[8:64]:  # also of files whose first brand is mif1
            return AvifImageFile
        if encoded[8:12] in _HEIC:
            try:
                from pillow_heif import HeifImageFile
            except ImportError:
                hint = "Install it with: pip install 'diffvit[heic]'"
                raise InputError(name, "is a HEIC image: needs pillow-heif", hint) from None
            return HeifImageFile
    return next((reader for magic, reader in _READERS.items() if encoded.startswith(magic)), None)


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


def is_grey(image: Image.Image) -> bool:
    """Whether Pillow's picture has grey levels, with or without transparency."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's picture of any mode as upright RGB, see :func:`read_image`; ValueError for floating-point pixels."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF, which is common: the image stays as it is stored
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
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


def resize(pixels: UInt8[np.ndarray, "chans h w"], size: Size) -> UInt8[np.ndarray, "chans tall wide"]:
    """The largest centred part of the size's shape, resampled (bilinear, antialiased) to it; RGB or one channel.

    ``size`` is the side of a square, or (height, width), pixels.
    """
    if pixels.shape[1:] == sides(size):
        return pixels
    if len(pixels) == 1:
        return np.array(resized_picture(Image.fromarray(pixels[0]), size))[None]
    return to_array(resized_picture(to_picture(pixels), size))


def resized_picture(image: Image.Image, size: Size) -> Image.Image:
    """As :func:`resize`, of a picture."""
    tall, wide = sides(size)
    if image.size == (wide, tall):
        return image
    box = centred_box(image.height, image.width, size)
    return image.resize((wide, tall), Image.Resampling.BILINEAR, box=box)


def centred_box(height: int, width: int, size: Size) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred part of an image that has the shape of ``size``."""
    tall, wide = sides(size)
    down, across = min(height, max(1, width * tall // wide)), min(width, max(1, height * wide // tall))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def with_channels(pixels: UInt8[Tensor, "n chans h w"], count: int) -> UInt8[Tensor, "n count h w"]:
    """Grey images (one channel) as RGB, RGB images as their luma (ITU-R 601), or the images as they are.

    InputError for other numbers of channels.
    """
    found = pixels.shape[1]
    if found == count:
        return pixels
    if (found, count) == (1, 3):
        return pixels.expand(-1, 3, -1, -1)
    if (found, count) != (3, 1):
        raise InputError("images", f"cannot be brought to {count} channels (found {found}, allowed 1 and 3)")
    return torch.cat([grey(part) for part in pixels.split(4096)])


def sized(pixels: UInt8[Tensor, "n chans h w"], size: Size, channels: int | None) -> UInt8[Tensor, "n c tall wide"]:
    """Pixels as :func:`resize` makes them, with this many channels; None keeps those they have."""
    if pixels.shape[2:] != sides(size):
        scaled = torch.empty(*pixels.shape[:2], *sides(size), dtype=torch.uint8)
        for place, image in enumerate(pixels):
            scaled[place] = torch.from_numpy(resize(image.numpy(), size))
        pixels = scaled
    return with_channels(pixels, channels or pixels.shape[1]).contiguous()


def set_apart(labels: Sequence[int], hashes: Sequence[bytes], share: float) -> list[int]:
    """Places of the images of a test set: a share of each class, those with the lowest hashes of their pixels.

    So neither names nor order matter, and equal images are on one side. A class with two different images or more keeps
    one, and gives one at least, unless each is there more often than its share is large.
    """
    members: dict[int, dict[bytes, list[int]]] = {}
    for place, (label, key) in enumerate(zip(labels, hashes, strict=True)):
        members.setdefault(label, {}).setdefault(key, []).append(place)
    taken: list[int] = []
    for same in members.values():
        room = max(1, round(share * sum(map(len, same.values()))))
        for key in sorted(same)[: len(same) - 1]:
            if len(same[key]) <= room:
                taken += same[key]
                room -= len(same[key])
    return sorted(taken)


def contact_sheet(images: Images, path: Path, *, per_class: int = 10) -> Path:
    """Draw the first ``per_class`` images of each class, one row per class (of the first 40), and write them as PNG."""
    height, width = images.pixels.shape[2:]
    zoom = max(1, -(-64 // max(height, width)))  # whole steps: a pixel stays a square
    names, gap = 96, 4  # pixels: width of the class names, space between images
    column, row = width * zoom + gap, height * zoom + gap
    classes = images.classes[:40]
    sheet = Image.new("RGB", (names + per_class * column, len(classes) * row + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for line, name in enumerate(classes):
        top = gap + line * row
        pen.text((gap, top + row // 2 - 8), name[:14], fill="black")
        for place, index in enumerate(torch.nonzero(images.labels == line)[:per_class, 0].tolist()):
            pixels = images.pixels[index].expand(3, -1, -1)  # a grey image has one channel
            picture = to_picture(pixels.numpy()).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (names + place * column, top))
    with disk_faults(path, "Give the contact sheet another place with --sheet."):
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    return path
