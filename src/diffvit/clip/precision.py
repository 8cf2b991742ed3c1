"""CLIP's RN50 image encoder in FP32, TF32, FP16 and BF16: time, memory, precision observed, drift of the embeddings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import timer

from diffvit.clip.hub import open_clip_library, rn50_image_encoder
from diffvit.clip.precision_engine import REFERENCE, Engine, engines_of
from diffvit.clip.preprocess import Preprocessing
from diffvit.data import cifar10, shapes, sources
from diffvit.data.images import decode
from diffvit.errors import ConfigError, InputError
from diffvit.files import cache_folder
from diffvit.measuring import facts, order, prepare, spread

CLASSES, LOGIT_SCALE = 10, 100.0  # the scale that CLIP's training ends at (arXiv 2103.00020, section 2.5)
CLIP_IMAGES = Preprocessing(
    224, 224, "bicubic", False, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}
_DRIFT_SHARE = 0.25  # of the time that is left after the first batch size
_FIRST_SHARE = 0.4  # of the time: first passes of the smallest batch
_WARM_UP = 5.0  # seconds: a first pass that takes less is repeated, for a better estimate of its time

Result = dict[str, Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        batch_sizes: images per pass.
        budget: seconds for everything together; what does not fit is left out, with the reason in its row.
        images: test images for the drift.
        most: timed passes of a cell (mode, memory format, batch size) at most.
        least: timed passes that must fit into the budget, else the cell is left out.

    Raises:
        ConfigError: a number that measures nothing.
    """

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    budget: float = 240.0
    images: int = 32
    most: int = 15
    least: int = 2

    def __post_init__(self) -> None:
        for size in self.batch_sizes or (0,):
            if not 1 <= size <= 4096:
                raise ConfigError("--batch-sizes", f"must be from 1 to 4096 (found {size})")
        if not 1 <= self.budget < math.inf:
            raise ConfigError("--budget", f"must be at least 1 second (found {self.budget:g})")
        if not 2 <= self.images <= 10_000:
            raise ConfigError("--images", f"must be from 2 to 10000 (found {self.images})")


class Encoder(NamedTuple):
    """An image encoder in evaluation mode, float32, on the CPU; ``weights`` says where its weights come from."""

    visual: nn.Module
    weights: str
    trained: bool


class SampleImages(NamedTuple):
    """Normalised images, float32 (n, 3, 224, 224), and what to call them."""

    pixels: Tensor
    name: str


def run(
    plan: Plan,
    *,
    data_dir: Path | None = None,
    clip: nn.Module | None = None,
    weights: str = "",
    device: str = "cpu",
    threads: int = 0,
    tell: Callable[[str], object] = lambda _: None,
) -> Result:
    """Measure every mode, batch size and memory format within the plan's budget.

    Args:
        plan: how much.
        data_dir: see :func:`sample_images`.
        clip: a CLIP model with a ModifiedResNet as ``visual``; None for RN50 with random weights.
        weights: what to call the weights of ``clip``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0 is all cores this process may use.
        tell: called with a line for each step.

    Returns:
        ``benchmark``, ``settings``, ``environment``, ``encoder``, ``pictures``, ``rows`` (one per cell; those left out
        have a ``reason``), ``drift`` (one per mode and memory format), ``between``, ``seconds``; ready for JSON.

    Raises:
        InputError: ``data_dir`` holds no images.
        EnvironmentFault: open_clip is missing.
    """
    start = timer()
    environment = {**facts(device, prepare(threads)), "open_clip": open_clip_library().__version__}
    images = sample_images(data_dir, plan.images)
    if clip is None:
        encoder = Encoder(random_rn50(images.pixels[:8]), "random (seed 0)", False)
    else:
        visual: Any = copy.deepcopy(clip.visual)
        encoder = Encoder(visual.float().cpu().eval().requires_grad_(False), weights, True)
    tell(f"{encoder.weights} weights, {len(images.pixels)} images: {images.name}")
    found = measure(encoder, images, plan, device, start=start, tell=tell)
    return {**found, "environment": environment, "seconds": timer() - start}


