"""The image encoder in one precision and memory format, and what it really does: dtypes of its products, memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffvit.clip.hub import open_clip_library

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MANTISSA = {"float32": 23, "tf32": 10, "float16": 10, "bfloat16": 7}  # bits after the point
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear")
# What may compute float32 products in fewer bits; each has a switch of its own. CUDA's come first.
_BACKENDS: Any = torch.backends
_SWITCHES: tuple[Any, ...] = (
    *(_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv),
    *(_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv),
)


@dataclass(frozen=True)
class Mode:
    """A precision to run the encoder in.

    Args:
        name: in tables.
        asked: of its products: ``float32``, ``tf32``, ``float16`` or ``bfloat16``.
        autocast: whether weights stay float32 and autocast casts; else the weights are converted.
    """

    name: str
    asked: str
    autocast: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors in its products."""
        return torch.float32 if self.asked == "tf32" else getattr(torch, self.asked)

    @property
    def weights(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.autocast else self.dtype


STRICT, TF32 = Mode("FP32 strict", "float32"), Mode("TF32", "tf32")
MODES = (
    *(STRICT, TF32, Mode("FP16", "float16"), Mode("BF16", "bfloat16")),
    *(Mode("autocast FP16", "float16", True), Mode("autocast BF16", "bfloat16", True)),
)
REFERENCE = f"{STRICT.name}, contiguous"


@contextmanager
def float32_products(kind: str) -> Iterator[None]:
    """Compute products of float32 tensors in full (``ieee``) or in ``tf32``; settings are restored afterwards.

    TF32 exists on CUDA alone: oneDNN's switches are set to full precision in both cases.
    """
    before = [switch.fp32_precision for switch in _SWITCHES]
    try:
        for place, switch in enumerate(_SWITCHES):
            switch.fp32_precision = kind if place < 2 else "ieee"
        yield
    finally:
        for switch, was in zip(_SWITCHES, before, strict=True):
            switch.fp32_precision = was


@dataclass(frozen=True)
class Engine:
    """The encoder in one mode and memory format."""

    mode: Mode
    layout: str
    device: str
    model: nn.Module

    @property
    def name(self) -> str:
        """In a result."""
        return f"{self.mode.name}, {self.layout}"

    @property
    def facts(self) -> dict[str, Any]:
        """The columns of a row that say what it is of."""
        return {
            **{"name": self.name, "mode": self.mode.name, "layout": self.layout},
            **{"asked": self.mode.asked, "autocast": self.mode.autocast},
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

        Returns:
            ``asked``, ``observed`` (see :func:`observed_name`), ``substituted`` (they differ), ``products`` (count per
            dtype), ``kept_bits`` (per dtype, of :func:`kept_bits`), ``weight_bytes`` and ``activation_bytes``: on a CPU
            the peak of live tensors, on CUDA ``max_memory_allocated`` above what was allocated before.
        """
        weights = {tensor.data_ptr(): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        observer = Observer([*weights.values(), images])
        with self._settings(), observer:
            self.model(images.to(self.mode.weights))
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
            **{"asked": self.mode.asked, "observed": observed, "substituted": observed != self.mode.asked},
            **{"products": dict(observer.products), "kept_bits": bits, "activation_bytes": peak},
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        }


def engines_of(visual: nn.Module, device: str) -> list[Engine]:
    """Every mode in every memory format; modes with float32 weights share them. TF32 is CUDA's alone.

    Weights are converted by open_clip's ``convert_weights_to_lp``: convolutions, linear layers and projections, not
    norms nor the positions of the attention pool.
    """
    models: dict[tuple[torch.dtype, str], nn.Module] = {}
    found = []
    for mode in (mode for mode in MODES if device == "cuda" or mode is not TF32):
        for layout, memory_format in FORMATS.items():
            key = mode.weights, layout
            if key not in models:
                made: Any = copy.deepcopy(visual)
                if mode.weights != torch.float32:
                    open_clip_library().model.convert_weights_to_lp(made, mode.weights)
                models[key] = made.to(device).to(memory_format=memory_format)
            found.append(Engine(mode, layout, device, models[key]))
    return found


class Observer(TorchDispatchMode):
    """Records the operators of a forward pass, below autocast and autograd.

    Attributes:
        products: number of convolutions and matrix products by the dtype of their output: ``{"float16": 59}``.
        peak: most bytes at a time of tensors that the pass itself made: activations, and weights that autocast cast.

    Args:
        known: tensors that exist already, which do not count.
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


def observed_name(products: Mapping[str, int], bits: Mapping[str, Mapping[str, int]]) -> str:
    """Name of the observed precision.

    Args:
        products: of :class:`Observer`.
        bits: for each of its dtypes, of :func:`kept_bits`.

    Returns:
        ``float32``, ``tf32``, ``float16`` or ``bfloat16``; several joined with ``+``; ``none`` without products.
        float32 tensors whose products keep 10 bits are ``tf32``; other lost bits read like ``float16 of 7 bits``.
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
