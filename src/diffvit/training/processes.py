"""The processes that train together: joining them, and having the first one decide for all."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from diffvit.errors import DiffvitError

Outcome = TypeVar("Outcome")


def launch(device: str, precision: str) -> Fabric:
    """Join the processes that a launcher such as torchrun started, as its environment says; one without a launcher."""
    world, local = world_size(), local_world_size()
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces its precision otherwise
    try:
        fabric = Fabric(
            accelerator=device,
            devices=local,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
        fabric.launch()
    finally:
        logger.setLevel(level)
    if world > 1:  # the group's threads, left running, sometimes abort the process as it ends
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return fabric


def world_size() -> int:
    """Processes that train together, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Those of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def by_the_first(fabric: Fabric, action: Callable[[], Outcome]) -> Outcome | None:
    """Have the first process do something while the others wait; None in the others.

    A DiffvitError that it raises is raised in every process, so that none is left waiting.
    """
    if fabric.world_size == 1:
        return action()
    outcome, fault = None, None
    if fabric.global_rank == 0:
        try:
            outcome = action()
        except DiffvitError as error:
            fault = error
    told = fabric.broadcast((fault.what, fault.why, fault.hint, fault.exit_code) if fault else None)
    if fault is None and told:
        fault = DiffvitError(*told[:3])
        fault.exit_code = told[3]
    if fault:
        raise fault
    return outcome


def largest(fabric: Fabric, number: int) -> int:
    """The largest of the processes' numbers."""
    if fabric.world_size == 1:
        return number
    tensor = torch.tensor(float(number), device=fabric.device)
    return int(fabric.all_reduce(tensor, reduce_op="max"))  # pyright: ignore[reportArgumentType]  (it is a tensor)
