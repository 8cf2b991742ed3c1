"""CLIP's image encoder in FP32, TF32, FP16, BF16 and int8: time, memory, precision observed, drift and accuracy."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import timer

from diffvit.clip.encode import float32_products
from diffvit.clip.labelled import CIFAR10, Labelled, of_files, open_labelled
from diffvit.clip.load import Clip
from diffvit.clip.preprocess import Preprocessing
from diffvit.clip.templates import load_templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.data import cifar10, shapes, sources
from diffvit.data.layout import image_files
from diffvit.errors import ConfigError, EnvironmentFault, InputError
from diffvit.files import cache_folder
from diffvit.hub.libraries import library
from diffvit.hub.onnx_file import Int8
from diffvit.measuring import facts, order, prepare, spread
from diffvit.models.vit import VisionTransformer
from diffvit.reporting.stats import wilson

CLASSES, LOGIT_SCALE = 10, 100.0  # without prompts; CLIP's training ends at this scale (arXiv 2103.00020, section 2.5)
TEMPLATES = "openai-80"
CLIP_IMAGES = Preprocessing(
    224, 224, "bicubic", False, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MANTISSA = {"float32": 23, "tf32": 10, "float16": 10, "bfloat16": 7}  # bits after the point
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear")


@dataclass(frozen=True)
class Plan:
    """How much is measured: the drift on so many ``images``, and each cell (mode, memory format, batch size).

    A cell is timed at ``most`` so many times. What does not fit into the ``budget``, seconds for all measurements
    together, is left out, with the reason in its row.

    Raises:
        ConfigError: a number that measures nothing.
    """

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    budget: float = 240.0
    images: int = 32
    most: int = 15

    def __post_init__(self) -> None:
        for size in self.batch_sizes or (0,):
            if not 1 <= size <= 4096:
                raise ConfigError("--batch-sizes", f"must be from 1 to 4096 (found {size})")
        if not 1 <= self.budget < math.inf:
            raise ConfigError("--budget", f"must be at least 1 second (found {self.budget:g})")
        if not 2 <= self.images <= 10_000:
            raise ConfigError("--images", f"must be from 2 to 10000 (found {self.images})")


def run(
    plan: Plan,
    *,
    data_dir: Path | None = None,
    clip: Clip | None = None,
    device: str = "cpu",
    threads: int = 0,
    tell: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure every mode, batch size and memory format within the plan's budget, on :func:`sample_images`.

    ``clip`` is None for RN50 with random weights. ``threads`` of 0 are all cores this process may use. Where the images
    have classes and the weights are trained, logits and accuracy are zero-shot. The budget begins when the texts of the
    classes are encoded and the encoder is there in every precision. Returns what precision.json holds: ``rows`` has a
    row per cell, with a ``reason`` where it was left out, ``drift`` one per mode and memory format.

    Raises:
        ConfigError: CLIP cannot tell the classes apart.
        InputError: ``data_dir`` holds no images.
        EnvironmentFault: open_clip is missing.
    """
    environment = {**facts(device, prepare(threads)), "open_clip": library("open_clip").__version__}
    labelled = sample_images(data_dir, plan.images)
    prepared = clip.preprocessing if clip else CLIP_IMAGES
    images = torch.stack([prepared(labelled.read(number)) for number in range(len(labelled))])
    zero_shot, weights, name = None, "random (seed 0)", "RN50"
    if clip is None:
        visual: Any = random_rn50(images[:8])
    else:
        visual, weights, name = copy.deepcopy(clip.model.visual), clip.source, clip.name
        if len(labelled.classes) > 1:
            zero_shot = zero_shot_targets(clip, labelled)
    visual = visual.float().cpu().eval().requires_grad_(False)
    tell(f"{name}, {weights} weights, {len(images)} images: {labelled.name}")
    engines = engines_of(visual, device)
    missing: dict[str, Any] = {}
    if device == "cpu":
        int8 = Engine(INT8, "contiguous", device, visual)
        try:
            engines[int8.facts["name"]] = replace(int8, model=Int8(visual, images))
        except EnvironmentFault as fault:
            missing = {**int8.facts, "reason": fault.line}
    start = timer()
    measured = measure(engines, images, plan, end=start + plan.budget, zero_shot=zero_shot, tell=tell)
    if missing:
        measured["rows"] += [{**missing, "batch_size": size} for size in sorted(set(plan.batch_sizes))]
    scale, count = (zero_shot.scale, len(labelled.classes)) if zero_shot else (LOGIT_SCALE, CLASSES)
    warnings = list(zero_shot.warnings) if zero_shot else []
    parameters = sum(each.numel() for each in visual.parameters())
    return {
        "benchmark": "precision",
        "settings": {**asdict(plan), "classes": count, "logit_scale": scale, "zero_shot": zero_shot is not None},
        "encoder": {"name": name, "weights": weights, "trained": clip is not None, "parameters": parameters},
        "pictures": {"name": labelled.name, "count": len(images), "size": images.shape[-1]},
        **measured,
        "warnings": warnings,
        "environment": environment,
        "seconds": timer() - start,
    }


