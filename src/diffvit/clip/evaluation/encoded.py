"""What is computed once per picture, whatever is asked of it afterwards; kept in the user's cache in parts."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from diffvit.cache import cache_folder
from diffvit.clip.evaluation.encoders import Encoder
from diffvit.clip.evaluation.labelled import Labelled
from diffvit.clip.parts import Parts
from diffvit.clip.zero_shot import Progress
from diffvit.errors import InputError

_VERSION = 1  # of what is computed here; a change makes every cached part a stranger
_PART = 256  # pictures
_READERS = 4  # threads that decode and resize


@dataclass(frozen=True)
class Change:
    """Something done to every picture before a model's own preprocessing.

    Args:
        name: all that it depends on, in words; a part of the cache's key.
        apply: the picture and :func:`picture_number` of it, to the changed picture.
    """

    name: str
    apply: Callable[[UInt8[np.ndarray, "3 h w"], int], UInt8[np.ndarray, "3 h2 w2"]]


@dataclass(frozen=True)
class Encoded:
    """Rows of an encoder.

    Args:
        rows: on the CPU; NaN for a picture that could not be read.
        faults: of the pictures that could not be read, in their order.
        computed: how many rows the model computed just now; the others came from the cache.
        seconds: that this took, with reading and preprocessing.
    """

    rows: Float32[Tensor, "n width"]
    faults: list[InputError]
    computed: int
    seconds: float


def picture_number(place: str) -> int:
    """A number from 0 to 2**63 - 1 that depends on a picture's place alone: random draws for a picture begin there."""
    return int.from_bytes(hashlib.sha256(_bytes(place)).digest()[:8], "big") >> 1


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
    """The rows of all pictures; those of the cache where they are known.

    They are written in parts of 256 pictures as they are done. An interrupted call goes on at the part where it was,
    a repeated one reads; a changed file costs the part that it is in. Pictures that cannot be read stop nothing.

    Args:
        encoder: what to compute.
        labelled: the pictures; their labels do not matter.
        change: what is done to them first.
        cache_dir: where the parts lie; by default the user's cache folder.
        use_cache: False to read and write none.
        progress: called with (pictures done, pictures in all), first before any is computed.
        batch_size: pictures at once; other sizes may give other last bits, and have parts of their own.

    Raises:
        InputError: the model's rows are not finite.
    """
    work = _Work(encoder, labelled, change, batch_size)
    key = work.key()
    parts = Parts((cache_dir or cache_folder()) / "clip" / key[:32], key, f"what {encoder.name} computed")
    rows = torch.full((len(labelled), encoder.width), torch.nan)
    faults: dict[int, InputError] = {}
    edges = [*range(0, len(labelled), _PART), len(labelled)]
    spans = [range(first, last) for first, last in pairwise(edges) if last > first]
    unknown = [span for span in spans if not (use_cache and work.recall(parts, span, rows, faults))]
    done, computed, saving = len(labelled) - sum(map(len, unknown)), 0, use_cache
    start = time.perf_counter()
    for span, batch, squares in work.batches(unknown):
        if progress:
            progress(done, len(labelled))
        good = [place for place, square in zip(batch, squares, strict=True) if not isinstance(square, InputError)]
        faults |= {place: each for place, each in zip(batch, squares, strict=True) if isinstance(each, InputError)}
        if good:
            rows[good] = work.encoded([square for square in squares if not isinstance(square, InputError)])
        done, computed = done + len(batch), computed + len(good)
        if batch[-1] == span[-1] and saving:
            saving = parts.saved(span[0] // _PART, rows[span[0] : span[-1] + 1], work.identity(span))
    seconds = time.perf_counter() - start
    if progress:
        progress(len(labelled), len(labelled))
    return Encoded(rows, [faults[place] for place in sorted(faults)], computed, seconds)


@dataclass(frozen=True)
class _Work:
    """One call's encoder, pictures and way of going through them."""

    encoder: Encoder
    labelled: Labelled
    change: Change | None
    batch_size: int

    def key(self) -> str:
        """SHA-256 (hex) of what every row depends on besides its own picture."""
        change = self.change.name if self.change else None
        what = [_VERSION, PIL.__version__, self.encoder.key, change, self.batch_size]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def identity(self, span: range) -> str:
        """SHA-256 (hex) of which pictures these are, and of their state."""
        pairs = [(self.labelled.places[place], self.labelled.stamps[place]) for place in span]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def recall(self, parts: Parts, span: range, rows: Tensor, faults: dict[int, InputError]) -> bool:
        """Fill in the rows of a part from the cache, and the faults of its pictures; False where it is not known.

        Pictures that could not be read are tried again: a permission may have changed, which no stamp tells.
        """
        part = parts.load(span[0] // _PART, len(span), self.identity(span))
        if part is None or part.shape[1] != self.encoder.width:
            return False
        found: dict[int, InputError] = {}
        for place in part.isnan().any(dim=1).nonzero()[:, 0].tolist():
            square = self.square(span[place])
            if not isinstance(square, InputError):
                return False
            found[span[place]] = square
        rows[span[0] : span[-1] + 1] = part
        faults |= found
        return True

    def square(self, place: int) -> UInt8[np.ndarray, "3 s s"] | InputError:
        """A picture as the model sees it before it is normalised, or why it cannot be had."""
        try:
            pixels = self.labelled.read(place)
        except InputError as fault:
            return fault
        if self.change:
            pixels = self.change.apply(pixels, picture_number(self.labelled.places[place]))
        return self.encoder.preprocessing.square(pixels)

    def batches(self, spans: list[range]) -> Iterator[tuple[range, range, list[np.ndarray | InputError]]]:
        """The pictures of each span in batches, each with its span; the next batch is read meanwhile."""
        size = self.batch_size
        cut = [(span, span[first : first + size]) for span in spans for first in range(0, len(span), size)]
        waiting: deque[list[Future[np.ndarray | InputError]]] = deque()
        pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
        try:
            for place in range(len(cut) + 1):
                if place < len(cut):
                    waiting.append([pool.submit(self.square, picture) for picture in cut[place][1]])
                if place:
                    yield *cut[place - 1], [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def encoded(self, squares: list[np.ndarray]) -> Float32[Tensor, "n width"]:
        """The rows of these squares."""
        rows = self.encoder.encode(torch.from_numpy(np.stack(squares)))
        if not bool(rows.isfinite().all()):
            raise InputError(self.encoder.name, "gives features that are not finite", "Take other weights.")
        return rows


def _bytes(text: str) -> bytes:
    """Also of a file's name that is no UTF-8."""
    return text.encode(errors="surrogateescape")
