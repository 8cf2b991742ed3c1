"""What an engine really does: the dtypes of its products, the memory of a pass, and the bits its products keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear")
_ATTENTION = "scaled_dot_product"
MANTISSA = {"float32": 23, "tf32": 10, "float16": 10, "bfloat16": 7}  # bits after the point


class Observer(TorchDispatchMode):
    """Watches one forward pass, operator by operator, below autocast and autograd.

    Attributes:
        products: how many convolutions and matrix products gave which dtype, e.g. ``{"float16": 59}``.
        peak: most bytes at a time of tensors that the pass itself made: activations, and weights that autocast
            cast. Weights and inputs that were there before do not count, nor does what a kernel needs inside itself.

    Args:
        known: tensors that are there already.
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
        """Run an operator and note what came out."""
        del types
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__.strip("_")
        if made and (any(name.endswith(product) for product in _PRODUCTS) or name.startswith(_ATTENTION)):
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
    """What to call the precision that was seen.

    Args:
        products: as :class:`Observer` counts them.
        bits: by dtype of those products, as :func:`kept_bits` gives them.

    Returns:
        ``float32``, ``tf32``, ``float16`` or ``bfloat16``; several with ``+`` where the products differed, and
        ``none`` where there were none. Fewer bits than the tensors' dtype has are told: float32 tensors whose products
        keep 10 bits are ``tf32``, anything else reads like ``float16 of 7 bits``.
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
    """How many bits after the point survive a product with one, of a convolution and of a matrix product.

    23 in float32, 10 in TF32 and float16, 7 in bfloat16, whatever dtype the tensors claim to have: an engine that
    quietly rounds its operands to fewer bits is caught.
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


def tensors_of(model: nn.Module, *more: Tensor) -> list[Tensor]:
    """All parameters and buffers, and more tensors that a pass did not make."""
    return [*model.parameters(), *model.buffers(), *more]
