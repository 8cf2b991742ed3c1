"""The maps of a picture as a file for other programs."""

from __future__ import annotations

import io

import numpy as np
from torch import Tensor

from diffvit.attention.capture import Record


def maps_file(record: Record, heat: Tensor | None) -> bytes:
    """The first image's maps, and its rollout (rows, columns) if given, as npz; docs/attention.md lists the arrays."""
    arrays: dict[str, np.ndarray] = {"grid": np.array(record.grid), "prefix": np.array(record.prefix)}
    arrays["blocks"] = np.array(record.blocks)
    for block, maps in zip(record.blocks, record.layers, strict=True):
        arrays[f"layer_{block}_positive"] = maps.positive[0].numpy()
        if maps.negative is not None and maps.lam is not None:
            arrays[f"layer_{block}_negative"] = maps.negative[0].numpy()
            arrays[f"layer_{block}_lambda"] = maps.lam.numpy()
    if heat is not None:
        arrays["rollout"] = heat.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
