"""An encoder in one mode and memory format, ready to run; and the switches that strict float32 and TF32 need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffvit.clip.convert import convert, weight_bytes
from diffvit.clip.observe import Observer, kept_bits, observed_name, tensors_of
from diffvit.clip.precision_settings import FORMATS, Mode

_LAYOUT: dict[str, torch.memory_format] = dict(
    zip(FORMATS, (torch.contiguous_format, torch.channels_last), strict=True)
)
# What may compute float32 products in fewer bits; each has a switch of its own. CUDA's come first.
_BACKENDS: Any = torch.backends
_SWITCHES: tuple[Any, ...] = (
    *(_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv),
    *(_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv),
)


@contextlib.contextmanager
def float32_products(kind: str) -> Iterator[None]:
    """Products of float32 tensors in full (``ieee``) or in ``tf32`` inside, as they were set afterwards.

    TF32 concerns CUDA alone: oneDNN's switches are set to full precision in both cases.
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
    """An encoder in one mode and memory format."""

    mode: Mode
    layout: str
    device: str
    model: nn.Module

    @property
    def name(self) -> str:
        """How it is called in a result."""
        return f"{self.mode.name}, {self.layout}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that products are to be in."""
        return torch.float32 if self.mode.asked == "tf32" else getattr(torch, self.mode.asked)

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        tf32 = "tf32" if self.mode.asked == "tf32" else "ieee"
        with torch.no_grad(), float32_products(tf32), torch.autocast(self.device, self.dtype, self.mode.autocast):
            yield

    def prepare(self, images: Tensor) -> Tensor:
        """Images on the device in this memory format, float32: what a timed pass starts from."""
        return images.to(self.device).contiguous(memory_format=_LAYOUT[self.layout])

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (n, dim) of prepared images."""
        with self._settings():
            return self.model(images)

    def observe(self, images: Tensor) -> dict[str, Any]:
        """One pass that is watched, never timed.

        Returns:
            ``asked``, ``observed`` (see :func:`diffvit.clip.observe.observed_name`), ``substituted`` (they differ),
            ``products`` (count per dtype), ``kept_bits`` (by that dtype: bits after the point that its products keep),
            ``weight_bytes`` and ``activation_bytes``: on a CPU of the tensors that live at a time, on CUDA
            ``max_memory_allocated`` above what was there before, which has kernels' workspaces in it.
        """
        with self._settings():
            observer = Observer(tensors_of(self.model, images))
            with observer:
                self.model(images)
            peak = _cuda_peak(self.model, images) if self.device == "cuda" else observer.peak
            # Without autocast, which would cast the probe's operands, and with the switches as the pass had them.
            with torch.autocast(self.device, enabled=False):
                bits = {dtype: kept_bits(getattr(torch, dtype), self.device) for dtype in observer.products}
        observed = observed_name(observer.products, bits)
        return {
            **{"asked": self.mode.asked, "observed": observed, "substituted": observed != self.mode.asked},
            **{"products": dict(observer.products), "kept_bits": bits},
            **{"weight_bytes": weight_bytes(self.model), "activation_bytes": peak},
        }


def _cuda_peak(model: nn.Module, images: Tensor) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(images)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def engines(visual: nn.Module, modes: tuple[Mode, ...], device: str) -> list[Engine]:
    """Every mode in every memory format. Modes with float32 weights share them.

    Args:
        visual: float32, evaluation mode; left as it is.
        modes: see :func:`diffvit.clip.precision_settings.modes_of`.
        device: ``cpu`` or ``cuda``.
    """
    models: dict[tuple[str, str], nn.Module] = {}
    for layout in FORMATS:
        for weights in dict.fromkeys(mode.weights for mode in modes):
            made: Any = convert(visual, getattr(torch, weights)).to(device)
            models[weights, layout] = made.to(memory_format=_LAYOUT[layout])
    return [Engine(mode, layout, device, models[mode.weights, layout]) for mode in modes for layout in FORMATS]
