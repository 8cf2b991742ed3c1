"""Image features of labelled images: each image is encoded once per model, and its features are kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from diffvit.clip.cache import FeatureCache, digest, fingerprint
from diffvit.clip.labelled import Labelled
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.precision_engine import float32_products
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.zero_shot import Progress
from diffvit.errors import InputError

_VERSION = 2  # of what is computed here; a change invalidates the cache
_PART = 256  # images
_READERS = 4  # threads that decode and resize


@dataclass(frozen=True)
class Encoder:
    """A model as what it computes of an image, whatever is asked of it afterwards.

    Args:
        name: model and weights, for people.
        preprocessing: what its images must go through.
        width: numbers per image.
        key: SHA-256 (hex) of everything that they depend on: weights, modules, preprocessing, dtype, device, versions.
        encode: squares, 0 to 255, to features on the CPU. Products of float32 are computed in full also on CUDA.
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
class Change:
    """Something done to every image before a model's own preprocessing.

    Args:
        name: all that it depends on, in words; a part of the cache's key.
        apply: the image and :func:`image_number` of it, to the changed image.
    """

    name: str
    apply: Callable[[UInt8[np.ndarray, "3 h w"], int], UInt8[np.ndarray, "3 h2 w2"]]


@dataclass(frozen=True)
class Encoded:
    """Features of all images.

    Args:
        rows: on the CPU; NaN for an image that could not be read.
        faults: of the images that could not be read, in their order.
        computed: how many rows the model computed just now; the others came from the cache.
        seconds: that this took, with reading and preprocessing.
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
    encoder: Encoder,
    labelled: Labelled,
    *,
    change: Change | None = None,
    cache_dir: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    batch_size: int = 32,
) -> Encoded:
    """The features of all images; those of the cache where they are known.

    They are written in parts of 256 images as they are done. An interrupted call goes on at the part where it was, a
    repeated one reads; a changed file invalidates the part that it is in. Images that cannot be read are named, and
    stop nothing.

    Args:
        encoder: what to compute.
        labelled: the images; their labels do not matter.
        change: what is done to them first.
        cache_dir: where the parts lie; by default the user's cache folder.
        use_cache: False to read and write none.
        progress: called with (images done, images in all), first before any is computed.
        batch_size: images at once; other sizes may give other last bits, and have parts of their own.

    Raises:
        InputError: the model's features are not finite.
    """
    total, faults, computed = len(labelled), dict[int, InputError](), 0
    spans = [range(first, min(first + _PART, total)) for first in range(0, total, _PART)]

    def square(place: int) -> UInt8[np.ndarray, "3 s s"] | InputError:
        """An image as the model sees it before it is normalised, or why it cannot be had."""
        try:
            pixels = labelled.read(place)
        except InputError as fault:
            return fault
        if change:
            pixels = change.apply(pixels, image_number(labelled.places[place]))
        return encoder.preprocessing.square(pixels)

    def compute(index: int, done: int) -> Float32[Tensor, "rows width"]:
        nonlocal computed
        span = spans[index]
        rows = torch.full((len(span), encoder.width), torch.nan)
        for batch, squares in _batches(square, span, batch_size):
            if progress:
                progress(done, total)
            good = [place for place, each in zip(batch, squares, strict=True) if not isinstance(each, InputError)]
            faults.update({n: each for n, each in zip(batch, squares, strict=True) if isinstance(each, InputError)})
            if good:
                stack = np.stack([each for each in squares if not isinstance(each, InputError)])
                found = encoder.encode(torch.from_numpy(stack))
                if not bool(found.isfinite().all()):
                    raise InputError(encoder.name, "gives features that are not finite", "Take other weights.")
                rows[[place - span[0] for place in good]] = found
            done, computed = done + len(batch), computed + len(good)
        return rows

    def accept(index: int, rows: Float32[Tensor, "rows width"]) -> bool:
        """Images that could not be read are tried again: a permission may have changed, which no stamp tells."""
        if rows.shape[1] != encoder.width:
            return False
        again = {spans[index][place]: place for place in rows.isnan().any(dim=1).nonzero()[:, 0].tolist()}
        found = {place: square(place) for place in again}
        unreadable = {place: each for place, each in found.items() if isinstance(each, InputError)}
        if len(unreadable) == len(found):
            faults.update(unreadable)
        return len(unreadable) == len(found)

    key = digest([encoder.key, change.name if change else None, batch_size])
    cache = FeatureCache(key, f"what {encoder.name} computed", cache_dir, use_cache)
    parts = [(len(s), digest([(labelled.places[n], labelled.stamps[n]) for n in s])) for s in spans]
    start = time.perf_counter()
    found = cache.rows(parts, compute, accept)
    seconds = time.perf_counter() - start
    if progress:
        progress(total, total)
    rows = torch.cat([torch.empty(0, encoder.width), *found])
    return Encoded(rows, [faults[place] for place in sorted(faults)], computed, seconds)


def _batches(
    square: Callable[[int], Any], span: range, size: int
) -> Iterator[tuple[range, list[np.ndarray | InputError]]]:
    """The images of a span in batches; the next batch is read while one is encoded."""
    cut = [span[first : first + size] for first in range(0, len(span), size)]
    waiting: deque[list[Future[Any]]] = deque()
    pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
    try:
        for place in range(len(cut) + 1):
            if place < len(cut):
                waiting.append([pool.submit(square, image) for image in cut[place]])
            if place:
                yield cut[place - 1], [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
