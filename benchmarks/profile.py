"""Where the time of a real training step goes: its three phases, and the operations that the device works on."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.settings import PEERS, PROFILE_WARMUP, PROFILED
from benchmarks.throughput import LARGE, Progress, peak_rate, product_rates
from diffvit.config import Config, config_hash
from diffvit.measuring import Result, facts, prepare, spread, waiter
from diffvit.training import environment
from diffvit.training.loop import Trainer
from diffvit.training.score import flops_per_image
from diffvit.training.task import Task, load_data

PHASES = {"_share": "next batch", "_backward": "forward and backward", "_update": "update"}
"""The methods of a trainer that make up a step, and what they are called."""

# The first that is found in an operation's or kernel's name, in small letters, names its kind.
KINDS: tuple[tuple[str, str], ...] = (
    ("fused by the compiler", r"^triton_"),  # named after all that went into them
    ("copies", r"memcpy|memset|aten::(copy_|_to_copy|contiguous|clone|cat|fill_|zero_)$|catarray"),
    ("optimizer, elementwise", r"multi_tensor_apply|fused_?adam|_foreach_|aten::lerp"),
    ("attention", r"flash|fmha|sdp|attention|^_core|^_softmax(backward)?$"),
    (
        "products",
        r"gemm|gemv|nvjet|cutlass|xmma|cublas|splitk|conv|linear_pointwise|aten::(mm|addmm|bmm|baddbmm|addbmm)$",
    ),
    (
        "norms, activations, sums",
        r"norm|gelu|softmax|reduce|elementwise|bias|aten::(sum|mean|mul|add|sub|div|exp)_?$",
    ),
)
REST = "other"
_SHOWN = 12  # operations named one by one
Mark = Callable[[], Any]


def kind_of(name: str) -> str:
    """The kind of an operation (CPU) or a kernel (CUDA) of this name."""
    small = name.lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, small)), REST)


class Marked(Trainer):
    """A trainer that notes when its phases begin and end, on the clock of the device that does the work."""

    mark: Mark
    marks: list[tuple[str, Any, Any]]

    def _share(self, *given: Any, **named: Any) -> Any:
        return self._marked("_share", *given, **named)

    def _backward(self, *given: Any, **named: Any) -> Any:
        return self._marked("_backward", *given, **named)

    def _update(self, *given: Any, **named: Any) -> Any:
        return self._marked("_update", *given, **named)

    def _marked(self, method: str, *given: Any, **named: Any) -> Any:
        begin = self.mark()
        result = getattr(super(), method)(*given, **named)
        self.marks.append((PHASES[method], begin, self.mark()))
        return result


def run(
    recipes: Sequence[tuple[str, Config]],
    *,
    device: str,
    threads: int = 0,
    steps: int = 30,
    progress: Progress = lambda *_: None,
) -> Result:
    """Profile the training step of each recipe, on its own data, as ``diffvit train`` would run it.

    Args:
        recipes: a name and the config of each.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 is all cores this process may use.
        steps: timed steps; :data:`PROFILED` more are profiled.
        progress: told after each recipe.

    Returns:
        ``benchmark``, ``settings``, ``environment``, ``products`` (FLOP/s of matrix products) and ``arms``, one per
        recipe: the step's milliseconds and MFU, its ``phases``, the ``kinds`` of operations, ``idle`` (no operation
        ran) and the costliest ``operations``, in milliseconds per step; ready for JSON.

    Raises:
        ConfigError, InputError: see :func:`diffvit.training.task.load_data`.
    """
    threads = prepare(threads)
    found = {**facts(device, threads, PEERS), "kernels": environment.kernels(device, "bf16")}
    side = LARGE[device]
    dtypes = sorted({environment.resolve_precision(config.precision, device) for _, config in recipes})
    products = product_rates([(side, side, side)], dtypes, device)
    arms = []
    for done, (name, config) in enumerate(recipes, 1):
        precision = environment.resolve_precision(config.precision, device)
        rate = peak_rate(products, precision)
        arms.append({"recipe": name, "precision": precision, **_arm(config, device, precision, steps, rate)})
        progress(done, len(recipes))
    return {
        "benchmark": "profile",
        "settings": {"steps": steps, "profiled": PROFILED, "warmup": PROFILE_WARMUP},
        "environment": found,
        "products": products,
        "arms": arms,
    }


def _arm(config: Config, device: str, precision: str, steps: int, rate: float | None) -> dict[str, Any]:
    trainer, task = _trainer(config, device, precision), Task()
    compile_seconds = trainer.warm_up()
    wait, taken = waiter(device), _steps(trainer)
    for _ in range(PROFILE_WARMUP):
        next(taken)
    trainer.marks.clear()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        next(taken)
    wait()
    seconds = (time.perf_counter() - start) / steps
    flops = 3 * flops_per_image(trainer.model) * config.batch_size
    return {
        "model": task.title(config),
        "config_hash": config_hash(config),
        "batch_size": config.batch_size,
        "compiled": config.compile,
        "compile_seconds": compile_seconds,
        "parameters": sum(parameter.numel() for parameter in trainer.parameters),
        "milliseconds": 1e3 * seconds,
        "images_per_second": config.batch_size / seconds,
        "mfu": flops / seconds / rate if rate else None,
        "phases": _phases(trainer.marks),
        **_operations(taken, device, wait),
    }


def _trainer(config: Config, device: str, precision: str) -> Marked:
    """As a run would make it; more epochs than it will ever see, so that its steps do not end."""
    task, data = Task(), load_data(config, lambda _: None)
    endless = config.model_copy(update={"epochs": max(config.epochs, 10_000)})
    fabric = environment.launch(device, precision)
    trainer = Marked(fabric, endless, data, task.model(config, data), task.objective(config, data))
    trainer.mark, trainer.marks = _clock(device), []
    return trainer


def _clock(device: str) -> Mark:
    """Notes the time: on CUDA an event in the stream, which the device stamps when it gets there."""
    if device != "cuda":
        return time.perf_counter

    def mark() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return mark


def _steps(trainer: Trainer) -> Iterator[None]:
    while True:
        yield from trainer.steps()
        trainer.finish_epoch()


def _phases(marks: Sequence[tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of each phase, the median over the steps with its interval."""
    milliseconds: dict[str, list[float]] = defaultdict(list)
    for phase, begin, end in marks:
        milliseconds[phase].append(1e3 * (end - begin) if isinstance(begin, float) else begin.elapsed_time(end))
    return [{"phase": phase, **spread(milliseconds[phase])._asdict()} for phase in PHASES.values()]


