"""What the figures were measured on: names and versions, and how fast this machine multiplies matrices right now."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peers import versions
from benchmarks.settings import Sizes
from diffvit.training.environment import describe, usable_cores
from diffvit.training.memory import keep_freed_memory

TORCH_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE = {"cpu": 2048, "cuda": 8192}  # side of the square product
Shape = tuple[int, int, int]  # rows, inner, columns


def facts(device: str, threads: int) -> dict[str, Any]:
    """Versions, hardware, threads and date, and the machine's load average (one minute) as it was found."""
    found = describe(device=device, precision="", threads=threads, processes=1)
    del found["precision"], found["processes"], found["kernels"]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {**found, **versions(), "date": datetime.now(UTC).date().isoformat(), "load": load}


def prepare(threads: int) -> int:
    """Set the process up for measuring; the number of threads."""
    keep_freed_memory()
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    return threads


def waiter(device: str) -> Callable[[], None]:
    """Lets the device finish what it was given; nothing to do on a CPU."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def shapes_of(sizes: Sizes, device: str) -> list[Shape]:
    """The matrix products of a block of the model, and a large one."""
    rows = sizes.batch_size * ((sizes.image_size // sizes.patch_size) ** 2 + 1)
    dim, hidden = sizes.embed_dim, int(sizes.embed_dim * sizes.mlp_ratio)
    side = LARGE[device]
    return [(rows, dim, 3 * dim), (rows, dim, hidden), (rows, hidden, dim), (side, side, side)]


def product_rates(
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    device: str,
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """FLOP/s of plain matrix products, a multiply-add counted as two: the best of the repeats, taken in turns.

    Returns:
        A row per dtype and shape: ``dtype``, ``rows``, ``inner``, ``columns``, ``best`` and ``median``, FLOP/s.
    """
    wait = waiter(device)
    products = [(dtype, shape) for dtype in dtypes for shape in dict.fromkeys(shapes)]
    material = {}
    for dtype, (rows, inner, columns) in products:
        kind: Any = {"device": device, "dtype": TORCH_DTYPE[dtype]}
        material[dtype, (rows, inner, columns)] = torch.randn(rows, inner, **kind), torch.randn(columns, inner, **kind)
    rates: dict[tuple[str, Shape], list[float]] = {product: [] for product in products}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for product in products:
                wait()
                start = clock()
                F.linear(*material[product])
                wait()
                if turn:  # the first one warms up
                    rates[product].append(2.0 * product[1][0] * product[1][1] * product[1][2] / (clock() - start))
    return [
        {
            "dtype": dtype,
            **dict(zip(("rows", "inner", "columns"), shape, strict=True)),
            "best": max(rates[dtype, shape]),
            "median": statistics.median(rates[dtype, shape]),
        }
        for dtype, shape in products
    ]


def better(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the same products measured twice, the better figures."""
    return [
        {**one, **{key: max(one[key], two[key]) for key in ("best", "median")}}
        for one, two in zip(before, after, strict=True)
    ]


def peak_rate(products: Sequence[dict[str, Any]], dtype: str) -> float | None:
    """The best FLOP/s of any shape in this dtype."""
    return max((product["best"] for product in products if product["dtype"] == dtype), default=None)
