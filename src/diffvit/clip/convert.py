"""CLIP in half precision: what is halved, what stays float32, and the casts that this layout needs.

The list is that of CLIP's ``convert_weights`` (github.com/openai/CLIP, clip/model.py): weights and biases of
convolutions, linear layers and multi-head attention, and the two projections that are bare parameters. Batch norm,
layer norm, token embeddings, positions (those of the attention pool too) and the logit scale stay float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffvit.errors import ConfigError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HALVED_MODULES = (nn.Conv1d, nn.Conv2d, nn.Linear)
# Bare parameters: of multi-head attention (torch's and open_clip's own), then the projections out of the two towers.
_HALVED_PARAMETERS = {
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("text_projection", "proj"),
}


class CastInput:
    """A forward pre-hook: the first argument, where it is a float tensor, in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs that the module gets."""
        first, *rest = inputs
        return (first.to(self.dtype) if first.is_floating_point() else first, *rest)


class CastOutput:
    """A forward hook: the output in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The output that the module's caller gets."""
        return output.to(self.dtype)


def convert(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a CLIP model, or of its image encoder, with its weights in ``dtype`` as CLIP itself halves them.

    The copy takes the same inputs as the original (float32 images, token numbers) and gives embeddings in ``dtype``.
    Two kinds of casts, hooks on the copy's own modules, make that work on a CPU and on CUDA: the images on the way in,
    and around every layer norm, which computes in float32 like CLIP's own. Batch norm needs none: with float32 weights
    torch normalises half-precision activations in float32 and gives them back in half precision. The positions of the
    attention pool are cast by the pool itself, when they are added.

    Args:
        model: an open_clip ``CLIP``, or an image encoder (``model.visual``); float32, left as it is.
        dtype: float16, bfloat16, or float32, which gives a plain copy without any cast.

    Raises:
        ConfigError: another dtype, or a model that is not in float32.
    """
    if dtype not in DTYPES:
        raise ConfigError("dtype", f"CLIP is not converted to {dtype} (allowed: {', '.join(map(str, DTYPES))})")
    if found := {each.dtype for each in model.parameters()} - {torch.float32}:
        raise ConfigError("model", f"has weights in {', '.join(map(str, found))} (only float32 is converted)")
    made = copy.deepcopy(model)
    if dtype == torch.float32:
        return made
    for module in made.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _HALVED_MODULES) or name in _HALVED_PARAMETERS:
                parameter.data = parameter.data.to(dtype)
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(CastInput(torch.float32))
            module.register_forward_hook(CastOutput(dtype))
    visual = getattr(made, "visual", made)
    visual.register_forward_pre_hook(CastInput(dtype))
    return made


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every parameter and of every buffer of numbers with a point, by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.dtype for name, tensor in named if tensor.is_floating_point()}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, as they lie in memory; a tensor that is used twice counts once."""
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
