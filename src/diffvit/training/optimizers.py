"""What updates the weights: Muon and AdamW, the learning rate over a run, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from diffvit.settings import OptimizerConfig

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at zero, so that five iterations are enough
_ITERATIONS = 5
_SMALLEST = 1e-7  # norm


def build(model: nn.Module, settings: OptimizerConfig) -> dict[str, Optimizer]:
    """The optimisers of a model, by name; together they hold every parameter once.

    ``muon`` gives the blocks' matrices to :class:`Muon` and the rest to AdamW (arXiv 1711.05101). With ``split_qkv``,
    queries, keys and values of a layer are three matrices to it. Every group carries ``peak``, the rate that
    :func:`set_rates` scales; with ``layer_decay`` it is that of :func:`layer_factors`. Frozen parameters are left out.
    """
    factors = layer_factors(model, settings.layer_decay)
    scales = sorted(set(factors.values()), reverse=True)
    groups: dict[tuple[str, float], list[Tensor]] = {
        (group, scale): [] for scale in scales for group in ("muon", "qkv", "decayed", "plain")
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        within = name.removeprefix("visual.")  # a CLIP's image tower is a ViT; its text tower's matrices do not decay
        decays = parameter.ndim >= 2 and within.startswith(("blocks.", "patch_embed.proj.weight", "head."))
        if settings.name == "muon" and within.startswith("blocks.") and parameter.ndim == 2:
            group = "qkv" if settings.split_qkv and name.endswith(".qkv.weight") else "muon"
        else:  # norms, biases, positions, tokens and lambdas do not decay
            group = "decayed" if decays else "plain"
        groups[group, factors[name]].append(parameter)
    adamw: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for scale in scales:
        rates = {"lr": settings.lr * scale}
        adamw += [{"params": groups["decayed", scale], "weight_decay": settings.weight_decay, **rates}]
        adamw += [{"params": groups["plain", scale], "weight_decay": 0.0, **rates}]
        rates = {"lr": settings.muon_lr * scale}
        muon += [{"params": groups["muon", scale], **rates}, {"params": groups["qkv", scale], "split": 3, **rates}]
    betas = (settings.beta1, settings.beta2)
    optimizers: dict[str, Optimizer] = {"adamw": AdamW(adamw, lr=settings.lr, betas=betas, fused=True)}
    if settings.name == "muon":
        momentum, decay = settings.momentum, settings.weight_decay
        optimizers["muon"] = Muon(muon, lr=settings.muon_lr, momentum=momentum, weight_decay=decay)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Layer-wise decay of the learning rate (arXiv 2003.10555, 2106.08254): each parameter's share of it, by name.

    The layers, from the top: the head with factor 1; the last block and the last norm ``decay``; each block below it
    ``decay`` times that; below the first block patch projection, tokens and positions. A norm after the pooling counts
    as the head. That is timm's ``param_groups_layer_decay``.
    """
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters():
        stem = name.startswith(("patch_embed.", "pos_embed", "cls_token", "reg_token"))
        layers[name] = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0 if stem else -1
    last = max(layers.values(), default=0)
    layers = {name: last if name.startswith("norm.") else layer for name, layer in layers.items()}
    return {name: decay ** (last + 1 - layer) if layer >= 0 else 1.0 for name, layer in layers.items()}


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
    """Give back what :func:`state_tensors` returned, for the same model and settings."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, parameter_name, field = key.split("/")
        parameter = parameters[parameter_name]
        state = optimizers[name].state[parameter]
        state[field] = tensor.to(device=parameter.device, dtype=tensor.dtype, memory_format=torch.preserve_format)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,  # noqa: ARG005  (all share one signature)
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),  # arXiv 1608.03983, eq. 5, one period
}


def schedule(step: int, total: int, *, name: str, warmup: float, final: float) -> float:
    """The learning rate at a 0-based step, as a share of the peak rate.

    Rises by equal parts over the first ``round(warmup * total)`` steps, reaching 1 at the last of them, then falls
    towards ``final``, which it would reach one step after the last: no step is taken with a rate of zero.

    ``name`` is that of the fall, one of :data:`SCHEDULES`; ``step`` is 0 .. ``total`` - 1.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / (total - rising)
    return SCHEDULES[name](done) * (1 - final) + final


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for matrices, its step as large as AdamW's (arXiv 2502.16982, section 2.2).

    Computes what ``torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`` does, with the Newton-Schulz iterations of
    equal shapes in one batch: one by one, the small matrices of a ViT take a tenth of a training step on two CPU cores
    (128 wide, 4 blocks, batch 128), in batches half of that; on an accelerator they would be hundreds of calls. A
    group may say ``split=n``: its matrices hold n matrices below one another, as a layer's queries, keys and values
    do, and each is made orthogonal by itself.

    The root mean square of a matrix's step is 0.2 times ``lr``; ``momentum`` is that of the gradients' average, used
    with Nesterov's look ahead; ``weight_decay`` is decoupled. ValueError for a parameter that is no matrix, or whose
    rows ``split`` does not divide.
    """

    def __init__(self, params: ParamsT, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "split": 1}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2 or len(parameter) % group["split"]:
                    shape = "x".join(map(str, parameter.shape))
                    raise ValueError(f"Muon updates matrices of {group['split']} x n rows (found {shape})")

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        momentum, split = group["momentum"], group["split"]
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        ahead = torch._foreach_lerp(gradients, averages, momentum)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        places_of: dict[tuple[int, int], list[int]] = {}  # of equal shapes
        for place, update in enumerate(ahead):
            places_of.setdefault((len(update) // split, update.shape[1]), []).append(place)
        for places in places_of.values():
            stacked = torch.cat([ahead[place].unflatten(0, (split, -1)) for place in places])
            tall = stacked.shape[1] > stacked.shape[2]
            steps = orthogonalise(stacked.mT.contiguous()).mT if tall else orthogonalise(stacked)
            rate = group["lr"] * 0.2 * max(steps.shape[-2:]) ** 0.5
            for place, step in zip(places, steps.split(split), strict=True):
                parameters[place].add_(step.flatten(0, 1), alpha=-rate)


def orthogonalise(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2), in bfloat16; rows <= columns is cheapest."""
    a, b, c = _QUINTIC
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class WeightAverage:
    """Exponential moving average of a model's weights; :attr:`model` is a model of its own, never trained.

    After update t (0-based) the average moves towards the weights by ``1 - min(decay, (1 + t) / (10 + t))``: the first
    updates count more, so that a short run does not end as a mixture with its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source, self._target = _floating(model), _floating(self.model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after optimiser step ``step`` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._target, self._source, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _floating(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in model.state_dict().values() if tensor.is_floating_point()]
