"""Whole models beside each other: training steps and inference, images per second, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import build, models_of, parameters_of
from benchmarks.settings import DIFFERENTIAL, PEERS, SOFTMAX, TIMM_DIFFERENTIAL, Choice, Rounds, Sizes
from diffvit.errors import EnvironmentFault
from diffvit.measuring import facts, order, prepare, ratio, spread, waiter
from diffvit.training.environment import kernels, resolve_precision

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
TORCH_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE = {"cpu": 2048, "cuda": 8192}  # side of the square product
ROOT = Path(__file__).parents[1]
_STATUS = Path("/proc/self/status")
Progress = Callable[[int, int], object]  # told how many of how many are done
Shape = tuple[int, int, int]  # rows, inner, columns
Step = Callable[[], object]


@dataclass(frozen=True)
class Arm:
    """One model in one dtype, eager or compiled."""

    model: str
    dtype: str
    compiled: bool

    @property
    def name(self) -> str:
        """How it is called in the result."""
        return f"{self.model} {self.dtype}{' compiled' if self.compiled else ''}"


def run(
    kind: str,
    sizes: Sizes,
    how: Rounds,
    choice: Choice,
    *,
    device: str,
    threads: int = 0,
    memory: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure ``train`` or ``inference``.

    Args:
        kind: a name in :data:`STEPS`.
        sizes: of the models and the batch.
        how: rounds, steps and warm-up.
        choice: peers, dtypes, compiled or not.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 is all cores this process may use.
        memory: also measure each arm's peak memory, in processes of their own, after the timing.
        progress: told after each round.

    Returns:
        ``benchmark``, ``settings``, ``environment``, ``products`` (FLOP/s of matrix products), ``arms`` and ``rows``
        (ratios), ready for JSON.

    Raises:
        ConfigError: sizes that do not go together.
        EnvironmentFault: a peer is not there, or torch.compile does not work.
    """
    threads = prepare(threads)
    # First: the load average is to be that of others.
    environment = {**facts(device, threads, PEERS), "kernels": kernels(device, "bf16")}
    make, passes = STEPS[kind]
    names = models_of(choice.peers)
    every = [Arm(*each) for each in _arms(names, choice)]
    known = {name: _size_of(build(name, sizes), sizes) for name in names}
    batch = batch_of(sizes, device)
    steps: dict[str, Step] = {}
    for arm in every:
        model = build(arm.model, sizes).to(device)
        steps[arm.name] = make(_compiled(model) if arm.compiled else model, *batch, arm.dtype)
    rates = partial(product_rates, shapes_of(sizes, device), choice.dtypes, device)
    before = rates()
    left_out = {arm.name: why for arm in every if (why := _first_step(arm, steps[arm.name]))}
    arms = [arm for arm in every if arm.name not in left_out]
    seconds = measure({arm.name: steps[arm.name] for arm in arms}, how, wait=waiter(device), progress=progress)
    products = better(before, rates())
    steps.clear()  # the processes that measure memory need theirs
    found = []
    for arm in arms:
        images = spread([sizes.batch_size / each for each in seconds[arm.name]])
        rate, flops = peak_rate(products, arm.dtype), passes * known[arm.model]["flops_per_image"]
        found.append(
            {
                **asdict(arm),
                **{"images_per_second": images.median, "low": images.low, "high": images.high},
                "mfu": flops * images.median / rate if rate else None,
                **known[arm.model],
                "peak_memory": None,
                "seconds": seconds[arm.name],
            }
        )
    for row in found if memory else ():
        if not row["compiled"]:
            row["peak_memory"] = peak_memory(kind, row["model"], row["dtype"], sizes, device, threads)
    optimizer = f"AdamW, fused, lr {LEARNING_RATE}, weight decay {WEIGHT_DECAY}" if kind == "train" else None
    return {
        "benchmark": kind,
        "settings": {**asdict(sizes), **asdict(how), **asdict(choice), "optimizer": optimizer},
        "environment": environment,
        "products": products,
        "arms": found,
        "left_out": left_out,
        "rows": list(rows_of(seconds, arms, resolve_precision("auto", device))),
    }


def _arms(names: Sequence[str], choice: Choice) -> Iterator[tuple[str, str, bool]]:
    """Every model in every dtype, eager and then, where asked for, compiled."""
    for compiled in [False, True] if choice.compiled else [False]:
        for dtype in choice.dtypes:
            yield from ((name, dtype, compiled) for name in names)


