"""Image features of labelled images, and the cache that keeps features in parts, each checked by its SHA-256."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.labelled import Labelled
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.preprocess import Preprocessing
from diffvit.data.shifts import Shift
from diffvit.errors import InputError
from diffvit.files import cache_folder, replacing

Progress = Callable[[int, int], None]
_SUM = 32  # bytes of a SHA-256
_VERSION = 2  # of what is computed here; a change invalidates the cache
_PART, _BATCH = 256, 32  # images of a part; of a pass, whose size may change the last bits
_READERS = 4  # threads that decode and resize
_BACKENDS: Any = torch.backends
_CUDA_SWITCHES: tuple[Any, ...] = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv)
_CPU_SWITCHES: tuple[Any, ...] = (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv)


@contextmanager
def float32_products(kind: str) -> Iterator[None]:
    """Compute products of float32 tensors in full (``ieee``) or in ``tf32``; settings are restored afterwards.

    TF32 exists on CUDA alone: oneDNN's switches are set to full precision in both cases.
    """
    before = [(switch, switch.fp32_precision) for switch in (*_CUDA_SWITCHES, *_CPU_SWITCHES)]
    try:
        for switch, _ in before:
            switch.fp32_precision = kind if switch in _CUDA_SWITCHES else "ieee"
        yield
    finally:
        for switch, was in before:
            switch.fp32_precision = was


@dataclass(frozen=True)
class Encoder:
    """A model as what it computes of an image: ``encode`` makes ``width`` numbers of each square, 0 to 255, on the CPU.

    ``key`` is the SHA-256 (hex) of all that they depend on: weights, modules, preprocessing, dtype, device, versions.
    """

    name: str
    preprocessing: Preprocessing
    width: int
    key: str
    encode: Callable[[UInt8[Tensor, "n 3 s s"]], Float32[Tensor, "n width"]]


def image_encoder(of: Clip | Supervised) -> Encoder:
    """CLIP's image features at unit length, or a supervised model's logits."""
    model: Any = of.model
    zero_shot = isinstance(of, Clip)

    def encode(squares: UInt8[Tensor, "n 3 s s"]) -> Float32[Tensor, "n width"]:
        images = of.preprocessing.normalised(squares).to(of.device, of.dtype)
        with torch.no_grad(), float32_products("ieee"):
            if zero_shot:
                return F.normalize(model.encode_image(images).float(), dim=-1).cpu()
            return model(images).float().cpu()

    if zero_shot:
        own = type(model).__module__.startswith("diffvit.")  # its name says which it is; its tag is the data's name
        name = f"CLIP {of.name}" + ("" if own else f" ({of.pretrained or 'own weights'})")
        weights, modules = fingerprint(model, lambda name: name.startswith("visual")), str(model.visual)
    else:
        name, weights, modules = of.title, fingerprint(model), str(model)
    library = sys.modules[type(model).__module__.partition(".")[0]]
    versions = [torch.__version__, PIL.__version__, getattr(library, "__version__", "")]
    state = [weights, modules, str(of.dtype), of.device.type, dataclasses.astuple(of.preprocessing)]
    blank = torch.zeros(1, 3, of.preprocessing.size, of.preprocessing.size, dtype=torch.uint8)
    return Encoder(name, of.preprocessing, encode(blank).shape[1], digest([_VERSION, versions, state]), encode)


@dataclass(frozen=True)
class Encoded:
    """Features of all images: ``rows`` on the CPU, NaN for those that could not be read, whose ``faults`` are in order.

    ``computed`` rows were computed just now, in so many ``seconds`` with reading and preprocessing; others were cached.
    """

    rows: Float32[Tensor, "n width"]
    faults: list[InputError]
    computed: int
    seconds: float


def image_number(place: str) -> int:
    """A number from 0 to 2**63 - 1 that depends on an image's place alone: seed of its random draws."""
    content = place.encode(errors="surrogateescape")  # also of a file's name that is no UTF-8
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def encode_all(
    encoder: Encoder, labelled: Labelled, *, shift: Shift | None = None, progress: Progress | None = None
) -> Encoded:
    """The features of all images; those of the cache where they are known.

    They are written in parts of 256 images as they are done. An interrupted call goes on at the part where it was, a
    repeated one reads; a changed file invalidates the part that it is in. Images that cannot be read are named, and
    stop nothing. A shift is done to each image before the model's own preprocessing. ``progress`` is called with
    (images done, images in all), first before any is computed.

    Raises:
        InputError: the model's features are not finite.
    """
    total, faults, computed = len(labelled), dict[int, InputError](), 0
    spans = [range(first, min(first + _PART, total)) for first in range(0, total, _PART)]

    def square(place: int) -> UInt8[np.ndarray, "3 s s"] | None:
        """An image as the model sees it before it is normalised; None, and a fault, where it cannot be had."""
        try:
            pixels = labelled.read(place)
        except InputError as fault:
            faults[place] = fault
            return None
        if shift:
            pixels = shift.apply(pixels, image_number(labelled.places[place]))
        return encoder.preprocessing.square(pixels)

    def compute(index: int) -> Float32[Tensor, "rows width"]:
        nonlocal computed
        span = spans[index]
        rows = torch.full((len(span), encoder.width), torch.nan)
        pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
        try:
            waiting = [pool.submit(square, place) for place in span]  # read while others are encoded
            for first in range(0, len(span), _BATCH):
                if progress:
                    progress(span.start + first, total)
                squares = [future.result() for future in waiting[first : first + _BATCH]]
                good = {place: each for place, each in enumerate(squares, first) if each is not None}
                if good:
                    found = encoder.encode(torch.from_numpy(np.stack(list(good.values()))))
                    if not bool(found.isfinite().all()):
                        raise InputError(encoder.name, "gives features that are not finite", "Take other weights.")
                    rows[list(good)] = found
                computed += len(good)
        finally:
            pool.shutdown(cancel_futures=True)
        return rows

    def accept(index: int, rows: Float32[Tensor, "rows width"]) -> bool:
        """Images that could not be read are tried again: a permission may have changed, which no stamp tells."""
        unread = [spans[index][place] for place in rows.isnan().any(dim=1).nonzero()[:, 0].tolist()]
        return all(square(place) is None for place in unread)

    key = digest([encoder.key, shift.title if shift else None, _BATCH])
    parts = [(len(s), digest([(labelled.places[n], labelled.stamps[n]) for n in s])) for s in spans]
    start = time.perf_counter()
    found = cached_rows(key, f"what {encoder.name} computed", parts, compute, accept)
    seconds = time.perf_counter() - start
    if progress:
        progress(total, total)
    rows = torch.cat([torch.empty(0, encoder.width), *found])
    return Encoded(rows, [faults[place] for place in sorted(faults)], computed, seconds)