# Modes


@dataclass(frozen=True)
class Mode:
    """A precision to run the encoder in: its name, and what is asked of its products: int8 or a key of MANTISSA.

    With ``autocast`` the weights stay float32 and autocast casts; else the weights are converted.
    """

    name: str
    asked: str
    autocast: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors in its products as torch sees them."""
        return torch.float32 if self.asked in ("tf32", "int8") else getattr(torch, self.asked)

    @property
    def weights(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.autocast else self.dtype


STRICT, TF32, INT8 = Mode("FP32 strict", "float32"), Mode("TF32", "tf32"), Mode("int8 dynamic", "int8")
MODES = (
    *(STRICT, TF32, Mode("FP16", "float16"), Mode("BF16", "bfloat16")),
    *(Mode("autocast FP16", "float16", True), Mode("autocast BF16", "bfloat16", True), INT8),
)
REFERENCE = f"{STRICT.name}, contiguous"


@dataclass(frozen=True)
class Engine:
    """The encoder in one mode and memory format."""

    mode: Mode
    layout: str
    device: str
    model: nn.Module

    @property
    def facts(self) -> dict[str, Any]:
        """The columns of a row that say what it is of; ``name`` tells engines apart."""
        mode = self.mode
        return {
            "name": f"{mode.name}, {self.layout}",
            "mode": mode.name,
            "layout": self.layout,
            "asked": mode.asked,
            "autocast": mode.autocast,
        }

    @contextmanager
    def _settings(self) -> Iterator[None]:
        kind = "tf32" if self.mode.asked == "tf32" else "ieee"
        with torch.no_grad(), float32_products(kind), torch.autocast(self.device, self.mode.dtype, self.mode.autocast):
            yield

    def prepare(self, images: Tensor) -> Tensor:
        """Images on the device in this memory format, float32: what a timed pass starts from."""
        return images.to(self.device).contiguous(memory_format=FORMATS[self.layout])

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (n, dim) of prepared images."""
        with self._settings():
            return self.model(images.to(self.mode.weights))

    def observe(self, images: Tensor) -> dict[str, Any]:
        """What one pass does; such a pass is never timed.

        ``observed`` is of :func:`observed_name`, ``products`` counts by dtype, ``kept_bits`` by dtype and kind of
        product; ``activation_bytes`` is on a CPU the peak of live tensors, on CUDA ``max_memory_allocated`` above what
        was allocated before. Of int8 they are read off the graph that onnxruntime runs, whose activations nobody sees.
        """
        if isinstance(self.model, Int8):
            self(images)
            products, observed = dict(self.model.products), "+".join(sorted(self.model.products))
            seen = {"asked": "int8", "observed": observed, "substituted": observed != "int8", "products": products}
            return {**seen, "kept_bits": {}, "activation_bytes": None, "weight_bytes": self.model.weight_bytes}
        weights = {tensor.data_ptr(): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        observer = Observer([*weights.values(), images])
        with observer:
            self(images)
        peak = observer.peak
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self(images)
            peak = torch.cuda.max_memory_allocated() - before
        with self._settings(), torch.autocast(self.device, enabled=False):  # autocast would cast the probe's operands
            bits = {dtype: kept_bits(getattr(torch, dtype), self.device) for dtype in observer.products}
        observed = observed_name(observer.products, bits)
        return {
            "asked": self.mode.asked,
            "observed": observed,
            "substituted": observed != self.mode.asked,
            "products": dict(observer.products),
            "kept_bits": bits,
            "activation_bytes": peak,
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        }


def engines_of(visual: nn.Module, device: str) -> dict[str, Engine]:
    """Every mode but int8 in every memory format, by name; modes with float32 weights share them. TF32 is CUDA's alone.

    Weights of open_clip's models are converted by its ``convert_weights_to_lp``: convolutions, linear layers and
    projections, not norms nor the positions of RN50's attention pool. Those of a ViT of ours are all converted.
    """
    own = isinstance(visual, VisionTransformer)
    models: dict[tuple[torch.dtype, str], nn.Module] = {}
    found = []
    for mode in (mode for mode in MODES if mode is not INT8 and (device == "cuda" or mode is not TF32)):
        for layout, memory_format in FORMATS.items():
            key = mode.weights, layout
            if key not in models:
                made: Any = copy.deepcopy(visual)
                if own:
                    made.to(mode.weights)
                elif mode.weights != torch.float32:
                    library("open_clip").model.convert_weights_to_lp(made, mode.weights)
                models[key] = made.to(device).to(memory_format=memory_format)
            found.append(Engine(mode, layout, device, models[key]))
    return {engine.facts["name"]: engine for engine in found}


# What a pass does


class Observer(TorchDispatchMode):
    """Records the operators of a forward pass, below autocast and autograd; ``known`` tensors do not count.

    Attributes:
        products: number of convolutions and matrix products by the dtype of their output: ``{"float16": 59}``.
        peak: most bytes at a time of tensors that the pass itself made: activations, and weights that autocast cast.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and record its output."""
        del types
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__.strip("_")
        if made and (name.endswith(_PRODUCTS) or name.startswith("scaled_dot_product")):
            self.products[str(made[0].dtype).removeprefix("torch.")] += 1
        # A weak reference keeps the number of a storage from being given out again, so the dead go first.
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        for tensor in made:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def observed_name(products: Iterable[str], bits: Mapping[str, Mapping[str, int]]) -> str:
    """Name of the precision observed: by the products' dtypes (:class:`Observer`) and each one's :func:`kept_bits`.

    Several are joined with ``+``; float32 whose products keep 10 bits is ``tf32``; other lost bits read like ``float16
    of 7 bits``.
    """
    names = set()
    for dtype in products:
        full = MANTISSA.get(dtype, 0)
        for kept in set(bits.get(dtype, {}).values()) or {full}:
            tf32 = dtype == "float32" and kept == MANTISSA["tf32"]
            names.add(dtype if kept >= full else "tf32" if tf32 else f"{dtype} of {kept} bits")
    return "+".join(sorted(names)) or "none"


@torch.no_grad()
def kept_bits(dtype: torch.dtype, device: str) -> dict[str, int]:
    """Bits after the point that survive a product with one: of a convolution and of a matrix product.

    23 in float32, 10 in TF32 and float16, 7 in bfloat16, whatever dtype the tensors have: this shows an engine that
    rounds its operands to fewer bits.
    """
    size = 256 if device == "cuda" else 64  # large enough for the kernels that a network's layers take
    one = torch.eye(size, device=device).to(dtype)
    found = {"convolution": 0, "matrix product": 0}
    for bits in range(1, 24):
        value = 1 + 2.0**-bits
        rows = torch.full((size, size), value, device=device).to(dtype)
        results = {
            "convolution": F.conv2d(rows.T.reshape(1, size, 8, size // 8).contiguous(), one[:, :, None, None]),
            "matrix product": F.linear(rows, one),
        }
        for name, result in results.items():
            if found[name] == bits - 1 and bool((result.float() == value).all()):
                found[name] = bits
    return found


# Time


def measure(
    engines: Mapping[str, Engine],
    images: Tensor,
    plan: Plan,
    *,
    end: float,
    zero_shot: Targets | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """``rows``, ``drift`` and ``between`` of :func:`run`, measured until ``end`` (of ``torch.utils.benchmark.timer``).

    Each batch size has an equal share of the time that is left, and the drift, which comes last, has the rest.
    """
    sizes, rows = sorted(set(plan.batch_sizes)), []
    per_image: dict[str, float] = {}
    for place, size in enumerate(sizes):
        share = (end - timer()) / (len(sizes) - place + 1)
        tell(f"batch {size}: {max(0.0, share):.0f} s")
        batch = images[torch.arange(size) % len(images)].contiguous()
        found, cost = _batch_rows(engines, batch, per_image, plan.most, timer() + share)
        rows += found
        per_image |= {name: seconds / size for name, seconds in cost.items()}
    if REFERENCE not in per_image:
        return {"rows": rows, "drift": [], "between": None}
    tell(f"drift: {max(0.0, end - timer()):.0f} s")
    drift, between = _drift_rows(engines, images, zero_shot, per_image, end)
    return {"rows": rows, "drift": drift, "between": between}


def _batch_rows(
    engines: Mapping[str, Engine], batch: Tensor, per_image: Mapping[str, float], most: int, until: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a batch size, and seconds per pass of the cells that ran.

    A cell's first pass is observed, and the next one timed: half of the time is for these, the reference first, then
    the cheapest at smaller batches (``per_image``, seconds); those that found no time there are not tried. The others
    are timed in rounds, in which each cell has a pass, as long as it has used no more than its share of the time.
    """
    rows = {name: {**engine.facts, "batch_size": len(batch), "reason": ""} for name, engine in engines.items()}
    cost = {name: seconds * len(batch) for name, seconds in per_image.items()}
    seconds: dict[str, dict[int, float]] = {name: {} for name in engines}  # by the round's number
    inputs: dict[str, Tensor] = {}
    half = (timer() + until) / 2
    for name in sorted(cost or engines, key=lambda name: (name != REFERENCE, cost.get(name, 0))):
        if (start := timer()) + 2 * cost.get(name, 0) < half:
            inputs[name] = engines[name].prepare(batch)
            rows[name] |= engines[name].observe(inputs[name])
            cost[name] = timer() - start
            if timer() < half:
                cost[name] = seconds[name][0] = _seconds(engines[name], inputs[name])
    timed = [name for name in engines if seconds[name]]
    share = (until - timer()) / max(1, len(timed))
    for turn in range(1, most):
        active = [name for name in timed if sum(seconds[name].values()) + cost[name] <= share + seconds[name][0]]
        for name in order(active, turn):
            if timer() + cost[name] <= until:
                cost[name] = seconds[name][turn] = _seconds(engines[name], inputs[name])
    strict = seconds[REFERENCE]
    for name, row in rows.items():
        if taken := list(seconds[name].values()):
            ratios = [strict[turn] / under for turn, under in seconds[name].items() if turn in strict]
            row |= {
                "seconds": taken,
                "latency": spread(taken)._asdict(),
                "images_per_second": spread([len(batch) / each for each in taken])._asdict(),
                "speed_ratio": spread(ratios)._asdict() if ratios else None,
            }
        elif name in cost:
            row["reason"] = f"a pass takes about {cost[name]:.3g} s, the time was too short"
        else:
            row["reason"] = "its first pass found no time"
    return list(rows.values()), {name: cost[name] for name in inputs}


def _seconds(engine: Engine, images: Tensor) -> float:
    start = timer()
    engine(images)
    return timer() - start


# Drift


class Targets(NamedTuple):
    """What embeddings are compared with: a float64 unit vector for each class, and the scale of the logits.

    ``labels`` (int64, one per image) are None where no accuracy is measured; ``warnings`` are of what CLIP cannot read
    of the classes' names.
    """

    classes: Tensor
    scale: float
    labels: Tensor | None = None
    warnings: Sequence[str] = ()


def zero_shot_targets(clip: Clip, labelled: Labelled) -> Targets:
    """The zero-shot classifier of the images' classes (OpenAI's 80 templates), and the images' labels."""
    classifier = zero_shot_classifier(clip, labelled.classes, load_templates(TEMPLATES))
    model: Any = clip.model
    scale, labels = float(model.logit_scale.exp()), torch.tensor(labelled.labels)
    return Targets(classifier.weights.double(), scale, labels, classifier.warnings)


def _drift_rows(
    engines: Mapping[str, Engine],
    images: Tensor,
    zero_shot: Targets | None,
    per_image: Mapping[str, float],
    until: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Drift of each engine against the reference, over as many images as that embeds in a quarter of the time."""
    count = max(2, min(len(images), int((until - timer()) / 4 / per_image[REFERENCE])))

    picked = torch.arange(count) * len(images) // count  # images may be sorted by class

    def embedded(engine: Engine) -> Tensor:
        return torch.cat([engine(engine.prepare(part)).float().cpu() for part in images[picked].split(8)])

    reference = embedded(engines[REFERENCE])
    draw = torch.Generator().manual_seed(0)
    random = F.normalize(torch.randn(CLASSES, reference.shape[1], generator=draw, dtype=torch.float64), dim=1)
    targets = zero_shot or Targets(random, LOGIT_SCALE)
    if targets.labels is not None:
        targets = targets._replace(labels=targets.labels[picked])
    found = [{**engines[REFERENCE].facts, **drift(reference, reference, targets)}]
    for name in sorted(per_image.keys() - {REFERENCE}, key=lambda name: per_image[name]):
        if timer() + count * per_image[name] <= until:
            found.append({**engines[name].facts, **drift(embedded(engines[name]), reference, targets)})
    return found, between(reference, targets.classes)


def drift(embedded: Tensor, reference: Tensor, targets: Targets) -> dict[str, Any]:
    """How far embeddings (n, dim), in any precision, are from the reference of the same images in strict float32.

    ``cosine_min`` and ``cosine_mean`` are of an embedding and its reference; ``logit_difference`` is the largest, of
    logits that are the scale times the cosine with the classes; ``agreement`` is the share of images with the same
    first class. With labels also ``accuracy``, its 95% interval ``low`` to ``high``, and how many images are ``gained``
    and ``lost`` (right here alone, right in the reference alone).
    """
    found, right = (F.normalize(each.double().cpu(), dim=1) for each in (embedded, reference))
    # From the distance of the unit vectors: 1 - d^2 / 2 keeps the digits that a product near 1 would lose.
    cosine = 1 - (found - right).square().sum(1) / 2
    ours, theirs = (targets.scale * each @ targets.classes.T for each in (found, right))
    first, before = ours.argmax(1), theirs.argmax(1)
    accuracy: dict[str, Any] = {}
    if targets.labels is not None:
        hits, had = first == targets.labels, before == targets.labels
        right_now = wilson(int(hits.sum()), len(found))
        accuracy = {"accuracy": right_now.estimate, "low": right_now.low, "high": right_now.high}
        accuracy |= {"gained": int((hits & ~had).sum()), "lost": int((had & ~hits).sum())}
    return {
        "images": len(found),
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "logit_difference": float((ours - theirs).abs().max()),
        "agreement": float((first == before).double().mean()),
        **accuracy,
    }


def between(reference: Tensor, classes: Tensor) -> dict[str, Any]:
    """``cosine_between``, the mean over pairs of different images, and ``classes_found``, how many come first."""
    units = F.normalize(reference.double().cpu(), dim=1)
    count = len(units)
    pairs = (float((units @ units.T).sum()) - count) / (count * (count - 1))
    return {"cosine_between": pairs, "classes_found": len((units @ classes.T).argmax(1).unique())}


# Images and weights


def sample_images(data_dir: Path | None, count: int) -> Labelled:
    """Images spread over the classes, not prepared yet; ``classes`` are empty where they have none.

    ``data_dir`` holds CIFAR-10, or a folder per class with images, or images in it and in folders below it. Without
    it: CIFAR-10 where ``DIFFVIT_DATA`` points, else in the user's cache; else the built-in shapes, drawn at 224 pixels.
    Nothing is downloaded.

    Raises:
        InputError: no such folder, fewer than two images in it, or a damaged one.
    """
    place = sources.place_of("cifar10", data_dir)
    if place is not None and not place.is_dir():
        raise InputError(str(place), "no such folder", "--data-dir and DIFFVIT_DATA name the folder that data lies in.")
    if cifar10.find(place or cache_folder()):
        labelled = open_labelled(CIFAR10, data_dir=data_dir)
    elif data_dir is None:
        drawn = shapes.generate("test", count, size=CLIP_IMAGES.size)
        pixels, numbers = drawn.pixels.numpy(), [str(number) for number in range(count)]
        labelled = Labelled(drawn.name, (), None, (0,) * count, (*numbers,), (*numbers,), lambda number: pixels[number])
    else:
        files = sorted(image_files(data_dir))
        if len(files) < 2:
            why = "holds a single image, two are needed" if files else "holds neither CIFAR-10 nor images"
            raise InputError(str(data_dir), why, "Leave --data-dir out for shapes.")
        labelled = of_files(data_dir, files, [0] * len(files), ())
        with contextlib.suppress(InputError):  # no folder per class, or without a name
            of_classes = open_labelled(data_dir).named()
            labelled = of_classes if len(of_classes) == len(files) else labelled
    return labelled.spread(count, range(len(labelled)))


def random_rn50(images: Tensor) -> nn.Module:
    """OpenAI's RN50 image encoder (arXiv 2103.00020, appendix F) with seeded weights, :func:`calibrated`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        resnet = library("open_clip").modified_resnet.ModifiedResNet
        made = resnet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64)
    return calibrated(made, images)


@torch.no_grad()
def calibrated(visual: nn.Module, images: Tensor) -> nn.Module:
    """Make rounding in every block reach the embedding of an untrained ModifiedResNet; changes it in place.

    open_clip starts the last batch norm of every block at zero, which switches its convolutions off. Here those start
    at 0.25, and the statistics of every batch norm come from these images, so that activations have a trained scale.
    """
    for name, norm in visual.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the plain average over batches: that of this one
            if name.startswith("layer") and name.endswith("bn3"):
                nn.init.constant_(norm.weight, 0.25)
    visual.train()(images)
    return visual.eval().requires_grad_(False)