def _size_of(model: nn.Module, sizes: Sizes) -> dict[str, int]:
    return {"parameters": parameters_of(model), "flops_per_image": forward_flops(model, sizes)}


def _compiled(model: nn.Module) -> nn.Module:
    """As users compile a model: torch's defaults."""
    made: Any = torch.compile(model)
    return made


def _first_step(arm: Arm, step: Step) -> str:
    """The first step, untimed: it compiles, allocates, picks kernels. Gives why a peer cannot be compiled, or ""."""
    try:
        step()
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        why = f"cannot be compiled here ({str(error).strip().splitlines()[0]})"
        if arm.model in (SOFTMAX, DIFFERENTIAL):
            raise EnvironmentFault(arm.name, why, "Leave out --compiled.") from error
        return why
    return ""


def batch_of(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Normalised random images float32 (batch, 3, height, width) and labels int64 (batch,), always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)
    labels = torch.randint(sizes.num_classes, (sizes.batch_size,), generator=generator)
    return images.to(device), labels.to(device)


def train_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Step:
    """Forward, cross-entropy, backward, one step of AdamW, gradients to None; in train mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Step:
    """Forward alone, in evaluation mode, under ``inference_mode``."""
    del labels  # only training needs them
    model.eval().requires_grad_(False)

    def step() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            return model(images)

    return step


STEPS = {"train": (train_step, 3), "inference": (inference_step, 1)}
"""What is measured, and its FLOPs in forward passes: a backward pass is counted as two."""


def measure(
    arms: Mapping[str, Step],
    how: Rounds,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Seconds per step of every arm, one figure per round that counts.

    Every arm has its turn in every round, so that a slow minute of the machine strikes all alike.

    Args:
        arms: name to one step.
        how: rounds, steps per turn, and rounds thrown away first.
        clock: seconds.
        wait: lets a device finish what it was given; called before the clock is read.
        progress: told after each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(how.warmup + how.rounds):
        for name in order(list(arms), turn):
            step = arms[name]
            wait()
            start = clock()
            for _ in range(how.steps):
                step()
            wait()
            if turn >= how.warmup:
                seconds[name].append((clock() - start) / how.steps)
        if progress:
            progress(turn + 1, how.warmup + how.rounds)
    return seconds


def rows_of(seconds: Mapping[str, Sequence[float]], arms: Sequence[Arm], auto: str) -> Iterator[dict[str, Any]]:
    """The ratios: each of ours against its rivals, within each round.

    Args:
        seconds: per step, per arm and round.
        arms: what was measured.
        auto: the dtype that ``--precision auto`` takes here.

    Returns:
        Rows with ``ours``, ``peer``, ``dtype``, ``ours_dtype``, ``peer_dtype``, ``compiled``, ``quantity``, ``ratio``,
        ``low``, ``high``. ``quantity`` is ``speed`` (above 1, ours is faster), or ``step time`` where differential is
        put over softmax (above 1, differential is slower). ``dtype`` is ``auto`` for what users get: ours in the dtype
        it chooses itself, the peer in float32.
    """
    have = {arm.name for arm in arms}
    peers = [name for name in dict.fromkeys(arm.model for arm in arms) if name not in (SOFTMAX, DIFFERENTIAL)]
    pairs = [(DIFFERENTIAL if peer == TIMM_DIFFERENTIAL else SOFTMAX, peer) for peer in peers]
    pairs.append((DIFFERENTIAL, SOFTMAX))
    for compiled in dict.fromkeys(arm.compiled for arm in arms):
        for label, mine, theirs in (("auto", auto, "fp32"), ("bf16", "bf16", "bf16"), ("fp32", "fp32", "fp32")):
            for ours, peer in pairs:
                if peer == SOFTMAX and label == "auto":
                    continue
                our_arm, peer_arm = Arm(ours, mine, compiled).name, Arm(peer, theirs, compiled).name
                if not {our_arm, peer_arm} <= have:
                    continue
                over = (our_arm, peer_arm) if peer == SOFTMAX else (peer_arm, our_arm)
                found = ratio(*(seconds[name] for name in over))
                yield {
                    **{"ours": ours, "peer": peer, "dtype": label, "ours_dtype": mine, "peer_dtype": theirs},
                    **{"compiled": compiled, "quantity": "step time" if peer == SOFTMAX else "speed"},
                    **{"ratio": found.median, "low": found.low, "high": found.high},
                }


def forward_flops(model: nn.Module, sizes: Sizes) -> int:
    """Floating-point operations of one forward pass over one image; a multiply-add counts as two.

    Matrix products and convolutions only, counted by torch while attention runs unfused, so that nothing is hidden.
    """
    image = torch.zeros(1, 3, sizes.image_size, sizes.image_size)
    training = model.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train(training)
    return int(counter.get_total_flops())


def shapes_of(sizes: Sizes, device: str) -> list[Shape]:
    """The matrix products of a block of the model, and a large one."""
    rows = sizes.batch_size * ((sizes.image_size // sizes.patch_size) ** 2 + 1)
    dim, hidden = sizes.embed_dim, int(sizes.embed_dim * sizes.mlp_ratio)
    side = LARGE[device]
    return [(rows, dim, 3 * dim), (rows, dim, hidden), (rows, hidden, dim), (side, side, side)]


def product_rates(shapes: Sequence[Shape], dtypes: Sequence[str], device: str) -> list[dict[str, Any]]:
    """FLOP/s of plain matrix products, a multiply-add counted as two.

    Returns:
        A row per dtype and shape: ``dtype``, ``rows``, ``inner``, ``columns``, ``best`` and ``median``, FLOP/s.
    """
    found = []
    for dtype in dtypes:
        for rows, inner, columns in dict.fromkeys(shapes):
            kind: Any = {"device": device, "dtype": TORCH_DTYPE[dtype]}
            sides = {"x": torch.randn(rows, inner, **kind), "weight": torch.randn(columns, inner, **kind)}
            known = {**sides, "linear": torch.inference_mode()(F.linear)}
            timer = Timer("linear(x, weight)", globals=known, num_threads=torch.get_num_threads())
            seconds = timer.blocked_autorange(min_run_time=0.2)
            flops = 2.0 * rows * inner * columns
            shape = {"dtype": dtype, "rows": rows, "inner": inner, "columns": columns}
            found.append({**shape, "best": flops / min(seconds.times), "median": flops / seconds.median})
    return found


def better(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the same products measured twice, the better figures."""
    return [
        {**one, **{key: max(one[key], two[key]) for key in ("best", "median")}}
        for one, two in zip(before, after, strict=True)
    ]