# The cache


def digest(what: Any) -> str:
    """SHA-256 (hex) of something that JSON can hold."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def fingerprint(model: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> str:
    """SHA-256 (hex) of a model's modules (settings, names) and tensors (dtypes, values) whose names are wanted."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        if wanted(name):
            said = module.extra_repr() or type(module).__name__
            found.update(f"{name} {type(module).__name__} {said} {getattr(module, 'num_heads', '')}\n".encode())
    for name, tensor in model.state_dict().items():
        if wanted(name):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def cached_rows(
    key: str,
    name: str,
    parts: Sequence[tuple[int, str]],
    compute: Callable[[int], Float32[Tensor, "rows dim"]],
    accept: Callable[[int, Float32[Tensor, "rows dim"]], bool] = lambda *_: True,
) -> list[Float32[Tensor, "rows dim"]]:
    """Features of texts or of images, part by part, from the user's cache where they are there.

    Parts that are not are computed and written as they are done; if one cannot be, a warning says so, once. Several
    processes may write the same part.

    Args:
        key: the hash of all that every row depends on; it goes into each part's checksum.
        name: what the warning calls the features.
        parts: for each its number of rows, and the hash of what it alone depends on (or empty).
        compute: from a part's index to its rows.
        accept: whether the rows read for a part are to be used.
    """
    folder, saving = cache_folder() / "clip" / key[:32], True
    found: list[Tensor] = []
    for index, (count, identity) in enumerate(parts):
        path = folder / f"{index:06}{'-' * bool(identity)}{identity[:32]}.rows"
        begin = f"{key} {index} {count}{identity and f' {identity}'}\n".encode()
        rows = _read_rows(path, begin, count)
        if rows is None or not accept(index, rows):
            rows = compute(index)
            try:
                if saving:
                    body = rows.contiguous().numpy().astype("<f4").tobytes()
                    with replacing(path) as temporary:
                        temporary.write_bytes(hashlib.sha256(begin + body).digest() + body)
            except OSError as error:
                warnings.warn(f"{folder}: {name} is not cached ({error.strerror or error})", stacklevel=3)
                saving = False
        found.append(rows)
    return found


def _read_rows(path: Path, begin: bytes, count: int) -> Float32[Tensor, "rows dim"] | None:
    """The rows in a part's file, if it begins with the SHA-256 of ``begin`` and the rows' bytes."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body = content[_SUM:]
    if not body or content[:_SUM] != hashlib.sha256(begin + body).digest():
        return None
    return torch.from_numpy(np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(count, -1))
