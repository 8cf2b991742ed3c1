"""Layer-wise relevance propagation as a backward pass with other rules: AttnLRP's and transformer attribution's.

Let ``s = R / x`` be a tensor's relevance over its value. Through an operation that is followed by its first-order
Taylor expansion, ``R_j = x_j sum_i (df_i / dx_j) R_i / f_i``, ``s`` is passed on exactly as a gradient is. So autograd
carries relevance: under :class:`Rules` a model's forward pass computes the same numbers, only a few operations pass
something else than their gradient to their input, and at the end ``R = x * x.grad``. Any module works that calls
torch's functions; weights that require no gradient are constants.

==================  ==================================================  ================================================
operation           ``attnlrp`` (arXiv 2402.05602)                      ``transformer`` (arXiv 2012.09838)
==================  ==================================================  ================================================
linear map          ``R_i = x_i sum_j w_ji R_j / z_j``: its gradient    each output to its positive terms ``x_i w_ji``
                                                                        alone, in proportion (z+)
sum of two          its gradient                                        each its share, then scaled by image so that
                                                                        the whole is kept and split by size
product of two      half to each factor                                 half to each factor
softmax             its gradient                                        its gradient
GELU, SiLU          ``R_in = R_out``                                    ``R_in = R_out``
LayerNorm, RMSNorm  the scale is a constant                             ``R_in = R_out``
==================  ==================================================  ================================================

Linear maps, sums, products, GELU and norms keep the sum of relevance, up to what biases and other constants take; a
softmax does not (its expansion has a constant term). A differential map ``A1 - lambda A2`` is a sum of two, so the
relevance of the second map is that of ``-lambda A2``; lambda is a weight, and the norm of each head is a norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffvit.errors import check_choice

RULES = ("attnlrp", "transformer")


class Rules(TorchFunctionMode):
    """Inside, operations pass relevance over value to their inputs instead of their gradient; values are unchanged.

    Args:
        rules: ``attnlrp`` or ``transformer``, see the module.

    Raises:
        ConfigError: no such rules.
    """

    def __init__(self, rules: str) -> None:
        super().__init__()
        check_choice("rules", rules, RULES)
        self._made = {**_SHARED, **(_ATTNLRP if rules == "attnlrp" else _TRANSFORMER)}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = self._made.get(func)
        kwargs = kwargs or {}
        return func(*args, **kwargs) if made is None else made(func, *args, **kwargs)


def _live(*tensors: Any) -> bool:
    """Whether all of them depend on what is attributed to."""
    return all(isinstance(each, Tensor) and each.requires_grad for each in tensors)


def _ratio(inputs: Tensor, outputs: Tensor, at_zero: float = 0.0) -> Tensor:
    """``outputs``, whose relevance is that of ``inputs``, element by element."""
    factor = torch.where(inputs == 0, at_zero, outputs / torch.where(inputs == 0, 1.0, inputs)).detach()
    linear = inputs * factor
    return linear + (outputs - linear).detach()


def _activation(func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _ratio(x, func(x, *args, **kwargs), 0.5)  # GELU's and SiLU's output over input where that is 0


def _product(func: Callable[..., Tensor], a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    out = func(a, b, *args, **kwargs)
    return out * 0.5 + (out * 0.5).detach() if _live(a, b) else out


def _attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """``scaled_dot_product_attention`` as its products, without dropout."""
    del func, args
    scale = kwargs.get("scale") or query.shape[-1] ** -0.5
    scores = _product(torch.matmul, query, key.mT) * scale
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return _product(torch.matmul, scores.softmax(dim=-1), value)


def _constant_scale(
    func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Any = None, eps: float | None = None
) -> Tensor:
    """LayerNorm or RMSNorm whose scale is a constant."""
    assert len(shape) == 1
    centred = x - x.mean(dim=-1, keepdim=True) if func is F.layer_norm else x
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = centred * (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt().detach()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _norm(func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _ratio(x, func(x, *args, **kwargs))


def _linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Relevance to the positive terms alone, in proportion to them; the bias takes none."""
    out = func(x, weight, bias)
    with torch.no_grad():
        up, down = weight.clamp_min(0), weight.clamp_max(0)
        total = F.linear(x.clamp_min(0), up) + F.linear(x.clamp_max(0), down)
        share = torch.where(total > 0, out / torch.where(total > 0, total, 1.0), 0.0)
        positive = (x > 0).to(x.dtype)
    terms = F.linear(x * positive, up) + F.linear(x * (1 - positive), down)
    linear = terms * share
    return linear + (out - linear).detach()


class _Shares(torch.autograd.Function):
    """A sum of two whose relevances are scaled, by image, to keep the whole (arXiv 2012.09838, section 3.2)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (s,) = grads
        a, b = ctx.saved_tensors
        dims = tuple(range(1, s.ndim))
        of_a, of_b = ((part * s).sum(dim=dims, keepdim=True) for part in (a, b))
        whole, sizes = of_a + of_b, of_a.abs() + of_b.abs()
        scales = [
            torch.where(part == 0, 0.0, part.abs() * whole / (torch.where(part == 0, 1.0, part) * sizes))
            for part in (of_a, of_b)
        ]
        return s * scales[0], s * scales[1]


def _sum(func: Callable[..., Tensor], a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not _live(a, b) or a.shape != b.shape or args or kwargs:
        return func(a, b, *args, **kwargs)
    minus = func in (torch.sub, Tensor.sub, Tensor.__sub__)
    return _Shares.apply(a, -b if minus else b)  # pyright: ignore[reportReturnType]


_PRODUCTS = (
    torch.matmul,
    torch.bmm,
    torch.mul,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.mul,
    Tensor.__mul__,
)
_SUMS = (torch.add, torch.sub, Tensor.add, Tensor.sub, Tensor.__add__, Tensor.__sub__)
_NORMS = (F.layer_norm, F.rms_norm)
_SHARED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.gelu, F.silu), _activation),
    **dict.fromkeys(_PRODUCTS, _product),
    F.scaled_dot_product_attention: _attention,
}
_ATTNLRP: dict[Any, Callable[..., Any]] = dict.fromkeys(_NORMS, _constant_scale)
_TRANSFORMER: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_NORMS, _norm),
    F.linear: _linear,
    **dict.fromkeys(_SUMS, _sum),
}
