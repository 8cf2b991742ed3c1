"""Whole models beside each other: training steps and inference, images per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.hardware import better, facts, peak_rate, prepare, product_rates, shapes_of, waiter
from benchmarks.memory import peak_memory
from benchmarks.peers import build, models_of, parameters_of
from benchmarks.settings import (
    DIFFERENTIAL,
    SOFTMAX,
    TIMM_DIFFERENTIAL,
    Choice,
    Rounds,
    Sizes,
)
from benchmarks.steps import LEARNING_RATE, STEPS, WEIGHT_DECAY, batch_of, forward_flops
from diffvit.errors import EnvironmentFault
from diffvit.measuring import Progress, Spread, measure, ratio, spread
from diffvit.training.environment import kernels, resolve_precision


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


def arms_of(names: Sequence[str], choice: Choice) -> list[Arm]:
    """Every model in every dtype, eager and then, where asked for, compiled."""
    ways = [False, True] if choice.compiled else [False]
    return [Arm(name, dtype, compiled) for compiled in ways for dtype in choice.dtypes for name in names]


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
    environment = {
        **facts(device, threads),
        "kernels": kernels(device, "bf16"),
    }  # before: the load average is to be that of others
    make, passes = STEPS[kind]
    names = models_of(choice.peers)
    arms = arms_of(names, choice)
    facts_of = {name: _facts_of(build(name, sizes), sizes) for name in names}
    batch = batch_of(sizes, device)
    steps: dict[str, Callable[[], object]] = {}
    for arm in arms:
        model = build(arm.model, sizes).to(device)
        steps[arm.name] = make(_compiled(model) if arm.compiled else model, *batch, arm.dtype)
    products = partial(product_rates, shapes_of(sizes, device), choice.dtypes, device)
    before = products()
    left_out = {arm.name: why for arm in arms if (why := _first_step(arm, steps[arm.name]))}
    arms, steps = [arm for arm in arms if arm.name not in left_out], _without(steps, left_out)
    seconds = measure(steps, how, wait=waiter(device), progress=progress)
    rates = better(before, products())
    steps.clear()  # the processes that measure memory need theirs
    found = [
        {
            **asdict(arm),
            **_figures(seconds[arm.name], sizes, passes * facts_of[arm.model]["flops_per_image"], rates, arm.dtype),
            **facts_of[arm.model],
            "peak_memory": None,
            "seconds": seconds[arm.name],
        }
        for arm in arms
    ]
    for row in found if memory else ():
        if not row["compiled"]:
            row["peak_memory"] = peak_memory(kind, row["model"], row["dtype"], sizes, device, threads)
    return {
        "benchmark": kind,
        "settings": {
            **asdict(sizes),
            **asdict(how),
            **asdict(choice),
            "optimizer": _OPTIMIZER if kind == "train" else None,
        },
        "environment": environment,
        "products": rates,
        "arms": found,
        "left_out": left_out,
        "rows": list(rows_of(seconds, arms, resolve_precision("auto", device))),
    }


_OPTIMIZER = f"AdamW, fused, lr {LEARNING_RATE}, weight decay {WEIGHT_DECAY}"


def _facts_of(model: nn.Module, sizes: Sizes) -> dict[str, int]:
    return {"parameters": parameters_of(model), "flops_per_image": forward_flops(model, sizes)}


def _compiled(model: nn.Module) -> nn.Module:
    """As users compile a model: torch's defaults."""
    made: Any = torch.compile(model)
    return made


def _first_step(arm: Arm, step: Callable[[], object]) -> str:
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


def _without(steps: Mapping[str, Callable[[], object]], names: Mapping[str, str]) -> dict[str, Callable[[], object]]:
    return {name: step for name, step in steps.items() if name not in names}


def _figures(
    seconds: Sequence[float], sizes: Sizes, flops: int, rates: Sequence[dict[str, Any]], dtype: str
) -> dict[str, float | None]:
    """Images per second with their interval, and the share of the machine's matrix-product rate."""
    median, low, high = spread([sizes.batch_size / each for each in seconds])
    rate = peak_rate(rates, dtype)
    return {"images_per_second": median, "low": low, "high": high, "mfu": flops * median / rate if rate else None}


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
    for compiled in dict.fromkeys(arm.compiled for arm in arms):
        for label, mine, theirs in (("auto", auto, "fp32"), ("bf16", "bf16", "bf16"), ("fp32", "fp32", "fp32")):
            for ours, peer in _pairs(arms):
                if peer == SOFTMAX and label == "auto":
                    continue
                our_arm, peer_arm = Arm(ours, mine, compiled).name, Arm(peer, theirs, compiled).name
                if not {our_arm, peer_arm} <= have:
                    continue
                over = (our_arm, peer_arm) if peer == SOFTMAX else (peer_arm, our_arm)
                found: Spread = ratio(*(seconds[name] for name in over))
                yield {
                    **{"ours": ours, "peer": peer, "dtype": label, "ours_dtype": mine, "peer_dtype": theirs},
                    **{"compiled": compiled, "quantity": "step time" if peer == SOFTMAX else "speed"},
                    **{"ratio": found.median, "low": found.low, "high": found.high},
                }


def _pairs(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    peers = [name for name in dict.fromkeys(arm.model for arm in arms) if name not in (SOFTMAX, DIFFERENTIAL)]
    return [
        *((DIFFERENTIAL if peer == TIMM_DIFFERENTIAL else SOFTMAX, peer) for peer in peers),
        (DIFFERENTIAL, SOFTMAX),
    ]
