"""CIFAR-10 as encoded images: Parquet files in the schema of ``uoft-cs/cifar10``, or a folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from diffvit.data.cifar10_rows import CLASSES, SIZE, Rows, check_labels
from diffvit.data.images import decode
from diffvit.errors import InputError

MAX_ROWS = 100_000
MAX_ENCODED = 64 * 2**10  # bytes of one encoded 32 x 32 image
_IMAGE_TYPES = (
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.struct([("bytes", pa.binary())]),
)
# How the path of an image ends that its file's maker had to take from a JPEG copy.
NOT_EXACT = ".from-jpeg.png"
_BATCH = 512  # rows held in memory besides the decoded ones


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Files of one split (``train-00000-of-00001.parquet`` and the like), here or in ``plain_text/``."""
    here = sorted(folder.glob(f"{split}*.parquet"))
    return here or sorted((folder / "plain_text").glob(f"{split}*.parquet"))


def read_parquet(folder: Path, split: str) -> Rows:
    """Decode every row of the split's files; rows whose path ends in :data:`NOT_EXACT` are not ``exact``.

    Raises:
        InputError: no such file, not Parquet, another schema, an unreadable image, a label outside 0 to 9.
    """
    files = parquet_files(folder, split)
    if not files:
        raise InputError(str(folder), f"holds no {split}-*.parquet beside the other split's")
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    exact: list[bool] = []
    for path in files:
        try:
            with pq.ParquetFile(path, memory_map=False) as file:
                _check_schema(file, path)
                for batch in file.iter_batches(_BATCH, columns=["img", "label"], use_threads=False):
                    images = batch.column("img").to_pylist()
                    encoded = [image and image["bytes"] for image in images]
                    exact.extend(not str(image and image.get("path")).endswith(NOT_EXACT) for image in images)
                    pixels.extend(_decode_row(data, f"{path}, row {len(pixels) + n}") for n, data in enumerate(encoded))
                    labels.extend(_whole(batch.column("label"), path))
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())[:160]
            raise InputError(str(path), f"cannot be read as Parquet ({why})", "Fetch the file again.") from None
    names = np.array(labels, dtype=np.int64)
    check_labels(names, str(files[0]))
    stacked = np.stack(pixels) if pixels else np.empty((0, 3, SIZE, SIZE), np.uint8)
    return Rows(stacked, names, None if all(exact) else np.array(exact))


def _check_schema(file: pq.ParquetFile, path: Path) -> None:
    schema = file.schema_arrow
    image = schema.field("img").type if "img" in schema.names else None
    label = schema.field("label").type if "label" in schema.names else None
    if image not in _IMAGE_TYPES or label != pa.int64():
        found = ", ".join(f"{name}: {schema.field(name).type}" for name in schema.names)[:160]
        raise InputError(
            str(path), f"has another schema (found {found} vs img: struct<bytes: binary, path: string>, label: int64)"
        )
    if file.metadata.num_rows > MAX_ROWS:
        raise InputError(str(path), f"has too many rows (found {file.metadata.num_rows} vs at most {MAX_ROWS})")


def _whole(column: pa.Array, path: Path) -> list[int]:
    if column.null_count:
        raise InputError(str(path), "has rows without a label")
    return column.to_pylist()


def _decode_row(data: bytes | None, name: str) -> UInt8[np.ndarray, "3 h w"]:
    if data is None or len(data) > MAX_ENCODED:
        found = "none" if data is None else f"{len(data)} bytes"
        raise InputError(name, f"holds no encoded 32 x 32 image (found {found}, allowed 1 to {MAX_ENCODED} bytes)")
    pixels = decode(data, name=name)
    if pixels.shape != (3, SIZE, SIZE):
        raise InputError(
            name, f"is not a CIFAR-10 image (found {pixels.shape[2]} x {pixels.shape[1]} pixels vs 32 x 32)"
        )
    return pixels


def read_folder(folder: Path, split: str) -> Rows:
    """Decode ``folder/split/CLASS/*``, with the ten official class names as folder names.

    Raises:
        InputError: a class is missing or unknown, or an image is unreadable or not 32 x 32.
    """
    root = folder / split
    found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if found != CLASSES:
        raise InputError(
            str(root),
            f"does not have CIFAR-10's class folders (found {', '.join(found) or 'none'} vs {', '.join(CLASSES)})",
        )
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(CLASSES):
        for path in sorted((root / name).iterdir()):
            if path.name.startswith("."):
                continue
            if len(pixels) == MAX_ROWS:
                raise InputError(str(root), f"holds too many images (more than {MAX_ROWS})")
            pixels.append(_decode_row(_read_small(path), str(path)))
            labels.append(label)
    stacked = np.stack(pixels) if pixels else np.empty((0, 3, SIZE, SIZE), np.uint8)
    return Rows(stacked, np.array(labels, dtype=np.int64))


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ENCODED + 1)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from None
