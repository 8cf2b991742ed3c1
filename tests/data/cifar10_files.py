"""Writers of small CIFAR-10 look-alikes in every container, for the tests beside this file."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def synthetic(per_class, seed):
    """Random images (n, 3, 32, 32) and shuffled labels, one image twice under the same label."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(10), per_class))
    pixels = generator.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    twins = np.flatnonzero(labels == 3)[:2]
    pixels[twins] = pixels[twins[0]]
    return pixels, labels


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(folder, split, data, kind="PNG", copied=()):
    """``copied``: rows whose path says that they were taken from a JPEG copy."""
    names = [f"{row}.from-jpeg.png" if row in copied else f"{row}.png" for row in range(len(data[0]))]
    images = [{"bytes": encode(image, kind), "path": name} for image, name in zip(data[0], names, strict=True)]
    table = pa.table(
        {
            "img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(data[1], pa.int64()),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-00000-of-00001.parquet"
    pq.write_table(table, path)
    return path


def batches(split, data):
    """A training set is spread over five batches."""
    if split == "test":
        return {"test_batch": data}
    parts = zip(np.array_split(data[0], 5), np.array_split(data[1], 5), strict=True)
    return {f"data_batch_{number}": part for number, part in enumerate(parts, 1)}


def batch_pickle(content, protocol=2, /, **changes):
    batch = {
        b"batch_label": b"training batch",
        b"labels": content[1].tolist(),
        b"data": content[0].reshape(len(content[0]), -1),
        b"filenames": [b"image_%d.png" % row for row in range(len(content[0]))],
        **{key.encode(): value for key, value in changes.items()},
    }
    return pickle.dumps(batch, protocol)


def python2_pickle(data, claimed=None):
    """What the official script wrote: protocol 2 of Python 2, where every string is a byte string.

    ``claimed``: the number of rows in the array's shape, where that is not the true one.
    """

    def text(value):
        return b"U" + bytes([len(value)]) + value

    count = len(data[0])
    raw = data[0].tobytes()
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in data[1].tolist()) + b"e"
    names = b"](" + b"".join(text(b"image_%d.png" % row) for row in range(count)) + b"e"
    kind = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\0K\1\x87R(K\3"
        + text(b"|")
        + b"NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\0tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    shape = b"J" + struct.pack("<i", count if claimed is None else claimed) + b"M\0\x0c\x86"
    state = b"(K\1" + shape + kind + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    items = text(b"data") + array + state + text(b"labels") + labels + text(b"batch_label") + text(b"one")
    return b"\x80\2}(" + items + text(b"filenames") + names + b"u."


def records(data):
    return np.concatenate([data[1].astype(np.uint8)[:, None], data[0].reshape(len(data[0]), -1)], axis=1).tobytes()


def archive(members):
    """A .tar.gz of these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def python_members(sets):
    parts = {name: part for split, data in sets.items() for name, part in batches(split, data).items()}
    members = {f"cifar-10-batches-py/{name}": python2_pickle(part) for name, part in parts.items()}
    return {"cifar-10-batches-py/readme.html": b"<html>", **members}


def binary_members(sets):
    parts = {name: part for split, data in sets.items() for name, part in batches(split, data).items()}
    return {f"cifar-10-batches-bin/{name}.bin": records(part) for name, part in parts.items()}


def write_folder(folder, split, data, kind="PNG"):
    for row, (image, label) in enumerate(zip(*data, strict=True)):
        place = folder / split / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:05d}.png").write_bytes(encode(image, kind))
