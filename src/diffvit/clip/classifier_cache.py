"""A classifier's rows on the disk, in parts: each is written whole or not at all, and believed if its sum is right."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from diffvit.data.cache import replacing

_SUM = 32  # bytes of a SHA-256


@dataclass(frozen=True)
class Parts:
    """The parts of one classifier.

    Args:
        folder: where they lie; made when the first is saved.
        key: hash of all that the rows depend on. It goes into every part's sum, so a part of another classifier is
            as good as damaged.
    """

    folder: Path
    key: str

    def path(self, index: int) -> Path:
        """The file of a part."""
        return self.folder / f"{index:06}.rows"

    def load(self, index: int, rows: int) -> Float32[Tensor, "rows dim"] | None:
        """A part, or None where it is missing, damaged, or of another classifier."""
        try:
            content = self.path(index).read_bytes()
        except OSError:
            return None
        body = content[_SUM:]
        if content[:_SUM] != self._sum(index, rows, body) or not body or len(body) % (4 * rows):
            return None
        return torch.from_numpy(np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(rows, -1))

    def save(self, index: int, rows: Float32[Tensor, "rows dim"]) -> None:
        """Write a part; several processes may write the same one.

        Raises:
            OSError: nothing changed.
        """
        body = rows.contiguous().numpy().astype("<f4").tobytes()
        with replacing(self.path(index)) as temporary:
            temporary.write_bytes(self._sum(index, len(rows), body) + body)

    def _sum(self, index: int, rows: int, body: bytes) -> bytes:
        return hashlib.sha256(f"{self.key} {index} {rows}\n".encode() + body).digest()