def peak_rate(products: Sequence[dict[str, Any]], dtype: str) -> float | None:
    """The best FLOP/s of any shape in this dtype."""
    return max((product["best"] for product in products if product["dtype"] == dtype), default=None)


def peak_memory(kind: str, model: str, dtype: str, sizes: Sizes, device: str, threads: int) -> int | None:
    """Bytes that two steps need at their peak beyond the bare libraries, measured in a process of its own.

    On a CPU: growth of the peak resident set from before the model is built (weights, gradients, the optimiser's
    state, activations, and what the kernels set up). On CUDA: ``max_memory_allocated``. None where neither is known.

    Raises:
        EnvironmentFault: the process failed.
    """
    if device != "cuda" and not _STATUS.exists():
        return None
    asked = json.dumps([kind, model, dtype, asdict(sizes), device, threads])
    command = [sys.executable, "-m", "benchmarks.throughput", asked]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFault(f"memory of {model}", f"cannot be measured ({last})", "Leave it out with --no-memory.")
    return int(done.stdout.split()[-1])


def _memory_here(kind: str, name: str, dtype: str, sizes: Sizes, device: str, threads: int) -> int:
    def two_steps(sizes: Sizes) -> None:
        step = STEPS[kind][0](build(name, sizes).to(device), *batch_of(sizes, device), dtype)
        step()
        step()

    torch.set_num_threads(threads)
    two_steps(replace(sizes, embed_dim=2 * sizes.num_heads, depth=1, batch_size=1))  # imports, first use of kernels
    before = _peak(device)
    two_steps(sizes)
    return _peak(device) - (0 if device == "cuda" else before)


def _peak(device: str) -> int:
    """Peak bytes so far. Not getrusage's: a child inherits its parent's there."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    kind, model, dtype, sizes, device, threads = json.loads(sys.argv[1])
    print(_memory_here(kind, model, dtype, Sizes(**sizes), device, threads))
