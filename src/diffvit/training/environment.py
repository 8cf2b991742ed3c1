"""What a run runs on: device, precision, threads, the processes that train together; and the record of all that."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

import diffvit
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault
from diffvit.kernels import library

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Outcome = TypeVar("Outcome")

# A run may only be continued where these are as they were, else its bits would change.
_BINDING = ("threads", "torch", "diffvit", "device", "precision", "processes", "kernels")


def resolve_device(name: str) -> str:
    """``auto`` takes CUDA where there is one; EnvironmentFault where CUDA was asked for and is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise EnvironmentFault("device cuda", "no CUDA device is usable here", "Give --device cpu or auto.")
    return "cuda" if name != "cpu" and available else "cpu"


def resolve_precision(name: str, device: str) -> str:
    """``auto`` is bf16 where the hardware multiplies it (AVX512-BF16, AMX, CUDA from capability 8), else fp32."""
    if name != "auto":
        return name
    if device == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def kernels(device: str, precision: str, accelerate: str = "auto") -> str:
    """``plain`` for an unaccelerated model, ``native`` where the compiled kernels run, else ``torch``."""
    if accelerate == "off":
        return "plain"
    return "native" if device == "cpu" and precision == "bf16" and library.kernels() is not None else "torch"


def missed(device: str, precision: str) -> str | None:
    """A line on why bfloat16 on this CPU is slower than it could be; None where it is not."""
    if device != "cpu" or precision != "bf16" or library.kernels() is not None:
        return None
    return f"Attention runs without the compiled kernels, about 10% slower: {library.why_not()}."


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: str) -> str:
    """Name of the accelerator or the processor; with family and model where a virtual machine hides the number."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.processor() or platform.machine())
    hidden = "cpu family" in fields and not any(map(str.isdigit, name))
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if hidden else name


def commit() -> str | None:
    """The source checkout's commit, with ``+`` where files differ from it; None outside a checkout."""
    root = Path(diffvit.__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*command: str) -> str:
        return subprocess.check_output(["git", "-C", root, *command], text=True, timeout=10, stderr=subprocess.DEVNULL)

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src").strip()
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe(*, device: str, precision: str, threads: int, processes: int, accelerate: str = "auto") -> dict[str, Any]:
    """Versions, hardware and settings of this process, for environment.json."""
    return {
        "diffvit": diffvit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "hardware": hardware(device),
        "device": device,
        "cores": usable_cores(),
        "threads": threads,
        "processes": processes,
        "precision": precision,
        "kernels": kernels(device, precision, accelerate),
        "commit": commit(),
    }


def refuse_differences(run: Path, settings: Sequence[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Let a run go on only where its bits come out the same.

    Else a ConfigError lists what differs between the configs (``settings``), and between environment.json as the run
    in this folder began (``then``) and that of this process (``now``).
    """
    found = list(settings)
    before = {"kernels": "torch", **then}  # which runs did not record before there were others
    for key in _BINDING:
        if before.get(key) != now[key]:
            words = f"{key} version" if key in ("torch", "diffvit") else key
            found.append(f"{words} {before[key]} vs {now[key]}")
    for key in ("fingerprint", "test_fingerprint"):  # the second is not recorded by older runs
        old, new = (str(facts.get("data", {}).get(key)) for facts in (then, now))
        if old != new and (key in then.get("data", {}) or key == "fingerprint"):
            found.append(f"{'test ' if key != 'fingerprint' else ''}data fingerprint {old[:12]} vs {new[:12]}")
    if found:
        hint = "Nothing was changed; resume it as it was started, or start another run with --out."
        if now["kernels"] == "native" != before["kernels"]:
            hint += " DIFFVIT_NATIVE=off switches the compiled kernels off."
        raise ConfigError(str(run), f"cannot be resumed bit for bit (began with vs now: {'; '.join(found)})", hint)


def launch(device: str, precision: str) -> Fabric:
    """Join the processes that a launcher such as torchrun started, as its environment says; one without a launcher."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    world, local = int(os.environ.get("WORLD_SIZE", "1")), local_world_size()
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces its precision otherwise
    try:
        fabric = Fabric(
            accelerator=device,
            devices=local,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
            plugins=[] if world > 1 else [LightningEnvironment()],  # not Slurm's, in a job of several tasks
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
        fabric.launch()
    finally:
        logger.setLevel(level)
    if world > 1:  # the group's threads, left running, sometimes abort the process as it ends
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return fabric


def local_world_size() -> int:
    """Processes on this machine that train together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


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