def measure(
    encoder: Encoder,
    images: SampleImages,
    plan: Plan,
    device: str,
    *,
    start: float | None = None,
    clock: Clock = timer,
    tell: Callable[[str], object] = lambda _: None,
) -> Result:
    """The figures of :func:`run` for this encoder and these images; the budget began at ``start``, by ``clock``."""
    end = (clock() if start is None else start) + plan.budget
    engines = {engine.name: engine for engine in engines_of(encoder.visual, device)}
    sizes, rows, drift, between = sorted(set(plan.batch_sizes)), [], None, None
    per_image: dict[str, float] = {}
    for place, size in enumerate(sizes):
        left = max(0.0, end - clock())
        until = clock() + left * (1 - (_DRIFT_SHARE if drift is None else 0)) / (len(sizes) - place)
        first = until if per_image else clock() + _FIRST_SHARE * left
        tell(f"batch {size}: {until - clock():.0f} s")
        batch = images.pixels[torch.arange(size) % len(images.pixels)].contiguous()
        found, expected = _batch_rows(engines, batch, per_image, plan, (first, until), clock)
        rows += found
        per_image |= {name: seconds / size for name, seconds in expected.items()}
        per_image |= {row["name"]: row["latency"]["median"] / size for row in found if not row["reason"]}
        if drift is None and REFERENCE in per_image:
            tell("drift")
            until = clock() + _DRIFT_SHARE * max(0.0, end - clock())
            drift, between = _drift_rows(engines, images.pixels, per_image, until, clock)
    return {
        "benchmark": "precision",
        "settings": {**asdict(plan), "batch_sizes": sizes, "classes": CLASSES, "logit_scale": LOGIT_SCALE},
        "encoder": {
            **{"weights": encoder.weights, "trained": encoder.trained},
            "parameters": sum(each.numel() for each in encoder.visual.parameters()),
        },
        "pictures": {"name": images.name, "count": len(images.pixels), "size": images.pixels.shape[-1]},
        **{"rows": rows, "drift": drift or [], "between": between},
    }


# Time