def _operations(taken: Iterator[None], device: str, wait: Callable[[], object]) -> dict[str, Any]:
    """What the device worked on in some steps, in milliseconds and calls per step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    wait()
    start = time.perf_counter()
    with profile(activities=activities) as watched:
        for _ in range(PROFILED):
            next(taken)
        wait()
        wall = 1e3 * (time.perf_counter() - start) / PROFILED
    return summary(worked(watched.events() or (), device), wall, PROFILED)


def worked(events: Iterable[Any], device: str) -> Iterator[tuple[str, float]]:
    """Name and microseconds of each operation: kernels on CUDA; on a CPU its own time, without those it calls."""
    for event in events:
        if event.is_user_annotation or (event.device_type.name == "CUDA") != (device == "cuda"):
            continue
        yield event.name, event.time_range.elapsed_us() if device == "cuda" else event.self_cpu_time_total


def summary(worked: Iterable[tuple[str, float]], wall: float, steps: int) -> dict[str, Any]:
    """Operations by kind and the costliest one by one.

    Args:
        worked: name and microseconds of every operation of the profiled steps.
        wall: milliseconds of a step while it was profiled.
        steps: how many there were.

    Returns:
        ``profiled_milliseconds``, ``kinds`` and ``operations`` (milliseconds and calls per step), ``idle``
        (milliseconds per step in which none ran).
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in worked:
        spent[name].append(microseconds / 1e3 / steps)
    rows = [
        {"operation": name, "kind": kind_of(name), "milliseconds": sum(each), "calls": len(each) / steps}
        for name, each in spent.items()
    ]
    rows.sort(key=lambda row: -row["milliseconds"])
    kinds = []
    for kind in (*(kind for kind, _ in KINDS), REST):
        mine = [row for row in rows if row["kind"] == kind]
        figures = {key: sum(row[key] for row in mine) for key in ("milliseconds", "calls")}
        kinds.append({"kind": kind, **figures})
    kinds.sort(key=lambda row: -row["milliseconds"])
    busy = sum(row["milliseconds"] for row in rows)
    return {"profiled_milliseconds": wall, "kinds": kinds, "operations": rows[:_SHOWN], "idle": max(0.0, wall - busy)}
