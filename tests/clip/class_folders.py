"""Folders of small pictures, one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> Path:
    """Blocks of colour: two seeds give pictures that a small random model tells apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    """``root/CLASS/0.png`` and so on."""
    seed = 0
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number}{suffix}", seed, (50 + number % 3, 40))
            seed += 1
    return root
