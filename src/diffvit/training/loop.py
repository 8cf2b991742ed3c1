"""Train a model into a run folder, and take up a run that stopped, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch

from diffvit.config import ClipConfig, Config, config_hash
from diffvit.data.sources import place_of
from diffvit.errors import EnvironmentFault
from diffvit.training import environment, processes
from diffvit.training.compiled import compile_limits
from diffvit.training.progress import Progress, QuietProgress
from diffvit.training.run import Run
from diffvit.training.run_dir import RunDir
from diffvit.training.task import Task


def train(
    config: Config,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_ready: Callable[[RunDir], None] | None = None,
    task: Task | None = None,
) -> RunDir:
    """Train, evaluate on the test set once, and return the run folder.

    Threads, random numbers and whatever else belongs to the whole process are as before when it returns or raises.

    Args:
        config: the whole run.
        out: its folder; ``runs/DATA-ATTENTION-HASH-sSEED`` if not given.
        resume: continue the run in that folder; a finished one is returned as it is.
        progress: where to report; nowhere if not given.
        on_ready: called with the run folder before the first step.
        task: what it learns; classification if not given.

    A start that is refused leaves no folder; one that was there before stays as it was.

    Raises:
        ConfigError: the config does not fit the data, or is not the one the resumed run began with.
        InputError: bad data, a folder in use, no intact checkpoint.
        EnvironmentFault: disk, memory or device.
        NonFiniteError: a NaN or an infinity in the loss or its gradient; before the optimiser step.
        RunBusyError: another process trains in the folder.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    if out is None:
        out = f"runs/{config.data}-{config.model.attention}-{config_hash(config)}-s{config.seed}"
    out, progress = Path(out), progress or QuietProgress()
    if place := place_of(config.data, config.data_dir):  # absolute: config.yaml is read from anywhere
        config = config.model_copy(update={"data_dir": place.absolute()})
    device = environment.resolve_device(config.device)
    precision = environment.resolve_precision(config.precision, device)
    fabric = processes.launch(device, precision)
    if fabric.global_rank:
        progress = QuietProgress()
    threads = config.threads or max(1, environment.usable_cores() // processes.local_world_size())
    limits = compile_limits() if config.compile else nullcontext()
    with ExitStack() as held, _thread_count(threads), _random_numbers(device), limits, _memory_faults(out, config):
        held.callback(progress.close)
        processes.by_the_first(fabric, lambda: held.enter_context(_folder(out, resume)))
        run = RunDir(out)
        if run.finished:
            progress.message(f"{out} is complete: nothing to do")
            return run
        facts = environment.describe(
            device=device,
            precision=precision,
            threads=threads,
            processes=fabric.world_size,
            accelerate=config.accelerate,
        )
        if config.accelerate != "off" and (slower := environment.missed(device, precision)):
            progress.message(slower)
        Run(fabric, config, facts, run, progress, task or Task()).go(resume, on_ready)
        return run


@contextmanager
def _folder(out: Path, resume: bool) -> Iterator[None]:
    """A folder that is this run's, and held."""
    if resume:
        RunDir.open(out)  # before the lock, which would make a folder that is not there
    with RunDir(out).lock():
        if not resume:
            RunDir.create(out)
        yield


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(former)


@contextmanager
def _random_numbers(device: str) -> Iterator[None]:
    """The caller's random numbers, as they were, after those that training sets."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        yield


@contextmanager
def _memory_faults(out: Path, config: Config) -> Iterator[None]:
    """One clear line for an accelerator or a machine without memory left."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        kept = f"Checkpoints in {out} are kept. " if (out / "config.yaml").is_file() else ""
        instead = "" if isinstance(config, ClipConfig) else " or a larger --accumulate"  # which would split its batch
        hint = f"{kept}Start another run with a smaller --batch-size{instead}."
        raise EnvironmentFault("memory", "is used up", hint) from error
