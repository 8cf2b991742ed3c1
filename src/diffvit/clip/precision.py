"""CLIP's image encoder in several precisions: speed, memory, and how far the embeddings move."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffvit.clip import drift
from diffvit.clip.encoder import Encoder, Load, encoder
from diffvit.clip.engine import Engine, engines
from diffvit.clip.precision_pictures import Pictures, pictures
from diffvit.clip.precision_settings import FORMATS, STRICT, Plan, modes_of
from diffvit.clip.timebox import Box, admit, boxed_rounds
from diffvit.measuring import Result, facts, prepare, ratio, spread, waiter

KIND = "precision"
_STRICT = f"{STRICT.name}, {FORMATS[0]}"
_DRIFT_SHARE = 0.25  # of the time that is left after the first batch size
_FIRST_SHARE = 0.4  # of the time: to watch a first pass of everything, of the smallest batch
_WARM_UP = 5.0  # seconds: a pass that takes less runs a second time before the clock counts
Tell = Callable[[str], object]


def run(
    plan: Plan,
    *,
    data_dir: Path | None = None,
    weights: Path | None = None,
    load: Load | None = None,
    device: str = "cpu",
    threads: int = 0,
    tell: Tell = lambda _: None,
) -> Result:
    """Measure every mode, batch size and memory format within the plan's budget.

    Args:
        plan: how much.
        data_dir: see :func:`diffvit.clip.precision_pictures.pictures`.
        weights: a file of CLIP weights; None for random ones.
        load: gives the model in such a file.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 is all cores this process may use.
        tell: told in a line what is done.

    Returns:
        ``benchmark``, ``settings``, ``environment``, ``encoder``, ``pictures``, ``rows`` (a row per cell, those left
        out with their ``reason``), ``drift`` (a row per mode and memory format), ``between``, ``seconds``; ready for
        JSON.

    Raises:
        ConfigError: weights that nothing can load.
        InputError: no images where they should be.
        EnvironmentFault: open_clip is not installed.
    """
    box = Box(time.perf_counter(), plan.budget)
    threads = prepare(threads)
    environment = {**facts(device, threads), "open_clip": _version("open_clip_torch")}
    shown = pictures(data_dir, plan.images)
    found = encoder(weights, load, shown.pixels)
    tell(f"{found.weights} weights, {len(shown.pixels)} images: {shown.name}")
    result = measure(found, shown, plan, box, device=device, tell=tell)
    return {**result, "environment": environment, "seconds": time.perf_counter() - box.start}


def measure(
    subject: Encoder, shown: Pictures, plan: Plan, box: Box, *, device: str, tell: Tell = lambda _: None
) -> Result:
    """The figures of :func:`run` for an encoder and pictures that are there."""
    every = {engine.name: engine for engine in engines(subject.visual, modes_of(device), device)}
    rows, drifted, per_image = [], None, {}
    sizes = sorted(set(plan.batch_sizes))
    for place, size in enumerate(sizes):
        batch, known = shown.batch(size), {name: size * cost for name, cost in per_image.items()}
        # Whatever first passes cost, a part of the time is left to use what they tell.
        cells = None if known else _watch(every, batch, known, plan, box.share(_FIRST_SHARE))
        # The drift takes its share once it is known what an image costs.
        part = box.share((1 - (_DRIFT_SHARE if drifted is None else 0)) / (len(sizes) - place))
        tell(f"batch {size}: {part.left:.0f} s")
        cells = cells or _watch(every, batch, known, plan, part)
        of_size = _timed(every, cells, plan, part)
        rows += of_size
        per_image |= {name: seconds / size for name, seconds in cells.expected.items()}
        per_image |= {row["name"]: _cost(row) / size for row in of_size if not row["reason"]}
        if drifted is None and _STRICT in per_image:
            tell("drift")
            drifted = _drift(every, shown.pixels, per_image, box.share(_DRIFT_SHARE))
    found, between = drifted or ({}, None)
    return {
        "benchmark": KIND,
        "settings": {**asdict(plan), "batch_sizes": sizes, "classes": drift.CLASSES, "logit_scale": drift.LOGIT_SCALE},
        "encoder": {
            "weights": subject.weights,
            "trained": subject.trained,
            "parameters": sum(each.numel() for each in subject.visual.parameters()),
        },
        "pictures": {"name": shown.name, "count": len(shown.pixels), "size": shown.pixels.shape[-1]},
        "rows": rows,
        "drift": [{**_cell(every[name]), **figures} for name, figures in found.items()],
        "between": between,
    }


def _cell(engine: Engine) -> dict[str, Any]:
    return {
        **{"name": engine.name, "mode": engine.mode.name, "layout": engine.layout},
        **{"asked": engine.mode.asked, "autocast": engine.mode.autocast},
    }


def _cost(row: Mapping[str, Any]) -> float:
    return row["latency"]["median"]


def _drift(every: Mapping[str, Engine], images: Tensor, per_image: Mapping[str, float], box: Box) -> Any:
    """Drift of the engines that ran at all, over as many images as the reference embeds in a quarter of the time."""
    known = {name: engine for name, engine in every.items() if name in per_image}
    count = max(2, min(len(images), int(box.left / 4 / per_image[_STRICT])))

    def embedder(engine: Engine) -> Callable[[Tensor], Tensor]:
        return lambda part: engine(engine.prepare(part))

    return drift.measure(
        {name: embedder(engine) for name, engine in known.items()}, _STRICT, images[:count], per_image, box
    )


class _Cells(NamedTuple):
    """The cells of one batch size: rows of all, and of those that can be timed the input and seconds per pass."""

    rows: dict[str, dict[str, Any]]
    inputs: dict[str, Tensor]
    expected: dict[str, float]


def _watch(every: Mapping[str, Engine], batch: Tensor, known: Mapping[str, float], plan: Plan, box: Box) -> _Cells:
    """Watch a pass of every cell that there is time for. Where costs are known, timing it has to fit in too."""
    rows = {name: {**_cell(engine), "batch_size": len(batch), "reason": ""} for name, engine in every.items()}
    cells = _Cells(rows, {}, {})
    chosen = admit(known, box.left, plan.least + 1, _STRICT) if known else list(every)
    for name in sorted(every, key=_by_cost(every, known)):
        needed = known.get(name, 0.0) + (plan.least * sum(cells.expected.values()) if known else 0.0)
        if name not in chosen or box.left <= needed:
            rows[name]["reason"] = _too_long(known.get(name))
            continue
        cells.inputs[name] = every[name].prepare(batch)
        seen, cells.expected[name] = _watched(every[name], cells.inputs[name], box.clock)
        rows[name] |= seen
    return cells


def _timed(every: Mapping[str, Engine], cells: _Cells, plan: Plan, box: Box) -> list[dict[str, Any]]:
    """The rows of one batch size with their times, in the order of the engines."""
    rows, inputs, expected = cells
    chosen = admit(expected, box.left, plan.least, _STRICT)
    for name in set(expected) - set(chosen):
        rows[name]["reason"] = _too_long(expected[name])

    def step(name: str) -> Callable[[], object]:
        return lambda: every[name](inputs[name])

    wait = waiter(every[_STRICT].device)
    seconds = boxed_rounds(
        {name: step(name) for name in chosen}, expected, box, least=plan.least, most=plan.most, wait=wait
    )
    for name, taken in seconds.items():
        size = rows[name]["batch_size"]
        rows[name] |= _speed(taken, seconds.get(_STRICT, []), size) if taken else {"reason": _too_long(expected[name])}
    return list(rows.values())


def _by_cost(every: Mapping[str, Engine], known: Mapping[str, float]) -> Callable[[str], Any]:
    """The quick ones first; where nothing is known yet the reference, then float16 at the end.

    A processor without instructions for float16 may take fifty times as long over it as over the others.
    """
    if known:
        return lambda name: (name != _STRICT, known.get(name, 0.0))
    return lambda name: (name != _STRICT, every[name].mode.asked == "float16", every[name].layout == FORMATS[0])


def _watched(engine: Engine, images: Tensor, clock: Callable[[], float]) -> tuple[dict[str, Any], float]:
    """What a pass does, and seconds that one takes; a quick one runs once more, to know it better."""
    wait = waiter(engine.device)
    start = clock()
    seen = engine.observe(images)
    wait()
    taken = clock() - start
    if taken < _WARM_UP:
        start = clock()
        engine(images)
        wait()
        taken = min(taken, clock() - start)
    return seen, taken


def _speed(seconds: Sequence[float], strict: Sequence[float], size: int) -> dict[str, Any]:
    """Latency and throughput, and how much faster than strict float32 in the same rounds."""
    shared = min(len(seconds), len(strict))
    return {
        "seconds": list(seconds),
        "latency": spread(seconds)._asdict(),
        "images_per_second": spread([size / each for each in seconds])._asdict(),
        "speed_ratio": ratio(strict[:shared], seconds[:shared])._asdict() if shared else None,
    }


def _too_long(seconds: float | None) -> str:
    return (
        "its first pass found no time"
        if seconds is None
        else f"a pass takes about {seconds:.3g} s, the time was too short"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
