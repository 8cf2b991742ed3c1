"""Linear layers with the bias inside the product: bfloat16 autocast on a CPU.

torch writes the bias into every row of the result first and has the product added to it: one more pass over the result.
oneDNN, asked as torch's own compiler asks it, adds the bias to the sums before they are rounded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from diffvit.models.autocast import casts_to_bfloat16, once_differentiable
from diffvit.models.native_tokens import has_hooks
from diffvit.native.library import usable


def linear(
    layer: nn.Linear, x: Float[Tensor, "*lead dim"], weight: Float[Tensor, "out dim"] | None = None
) -> Float[Tensor, "*lead out"]:
    """``layer(x)``; with ``weight`` in place of the layer's own where it is given."""
    if _pays(layer, x):
        weight = layer.weight if weight is None else weight
        return _Biased.apply(x.bfloat16(), weight.bfloat16(), layer.bias)
    return layer(x) if weight is None else F.linear(x, weight, layer.bias)


def _pays(layer: nn.Linear, x: Tensor) -> bool:
    return (
        casts_to_bfloat16()
        and x.dtype in (torch.float32, torch.bfloat16)
        and type(x) is Tensor
        and x.numel() > 0
        and type(layer) is nn.Linear
        and layer.bias is not None
        and x.dim() > 1
        and layer.weight.dtype == torch.float32
        and not has_hooks(layer)
        and usable(x.device)
    )


class _Biased(Function):
    """``apply(x, weight, bias)``: x and weight in bfloat16, bias in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``x weight^T + bias``."""
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias.bfloat16(), "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of all three."""
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            (grad @ weight).view(x.shape) if of_x else None,
            grad.T @ x.flatten(0, -2) if of_weight else None,
            grad.sum(dim=0).float() if of_bias else None,
        )