def _batch_rows(
    engines: Mapping[str, Engine],
    batch: Tensor,
    per_image: Mapping[str, float],
    plan: Plan,
    ends: tuple[float, float],
    clock: Clock,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a batch size, and seconds per pass of the cells that ran at all.

    Args:
        engines: by name.
        batch: normalised images.
        per_image: seconds, of smaller batches; empty for the first size.
        plan: how many passes.
        ends: when the last first pass may begin, and when all must be done, by ``clock``.
        clock: synchronises the device.
    """
    rows = {name: {**engine.facts, "batch_size": len(batch), "reason": ""} for name, engine in engines.items()}
    known = {name: seconds * len(batch) for name, seconds in per_image.items()}
    inputs: dict[str, Tensor] = {}
    expected: dict[str, float] = {}
    chosen = admitted(known, ends[0] - clock(), plan.least + 1) if known else list(engines)
    # The reference comes first, then the quick ones; float16 last where nothing is known: some CPUs are slow at it.
    slow = {name: known.get(name, float(engine.mode.asked == "float16")) for name, engine in engines.items()}
    for name in sorted(engines, key=lambda name: (name != REFERENCE, slow[name])):
        needed = known.get(name, 0.0) + (plan.least * sum(expected.values()) if known else 0.0)
        if name not in chosen or ends[0] - clock() <= needed:
            rows[name]["reason"] = _too_long(known.get(name))
            continue
        inputs[name] = engines[name].prepare(batch)
        start = clock()
        rows[name] |= engines[name].observe(inputs[name])
        expected[name] = clock() - start
        if expected[name] < _WARM_UP:
            start = clock()
            engines[name](inputs[name])
            expected[name] = min(expected[name], clock() - start)
    timed = admitted(expected, ends[1] - clock(), plan.least)
    steps = {name: lambda name=name: engines[name](inputs[name]) for name in timed}
    seconds = rounds(steps, expected, ends[1], plan, clock=clock)
    strict = seconds.get(REFERENCE, [])
    for name in expected:
        if taken := seconds.get(name):
            ratios = [over / under for over, under in zip(strict, taken, strict=False)]
            rows[name] |= {
                **{"seconds": taken, "latency": spread(taken)._asdict()},
                "images_per_second": spread([len(batch) / each for each in taken])._asdict(),
                "speed_ratio": spread(ratios)._asdict() if ratios else None,
            }
        else:
            rows[name]["reason"] = _too_long(expected[name])
    return list(rows.values()), expected


def admitted(expected: Mapping[str, float], seconds: float, least: int) -> list[str]:
    """The cells of which ``least`` passes each fit into these seconds: the reference first, then the quick ones."""
    chosen, needed = set(), 0.0
    for name in sorted(expected, key=lambda name: (name != REFERENCE, expected[name])):
        needed += least * expected[name]
        if needed > seconds:
            break
        chosen.add(name)
    return [name for name in expected if name in chosen]


def rounds(
    steps: Mapping[str, Callable[[], object]],
    expected: Mapping[str, float],
    end: float,
    plan: Plan,
    *,
    clock: Clock = timer,
) -> dict[str, list[float]]:
    """Seconds per step, measured in rounds: each cell once per round, in an order that rotates and reverses.

    Each cell may spend what its ``plan.least`` steps need and an equal share of the rest. No step starts that would,
    by the cell's last time, end after ``end``. Round i of any two cells happened side by side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    last = {name: expected[name] for name in steps}
    spare = max(0.0, end - clock() - plan.least * sum(last.values())) / max(1, len(steps))
    allowed = {name: plan.least * last[name] + spare for name in steps}
    active, turn = list(steps), 0
    while active:
        for name in order(active, turn):
            start = clock()
            if start + last[name] > end:
                active.remove(name)
                continue
            steps[name]()
            last[name] = clock() - start
            seconds[name].append(last[name])
        active = [
            name
            for name in active
            if len(seconds[name]) < plan.most
            and (len(seconds[name]) < plan.least or sum(seconds[name]) + last[name] <= allowed[name])
        ]
        turn += 1
    return seconds


def _too_long(seconds: float | None) -> str:
    if seconds is None:
        return "its first pass found no time"
    return f"a pass takes about {seconds:.3g} s, the time was too short"


# Drift


def _drift_rows(
    engines: Mapping[str, Engine], images: Tensor, per_image: Mapping[str, float], end: float, clock: Clock
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Drift of each engine against the reference, over as many images as that embeds in a quarter of the time."""
    count = max(2, min(len(images), int((end - clock()) / 4 / per_image[REFERENCE])))

    def embedded(engine: Engine) -> Tensor:
        return torch.cat([engine(engine.prepare(part)).float().cpu() for part in images[:count].split(8)])

    reference = embedded(engines[REFERENCE])
    draw = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(CLASSES, reference.shape[1], generator=draw, dtype=torch.float64), dim=1)
    others = {name: count * per_image[name] for name in engines if name in per_image and name != REFERENCE}
    found = []
    for name in sorted(admitted(others, end - clock(), 1), key=others.__getitem__):
        if others[name] <= end - clock():
            found.append({**engines[name].facts, **drift(embedded(engines[name]), reference, classes)})
    return found, between(reference, classes)


def drift(embedded: Tensor, reference: Tensor, classes: Tensor) -> dict[str, Any]:
    """How far embeddings are from those in strict float32.

    Args:
        embedded: (n, dim) in any precision.
        reference: (n, dim), of the same images.
        classes: (classes, dim), unit vectors, float64.

    Returns:
        ``images``, ``cosine_min``, ``cosine_mean`` (embedding against reference), ``logit_difference`` (the largest;
        logits are 100 times the cosine with a class), ``agreement`` (share of images with the same first class).
    """
    found, right = (F.normalize(each.double().cpu(), dim=1) for each in (embedded, reference))
    # From the distance of the unit vectors: 1 - d^2 / 2 keeps the digits that a product near 1 would lose.
    cosine = 1 - (found - right).square().sum(1) / 2
    ours, theirs = (LOGIT_SCALE * each @ classes.T for each in (found, right))
    return {
        **{"images": len(found), "cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean())},
        "logit_difference": float((ours - theirs).abs().max()),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
    }


def between(reference: Tensor, classes: Tensor) -> dict[str, Any]:
    """``cosine_between``, the mean over pairs of different images, and ``classes_found``, how many come first."""
    units = F.normalize(reference.double().cpu(), dim=1)
    count = len(units)
    pairs = (float((units @ units.T).sum()) - count) / (count * (count - 1))
    return {"cosine_between": pairs, "classes_found": len((units @ classes.T).argmax(1).unique())}


# Images and weights


def sample_images(data_dir: Path | None, count: int) -> SampleImages:
    """Real images where there are any, as CLIP preprocesses them; nothing is downloaded.

    Args:
        data_dir: holds CIFAR-10 (see :func:`diffvit.data.sources.load`), or images in it and in folders below it.
            Without it: CIFAR-10 where ``DIFFVIT_DATA`` points, else in the user's cache; else the built-in shapes.
        count: images wanted; a folder may have fewer, and they are spread over its subfolders.

    Raises:
        InputError: no such folder, no images in it, or a damaged one.
    """
    place = sources.place_of("cifar10", data_dir)
    size = CLIP_IMAGES.size
    if place is not None and not place.is_dir():
        raise InputError(str(place), "no such folder", "--data-dir and DIFFVIT_DATA name the folder that data lies in.")
    if found := cifar10.find(place or cache_folder()):
        images = cifar10.load(found, "test")
        name, pixels = f"{images.name}, test, enlarged to {size} pixels", list(images.pixels[:count].numpy())
    elif data_dir is None:
        drawn = shapes.generate("test", count, size=size)
        name, pixels = f"{drawn.name}, drawn at {size} pixels", list(drawn.pixels.numpy())
    else:
        files = sorted(path for path in data_dir.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        if not files:
            raise InputError(str(data_dir), "holds neither CIFAR-10 nor images", "Leave --data-dir out for shapes.")
        count = min(count, len(files))
        some = [files[place * len(files) // count] for place in range(count)]
        name, pixels = f"folder {data_dir.resolve().name}", [decode(path, name=str(path)) for path in some]
    return SampleImages(torch.stack([CLIP_IMAGES(each) for each in pixels]), name)


def random_rn50(images: Tensor, seed: int = 0) -> nn.Module:
    """OpenAI's RN50 image encoder (38.3 million parameters) with random weights, in evaluation mode.

    Args:
        images: (n, 3, height, width), normalised, for :func:`calibrated`.
        seed: of the weights.

    Raises:
        EnvironmentFault: open_clip is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = rn50_image_encoder()
    return calibrated(made, images)


@torch.no_grad()
def calibrated(visual: nn.Module, images: Tensor) -> nn.Module:
    """Make rounding in every block reach the embedding of an untrained ModifiedResNet; changes it in place.

    open_clip starts the last batch norm of every block at zero, which switches its convolutions off. Here those start
    at 0.25, and the statistics of every batch norm come from these images, so that activations have a scale like a
    trained network's and different images different embeddings.
    """
    norms = {name: module for name, module in visual.named_modules() if isinstance(module, nn.BatchNorm2d)}
    momenta = [norm.momentum for norm in norms.values()]
    for name, norm in norms.items():
        norm.momentum = None  # the plain average over batches: that of this one
        if name.startswith("layer") and name.endswith("bn3"):
            nn.init.constant_(norm.weight, 0.25)
    visual.train()(images)
    for norm, momentum in zip(norms.values(), momenta, strict=True):
        norm.momentum = momentum
    return visual.eval().requires_grad_(False)
