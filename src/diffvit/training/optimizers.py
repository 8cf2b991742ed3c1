"""Which update each parameter gets: Muon or AdamW, with or without weight decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from diffvit.training.muon import BatchedMuon

MATRICES_BESIDE_THE_BLOCKS = ("patch_embed.proj.weight", "head.")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter takes weight decay: the blocks' matrices, the patch projection and the head's weights.

    Norms, biases, positions, tokens and lambdas take none.
    """
    return parameter.ndim >= 2 and _within(name).startswith(("blocks.", *MATRICES_BESIDE_THE_BLOCKS))


def _within(name: str) -> str:
    """A parameter's name within the ViT, which in a CLIP is its image tower; a text tower's matrices take no decay."""
    return name.removeprefix("visual.")


def build(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    muon_lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    momentum: float,
    split_qkv: bool = False,
) -> dict[str, Optimizer]:
    """The optimisers of a model, by name; together they hold every parameter once.

    ``muon`` gives the blocks' matrices to Muon (Jordan et al. 2024), its step scaled to the size of AdamW's
    (arXiv 2502.16982, section 2.2), and the rest to AdamW (arXiv 1711.05101). With ``split_qkv``, queries, keys and
    values of a layer are three matrices to it. Every group carries ``peak``, the rate that :func:`set_rates` scales.
    """
    groups: dict[str, list[Tensor]] = {"muon": [], "qkv": [], "decayed": [], "plain": []}
    for key, parameter in model.named_parameters():
        matrix = is_matrix(key, parameter)
        by_muon = name == "muon" and matrix and _within(key).startswith("blocks.") and parameter.ndim == 2
        muon = "qkv" if split_qkv and key.endswith(".qkv.weight") else "muon"
        groups[muon if by_muon else "decayed" if matrix else "plain"].append(parameter)
    adamw_groups = [
        {"params": groups["decayed"], "weight_decay": weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
    ]
    adamw_groups = [group for group in adamw_groups if group["params"]]
    optimizers: dict[str, Optimizer] = {"adamw": AdamW(adamw_groups, lr=lr, betas=betas, fused=True)}
    muon_groups = [{"params": groups["muon"]}, {"params": groups["qkv"], "split": 3}]
    if muon_groups := [group for group in muon_groups if group["params"]]:
        optimizers["muon"] = BatchedMuon(muon_groups, lr=muon_lr, momentum=momentum, weight_decay=weight_decay)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rates(optimizers: Mapping[str, Optimizer], factor: float) -> None:
    """Set every group's learning rate to this share of its peak."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def rate(optimizers: Mapping[str, Optimizer], name: str) -> float | None:
    """The present learning rate of an optimiser, None where there is no such optimiser."""
    return optimizers[name].param_groups[0]["lr"] if name in optimizers else None


def state_tensors(optimizers: Mapping[str, Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Everything the optimisers remember, as ``adamw/blocks.0.norm1.weight/exp_avg``."""
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    return {
        f"{name}/{names[id(parameter)]}/{field}": value
        for name, optimizer in optimizers.items()
        for parameter, state in optimizer.state.items()
        for field, value in state.items()
    }


def load_state_tensors(optimizers: Mapping[str, Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give back what :func:`state_tensors` returned.

    Raises:
        ValueError: a tensor belongs to no parameter, or has another shape than its parameter.
    """
    parameters = dict(model.named_parameters())
    owner = {id(p): name for name, o in optimizers.items() for group in o.param_groups for p in group["params"]}
    for key, tensor in tensors.items():
        name, parameter_name, field = key.split("/")
        parameter = parameters.get(parameter_name)
        if parameter is None or owner[id(parameter)] != name:
            raise ValueError(f"{key} belongs to no parameter of the model")
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"{key} has another shape than its parameter")
        state = optimizers[name].state[parameter]
        state[field] = tensor.to(device=parameter.device, dtype=tensor.dtype, memory_format=torch.preserve_format)
