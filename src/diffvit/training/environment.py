"""What a run runs on: device, precision, threads, and the record of all that for environment.json."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import diffvit
from diffvit.errors import ConfigError, EnvironmentFault
from diffvit.kernels import library

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
    """Name of the accelerator or the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


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
