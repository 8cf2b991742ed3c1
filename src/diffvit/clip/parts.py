"""Rows of numbers on the disk, in parts: each is written whole or not at all, and believed if its sum is right."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from diffvit.cache import replacing

_SUM = 32  # bytes of a SHA-256


@dataclass(frozen=True)
class Parts:
    """The parts of one set of rows: a classifier's, or those of pictures.

    Args:
        folder: where they lie; made when the first is saved.
        key: hash of all that the rows depend on. It goes into every part's sum, so a part of other rows is as good as
            damaged.
        name: what a warning calls the rows ("the classifier").
    """

    folder: Path
    key: str
    name: str

    def path(self, index: int, of: str = "") -> Path:
        """The file of a part.

        Args:
            index: its number.
            of: hash of what this part alone depends on, where there is such a thing; parts of different things lie
                beside each other.
        """
        return self.folder / (f"{index:06}-{of[:32]}.rows" if of else f"{index:06}.rows")

    def load(self, index: int, rows: int, of: str = "") -> Float32[Tensor, "rows dim"] | None:
        """A part, or None where it is missing, damaged, or of something else."""
        try:
            content = self.path(index, of).read_bytes()
        except OSError:
            return None
        body = content[_SUM:]
        if content[:_SUM] != self._sum(index, rows, of, body) or not body or len(body) % (4 * rows):
            return None
        return torch.from_numpy(np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(rows, -1))

    def save(self, index: int, rows: Float32[Tensor, "rows dim"], of: str = "") -> None:
        """Write a part; several processes may write the same one.

        Raises:
            OSError: nothing changed.
        """
        body = rows.contiguous().numpy().astype("<f4").tobytes()
        with replacing(self.path(index, of)) as temporary:
            temporary.write_bytes(self._sum(index, len(rows), of, body) + body)

    def saved(self, index: int, rows: Float32[Tensor, "rows dim"], of: str = "") -> bool:
        """Whether a part could be kept; where it could not, a warning says so, and the work goes on without."""
        try:
            self.save(index, rows, of)
        except OSError as error:
            warnings.warn(f"{self.folder}: {self.name} is not cached ({error.strerror or error})", stacklevel=3)
            return False
        return True

    def _sum(self, index: int, rows: int, of: str, body: bytes) -> bytes:
        return hashlib.sha256(f"{self.key} {index} {rows}{of and f' {of}'}\n".encode() + body).digest()
