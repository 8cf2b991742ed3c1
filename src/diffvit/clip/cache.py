"""Features in the user's cache folder: rows of numbers in parts, written whole or not at all, checked by SHA-256."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from diffvit.files import cache_folder, replacing

_SUM = 32  # bytes of a SHA-256


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


def text_fingerprint(model: nn.Module) -> str:
    """:func:`fingerprint` of what a CLIP's text features depend on."""
    return fingerprint(model, lambda name: bool(name) and not name.startswith("visual"))


@dataclass(frozen=True)
class FeatureCache:
    """The parts of one set of features: a classifier's rows, or what an encoder makes of images.

    Args:
        key: hash of all that every row depends on; it goes into each part's checksum.
        name: what a warning calls the features.
        folder: where caches lie; by default the user's cache folder.
        use: False to read and write nothing.
    """

    key: str
    name: str
    folder: Path | None = None
    use: bool = True

    def rows(
        self,
        parts: Sequence[tuple[int, str]],
        compute: Callable[[int, int], Float32[Tensor, "rows dim"]],
        accept: Callable[[int, Float32[Tensor, "rows dim"]], bool] = lambda *_: True,
    ) -> list[Float32[Tensor, "rows dim"]]:
        """The features part by part; parts that are not in the cache are computed and written as they are done.

        Args:
            parts: for each its number of rows, and the hash of what it alone depends on (or empty).
            compute: from a part's index and the number of rows that are done to its rows.
            accept: whether the rows read for a part are to be used.
        """
        found: dict[int, Tensor] = {}
        for index, (count, identity) in enumerate(parts if self.use else ()):
            rows = self._load(index, count, identity)
            if rows is not None and accept(index, rows):
                found[index] = rows
        done, saving = sum(map(len, found.values())), self.use
        for index, (count, identity) in enumerate(parts):
            if index not in found:
                found[index] = compute(index, done)
                done += count
                saving = saving and self._saved(index, found[index], identity)
        return [found[index] for index in range(len(parts))]

    def _path(self, index: int, identity: str) -> Path:
        """Parts of one index and different identities lie beside each other."""
        name = f"{index:06}-{identity[:32]}.rows" if identity else f"{index:06}.rows"
        return (self.folder or cache_folder()) / "clip" / self.key[:32] / name

    def _load(self, index: int, rows: int, identity: str) -> Tensor | None:
        try:
            content = self._path(index, identity).read_bytes()
        except OSError:
            return None
        body = content[_SUM:]
        if content[:_SUM] != self._sum(index, rows, identity, body) or not body or len(body) % (4 * rows):
            return None
        return torch.from_numpy(np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(rows, -1))

    def _saved(self, index: int, rows: Tensor, identity: str) -> bool:
        """Whether a part could be written; if not, a warning says so. Several processes may write the same part."""
        body = rows.contiguous().numpy().astype("<f4").tobytes()
        path = self._path(index, identity)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(self._sum(index, len(rows), identity, body) + body)
        except OSError as error:
            warnings.warn(f"{path.parent}: {self.name} is not cached ({error.strerror or error})", stacklevel=4)
            return False
        return True

    def _sum(self, index: int, rows: int, identity: str, body: bytes) -> bytes:
        return hashlib.sha256(f"{self.key} {index} {rows}{identity and f' {identity}'}\n".encode() + body).digest()
