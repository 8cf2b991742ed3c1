"""The attention layer alone: every way to compute it, over the number of tokens and the width."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import timm_differential_layer
from benchmarks.settings import (
    DIFFERENTIAL,
    FAMILIES,
    HEAD_WIDTH,
    PASSES,
    PEERS,
    SOFTMAX,
    TIMM_DIFFERENTIAL,
    Choice,
    Grid,
    Rounds,
)
from benchmarks.throughput import Progress, measure
from diffvit.kernels import accelerate
from diffvit.measuring import facts, prepare, ratio, spread, waiter
from diffvit.models.attention import Attention, DifferentialAttention, softmax_map
from diffvit.training.environment import kernels

Layer = Callable[[Tensor], Tensor]
BACKENDS = {
    "SDPA math": SDPBackend.MATH,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Cell:
    """One figure of the result."""

    route: str
    tokens: int
    width: int
    dtype: str
    passes: str


def explicit(layer: Attention, x: Tensor) -> Tensor:
    """Softmax attention with the map written out."""
    q, k, v = layer.heads(x)
    return layer.proj((softmax_map(q, k) @ v).transpose(1, 2).flatten(2))


def by_sdpa(layer: Attention, x: Tensor, backend: SDPBackend) -> Tensor:
    """Our plain layer by one of torch's fused kernels."""
    with sdpa_kernel(backend):
        return layer(x)


def by_two_calls(layer: DifferentialAttention, x: Tensor) -> Tensor:
    """Differential attention by two fused calls, each with the whole value: twice the value products."""
    q, k, v = layer.heads(x)
    first, second = (F.scaled_dot_product_attention(q[:, :, at], k[:, :, at], v) for at in (0, 1))
    heads = first - layer.lam().to(first.dtype) * second
    heads = layer.sub_norm(heads.to(layer.sub_norm.weight.dtype)) * (1.0 - layer.lambda_init)
    return layer.proj(heads.transpose(1, 2).flatten(2))


def routes(width: int, device: str, *, timm: bool = True) -> dict[str, tuple[Layer, nn.Module]]:
    """Name to the way and the module whose weights it uses; ours as chosen first in both families.

    Raises:
        EnvironmentFault: timm was asked for and is not there.
    """
    heads = width // HEAD_WIDTH
    torch.manual_seed(0)
    softmax = Attention(width, heads).to(device)
    differential = DifferentialAttention(width, heads, layer_index=0).to(device)
    fast = nn.Sequential(softmax, differential)
    accelerate(fast)
    found: dict[str, tuple[Layer, nn.Module]] = {
        SOFTMAX: (fast[0], softmax),
        "explicit": (partial(explicit, softmax), softmax),
    }
    here = ("SDPA math", "SDPA flash") if device == "cpu" else tuple(BACKENDS)
    found |= {name: (partial(by_sdpa, softmax, backend=BACKENDS[name]), softmax) for name in here}
    found |= {
        DIFFERENTIAL: (fast[1], differential),
        "step by step": (differential, differential),
        "two SDPA calls": (partial(by_two_calls, differential), differential),
    }
    if timm:
        theirs = timm_differential_layer(width, heads).to(device)
        found[TIMM_DIFFERENTIAL] = (theirs, theirs)
    return found


def _forward(layer: Layer, x: Tensor, dtype: str) -> Callable[[], object]:
    def step() -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            return layer(x)

    return step


def _backward(layer: Layer, module: nn.Module, x: Tensor, dtype: str) -> Callable[[], object]:
    x = x.clone().requires_grad_()

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            read = layer(x)
        read.backward(torch.ones_like(read))
        module.zero_grad(set_to_none=True)
        x.grad = None

    return step


_NO_KERNEL = ("No available kernel", "No viable backend", "cuDNN Frontend error")


def _works(step: Callable[[], object]) -> bool:
    """Whether a kernel takes these shapes in this dtype: torch says so only when asked, and explains by warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
    except RuntimeError as error:
        if any(reason in str(error) for reason in _NO_KERNEL):
            return False
        raise
    return True


def run(
    grid: Grid,
    how: Rounds,
    choice: Choice,
    *,
    device: str,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the layer, all ways of one combination in turns; see :func:`benchmarks.throughput.run`.

    Raises:
        EnvironmentFault: timm was asked for and is not there.
    """
    threads = prepare(threads)
    environment = {**facts(device, threads, PEERS), "kernels": kernels(device, "bf16")}
    arms: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    combinations = [
        (dtype, width, tokens) for dtype in choice.dtypes for width in grid.widths for tokens in grid.tokens
    ]
    ways = {width: routes(width, device, timm="timm" in choice.peers) for width in grid.widths}
    for done, (dtype, width, tokens) in enumerate(combinations, 1):
        x = torch.randn(grid.batch(tokens), tokens, width, generator=torch.Generator().manual_seed(0)).to(device)
        steps = {}
        for name, (layer, module) in ways[width].items():
            made = _forward(layer, x, dtype), _backward(layer, module, x, dtype)
            if all(_works(step) for step in made):
                steps |= {
                    Cell(name, tokens, width, dtype, passes): step for passes, step in zip(PASSES, made, strict=True)
                }
        seconds = measure({str(place): step for place, step in enumerate(steps.values())}, how, wait=waiter(device))
        cells = dict(zip(steps, seconds.values(), strict=True))
        arms += [_figures(cell, found) for cell, found in cells.items()]
        rows += _rows_of(cells)
        if progress:
            progress(done, len(combinations))
    return {
        "benchmark": "attention",
        "settings": {**asdict(grid), **asdict(how), **asdict(choice), "head_width": HEAD_WIDTH},
        "environment": environment,
        "arms": arms,
        "rows": rows,
    }


def _figures(cell: Cell, seconds: Sequence[float]) -> dict[str, Any]:
    median, low, high = spread([1000 * each for each in seconds])
    return {**asdict(cell), "milliseconds": median, "low": low, "high": high, "seconds": list(seconds)}


def _rows_of(cells: Mapping[Cell, Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Our choice against every other way of the same family, within each round; above 1, ours is faster."""
    for cell, seconds in cells.items():
        for rival in FAMILIES.get(cell.route, ()):
            other = Cell(rival, cell.tokens, cell.width, cell.dtype, cell.passes)
            if other in cells:
                found = ratio(cells[other], seconds)
                yield {
                    **{"ours": cell.route, "peer": rival, "dtype": cell.dtype, "compiled": False},
                    **{"tokens": cell.tokens, "width": cell.width, "passes": cell.passes, "quantity": "speed"},
                    **{"ratio": found.median, "low": found.low, "high": found.high},
                }
