"""The steps of one run: forward, backward, check, update; where it stands; what a checkpoint of it holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffvit.config import Config
from diffvit.data.batches import epoch_order
from diffvit.training import optimizers
from diffvit.training.checkpoint import Checkpoint
from diffvit.training.compiled import compiled
from diffvit.training.ema import WeightAverage
from diffvit.training.generators import seed_generators
from diffvit.training.material import Material, build_optimizers
from diffvit.training.objective import Objective
from diffvit.training.schedule import factor


@dataclass
class Position:
    """Where a run stands, in plain values.

    ``step`` optimiser steps done in the run, ``epoch`` epochs done, ``in_epoch`` steps done in the present epoch,
    ``sums`` of the metrics over those, ``seconds`` of training spent on those.
    """

    step: int = 0
    epoch: int = 0
    in_epoch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


# Optimiser steps between two looks at the figures. A look waits for an accelerator, which would then run dry.
_READ_EVERY = {"cpu": 1, "cuda": 32}


class NonFiniteStep(ArithmeticError):
    """The loss or the gradient norm is NaN or infinite; nothing that came of it is in a checkpoint.

    On a CPU it is raised before the update; elsewhere up to 31 steps later, and always before anything is saved.
    """


class Trainer:
    """A model in training and everything that changes with it.

    Args:
        fabric: launched.
        config: of the run.
        material: its data.
        model: fresh weights; a module that also has ``lambdas()``.
        objective: what to minimise.
    """

    def __init__(self, fabric: Fabric, config: Config, material: Material, model: Any, objective: Objective) -> None:
        self.fabric, self.config, self.objective = fabric, config, objective
        self.model = model.to(fabric.device).train()
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(config, self.model)
        self._forward = fabric.setup_module(
            compiled(self.model, config, fabric.device) if config.compile else self.model
        )
        self._pending: Tensor | None = None  # figures of the steps since the last look, on the device
        self._read_every = _READ_EVERY.get(fabric.device.type, 1)
        self.batches = material.augment(config, fabric.device)
        self.images = len(material.train)
        self.steps_per_epoch = math.ceil(self.images / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.position = Position()

    @property
    def evaluated(self) -> Any:
        """The model to evaluate: the average where there is one."""
        return self.average.model if self.average else self.model

    @property
    def images_seen(self) -> int:
        """Images shown so far, repeats counted."""
        return self.position.epoch * self.images + self._seen_in_epoch

    @property
    def _seen_in_epoch(self) -> int:
        return min(self.position.in_epoch * self.config.batch_size, self.images)

    @property
    def figures_read(self) -> bool:
        """Whether the step that has just ended read the figures; depends on its number alone."""
        return (self.position.step - 1) % self._read_every == 0

    def steps(self) -> Iterator[None]:
        """Run the rest of the present epoch; yields after every optimiser step.

        Raises:
            NonFiniteStep: see there.
        """
        batches = self._epoch_batches()
        upcoming = next(batches, None)
        while upcoming is not None:
            start = time.perf_counter()
            figures = self._backward(*upcoming)
            # Queued before the figures are waited for, so that an accelerator has work meanwhile.
            upcoming = next(batches, None)
            self._update(figures)
            if upcoming is None:
                self._read()  # within the epoch's time, which so ends when its last step has
            self.position.seconds += time.perf_counter() - start
            yield

    def warm_up(self, stopped: Callable[[], object] = lambda: False) -> float:
        """Have the compiler see every size of batch, and forget what came out; returns the seconds it took.

        Nothing the run computes depends on it. Without ``compile`` there is nothing to do. Once ``stopped`` says yes,
        the rest is left to the steps.
        """
        if not self.config.compile:
            return 0.0
        start = time.perf_counter()
        pieces = torch.arange(self.images).split(self.config.batch_size)
        for indices in {len(piece): piece for piece in (pieces[0], pieces[-1])}.values():
            for _ in range(3 if self._read_every > 1 else 1):  # CUDA graphs are recorded on the second pass
                if stopped():
                    break
                self._backward(*self._share(indices, epoch=0)).tolist()
        for parameter in self.parameters:
            parameter.grad = None
        return time.perf_counter() - start

    def finish_epoch(self) -> dict[str, Any]:
        """Close the epoch; returns its training columns for metrics.jsonl."""
        position = self.position
        position.epoch, position.in_epoch = position.epoch + 1, 0
        sums, seconds = position.sums, position.seconds
        position.sums, position.seconds = {}, 0.0
        return {
            "epoch": position.epoch,
            "step": position.step,
            "images_seen": self.images_seen,
            "train_loss": sums["loss"] / self.images,
            "train_accuracy": sums["correct"] / self.images if "correct" in sums else None,
            "lr": optimizers.rate(self.optimizers, "adamw"),
            "muon_lr": optimizers.rate(self.optimizers, "muon"),
            "gradient_norm": sums["gradient_norm"] / self.steps_per_epoch,
            "lambda": self.model.lambdas(),
            "images_per_second": self.images / seconds,
            "seconds": seconds,
        }

    def running(self) -> dict[str, Any]:
        """Figures of the present epoch so far, for the progress display."""
        self._timed_read()
        position, seen = self.position, max(1, self._seen_in_epoch)
        return {
            "step": position.step,
            "epoch": position.epoch + 1,
            "loss": position.sums["loss"] / seen,
            "accuracy": position.sums["correct"] / seen if "correct" in position.sums else None,
            "images_per_second": seen / position.seconds if position.seconds else 0.0,
        }

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything a resume needs: groups of tensors, and plain values.

        Raises:
            NonFiniteStep: a step since the last look was not finite.
        """
        self._timed_read()
        tensors = {"model": self.model.state_dict(), "optimizer": optimizers.state_tensors(self.optimizers, self.model)}
        if self.average:
            tensors["ema"] = self.average.model.state_dict()
        return tensors, asdict(self.position)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint of the same run left off."""
        self.model.load_state_dict(checkpoint.tensors("model"))
        optimizers.load_state_tensors(self.optimizers, self.model, checkpoint.tensors("optimizer"))
        if self.average:
            self.average.model.load_state_dict(checkpoint.tensors("ema"))
        self.position = Position(**checkpoint.progress)

    def _epoch_batches(self) -> Iterator[tuple[int, list[tuple[Any, int]]]]:
        """(images of the whole step, this process's micro-batches with their number of images) from here on."""
        epoch = self.position.epoch
        order = epoch_order(self.config.seed, epoch, self.images)
        for indices in order.split(self.config.batch_size)[self.position.in_epoch :]:
            yield self._share(indices, epoch)

    def _share(self, indices: Tensor, epoch: int) -> tuple[int, list[tuple[Any, int]]]:
        world, rank = self.fabric.world_size, self.fabric.global_rank
        slices = indices.tensor_split(self.config.accumulate * world)[rank::world]
        # A process without an image of its own still has to take part in the exchange of gradients.
        parts = [(self.batches(part if len(part) else indices[:1], epoch), len(part)) for part in slices]
        return len(indices), parts

    def _backward(self, total: int, parts: list[tuple[Any, int]]) -> Tensor:
        """Gradients of the step's mean loss; returns the sums (loss, metrics...) over this process's images."""
        position = self.position
        seed_generators(self.config.seed, position.step, self.fabric.global_rank, self.fabric.device)
        for parameter in self.parameters:
            parameter.grad = None
        sums: Tensor | None = None
        for number, (batch, count) in enumerate(parts, 1):
            with self.fabric.no_backward_sync(self._forward, enabled=number < len(parts)):
                loss, metrics = self.objective.loss(self._forward, batch, total)
                self.fabric.backward(loss * ((count > 0) * self.fabric.world_size / total))
            self._names = ["loss", *metrics]
            figures = torch.stack([loss.detach().double(), *(value.double() for value in metrics.values())])
            figures = figures * (count > 0)
            sums = figures if sums is None else sums + figures
        assert sums is not None
        if self.fabric.world_size == 1:
            return sums
        return self.fabric.all_reduce(sums, reduce_op="sum")  # pyright: ignore[reportReturnType]  (a tensor gives a tensor)

    def _update(self, sums: Tensor) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        figures = torch.cat([sums, norm.double().reshape(1)])
        self._pending = figures if self._pending is None else self._pending + figures
        if self.position.step % self._read_every == 0:
            self._read()
        if self.config.optimizer.grad_clip:
            clip_grads_with_norm_(self.parameters, self.config.optimizer.grad_clip, norm)
        position, schedule = self.position, self.config.schedule
        share = factor(
            position.step, self.total_steps, name=schedule.name, warmup=schedule.warmup, final=schedule.final
        )
        optimizers.set_rates(self.optimizers, share)
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.average:
            self.average.update(position.step)
        position.step, position.in_epoch = position.step + 1, position.in_epoch + 1

    def _timed_read(self) -> None:
        """A look between steps: what it waits for is work of theirs, so the time is the epoch's."""
        if self._pending is not None:
            start = time.perf_counter()
            self._read()
            self.position.seconds += time.perf_counter() - start

    def _read(self) -> None:
        """Add the pending figures to the epoch's sums; one that is not finite leaves its trace in their sum."""
        if self._pending is None:
            return
        figures, self._pending = self._pending.tolist(), None
        if not all(map(math.isfinite, figures)):
            raise NonFiniteStep(f"loss {figures[0]}, gradient norm {figures[-1]}")
        sums = self.position.sums
        for name, value in zip([*self._names, "gradient_norm"], figures, strict=True):
            sums[name] = sums.get(name, 0.0) + value
