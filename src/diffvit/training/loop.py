"""Train a model into a run folder, and resume a stopped run bit for bit.

Read it from the top: :func:`train` sets the process up and locks the folder, :func:`_run` goes over the epochs,
:class:`Trainer` takes the steps of an epoch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffvit.config import WHEREABOUTS, ClipConfig, Config, config_hash, differences
from diffvit.data import memory
from diffvit.data.augment import Augment
from diffvit.data.batches import epoch_order
from diffvit.data.images import Images
from diffvit.data.sources import place_of
from diffvit.errors import ConfigError, EnvironmentFault, InputError, Interrupted, NonFiniteError, out_of_memory
from diffvit.files import disk_faults
from diffvit.kernels import accelerate
from diffvit.registry import MEMORY
from diffvit.training import checkpoint, environment, optimizers
from diffvit.training.checkpoint import Checkpoint
from diffvit.training.environment import by_the_first
from diffvit.training.load import own_modules, qualified_name, save_model
from diffvit.training.progress import Progress, StopRequest, usual_progress
from diffvit.training.run_dir import RunDir
from diffvit.training.score import described, flops_per_image
from diffvit.training.task import Passed, Task, TrainingData, load_data, load_split
from diffvit.training.transfer import absolute, start_from

# Optimiser steps between two readings of the loss. Reading it on a GPU waits for all the work queued there.
_READ_EVERY = {"cpu": 1, "cuda": 32}
_SHOWN_EVERY = 0.1  # seconds between updates of the display
# Compilations of a model's code in one process: two for each kind of model, as the last batch may be smaller.
_COMPILATIONS = 256
# What result.json takes of the test set's figures, the last only where it is known, and of the run's facts.
_TEST_FIGURES = ("accuracy", "loss", "top5", "balanced_accuracy", "macro_f1", "accuracy_exact")
_FACTS = (
    *("parameters", "flops_per_image", "data_seconds", "compile_seconds", "device", "precision"),
    *("config_hash", "model_sha256"),
)
# Figures that only some runs have: those of a CLIP, and the footnote that some data asks for.
_OTHER_FIGURES = ("zero_shot_accuracy", "unseen_names_accuracy", "data_note")


def train(
    config: Config,
    *,
    data: Any = None,
    test: Any = None,
    classes: Sequence[str] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_ready: Callable[[RunDir], None] | None = None,
    task: Task | None = None,
) -> RunDir:
    """Train, evaluate on the test set once, and return the run folder.

    Process-wide state (threads, random generators, compiler limits) is restored when it returns or raises.

    Args:
        config: the whole run.
        data: images to train on instead of the config's source: ``(images, labels)``, or a data set of torch,
            torchvision or Hugging Face, as :func:`diffvit.data.memory.from_data` takes them. All are read first. The
            number of classes and channels and the size of the validation set, where the config does not give them, are
            the data's (a tenth of it is the validation set, at most 5,000 images).
        test: the test images, likewise; by default a share of ``data``, the config's ``test_size``.
        classes: names of the classes of ``data``; by default its own, else the labels.
        out: its folder; ``runs/DATA-ATTENTION-HASH-sSEED`` if not given.
        resume: continue the run in that folder; a finished one is returned as it is.
        overwrite: replace the run in that folder, once nothing can refuse the new one.
        progress: where to report; by default a bar in a notebook, and nowhere else.
        on_ready: called with the run folder before the first step.
        task: what to train; :class:`Task` (classification) if not given.

    A start that is refused leaves no folder; one that was there before stays as it was.

    Raises:
        ConfigError: the config does not fit the data, or is not the one the resumed run began with.
        InputError: bad data (the sample's index is named), weights to start from that do not fit, a folder in use, no
            intact checkpoint.
        EnvironmentFault: disk, memory or device.
        NonFiniteError: a NaN or an infinity in the loss or its gradient; on a GPU up to 31 steps later.
        RunBusyError: another process trains in the folder.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    if resume and overwrite:
        raise ConfigError("overwrite", "does not go with resume", "Give one of the two.")
    passed: Passed = None
    if data is not None:
        model = config.model
        channels = model.in_chans if "in_chans" in model.model_fields_set else None
        how: dict[str, Any] = {"image_size": model.image_size, "channels": channels, "classes": classes}
        passed = memory.splits(data, test, **how, test_size=config.test_size)
        config = config.model_copy(update={"data": MEMORY, "data_dir": None})
    if out is None:
        out = f"runs/{config.data}-{config.model.attention}-{config_hash(config)}-s{config.seed}"
    folder, progress = RunDir(Path(out)), progress or usual_progress()
    place, start = place_of(config.data, config.data_dir), config.init_from
    places = {"data_dir": place and place.absolute(), "init_from": start and absolute(start)}
    config = config.model_copy(update=places)  # absolute: config.yaml is read from anywhere
    device = environment.resolve_device(config.device)
    precision = environment.resolve_precision(config.precision, device)
    fabric = environment.launch(device, precision)
    if fabric.global_rank:
        progress = Progress()
    threads = config.threads or max(1, environment.usable_cores() // environment.local_world_size())
    with ExitStack() as held:  # which gives back what belongs to the process
        held.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        cuda = [torch.cuda.current_device()] if device == "cuda" else []
        held.enter_context(torch.random.fork_rng(devices=cuda))
        if config.compile:
            held.enter_context(compile_limits())
        held.enter_context(_memory_faults(folder.path, config))
        held.callback(progress.close)
        by_the_first(fabric, lambda: held.enter_context(_held(folder, resume, overwrite)))
        if resume and folder.finished:
            folder.refuse_other_settings(config)
            progress.message(f"{out} is complete: nothing to do{_not_read(folder, config, passed)}")
            return folder
        if passed is None and MEMORY in (config.data, resume and folder.config.data):
            hint = "Pass them to diffvit.train(config, data=..., out=..., resume=True)."
            raise InputError("data", "was passed in Python and is in no folder", hint)
        ran_on = {"device": device, "precision": precision, "threads": threads, "processes": fabric.world_size}
        facts = environment.describe(**ran_on, accelerate=config.accelerate)
        _run(fabric, config, folder, facts, progress, task or Task(), resume, on_ready, passed)
    return folder


def compile_limits() -> AbstractContextManager[None]:
    """Limits of torch's compiler at which one process compiles many models, as a study's worker does; then put back.

    Beyond its usual limit a model would go on uncompiled; one that cannot be compiled is an error.
    """
    settings: Any = torch._dynamo.config
    return settings.patch(recompile_limit=_COMPILATIONS, fail_on_recompile_limit_hit=True)


def _not_read(folder: RunDir, config: Config, passed: Passed) -> str:
    """Which data, not that of a finished run, is not looked at; ConfigError for images of other content."""
    if passed and (found := passed["train"].fingerprint) != (known := folder.environment["data"]["fingerprint"]):
        why = f"is a finished run on other data than was given (fingerprint {known[:12]} vs {found[:12]})"
        raise ConfigError(str(folder.path), why, "Nothing was changed; give another out, or overwrite=True.")
    return "" if config.data_dir in (None, folder.config.data_dir) else f"; {config.data_dir} was not looked at"


@contextmanager
def _held(folder: RunDir, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder locked: an existing run's to resume, else a new one."""
    if resume:
        RunDir.open(folder.path)  # before the lock, which would make a folder that is not there
    with folder.lock():
        if not resume and not (overwrite and folder.is_run):
            RunDir.create(folder.path)
        yield


@contextmanager
def _memory_faults(out: Path, config: Config) -> Iterator[None]:
    """One clear line for an accelerator or a machine without memory left."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        kept = f"Checkpoints in {out} are kept. " if (out / "config.yaml").is_file() else ""
        instead = "" if isinstance(config, ClipConfig) else " or a larger --accumulate"  # which would split its batch
        hint = f"{kept}Start another run with a smaller --batch-size{instead}."
        raise EnvironmentFault("memory", "is used up", hint) from error


def _run(
    fabric: Fabric,
    config: Config,
    folder: RunDir,
    facts: dict[str, Any],
    progress: Progress,
    task: Task,
    resume: bool,
    on_ready: Callable[[RunDir], None] | None,
    passed: Passed,
) -> None:
    """From the start, or from the newest checkpoint, to the result. ``facts`` becomes environment.json."""
    start = time.perf_counter()
    begun = resume and (folder.path / "environment.json").exists()
    data = load_data(config, progress.message, passed, folder.environment.get("classes") if begun else None)
    if config.accelerate != "off" and (slower := environment.missed(facts["device"], facts["precision"])):
        progress.message(slower)
    facts["config_hash"] = config_hash(config)
    config = data.config  # the same, with what it leaves to the data
    # Here and not at the end, where a test set that is missing or damaged would cost the whole training.
    test = load_split(config, data.source, "test", passed=passed)
    seconds = {"data_seconds": time.perf_counter() - start}
    model = task.model(config, data)
    flops = flops_per_image(task.image_tower(model))
    # Each split has the name of its own content; the test set's count comes when it is scored.
    name = data.train.name + ("" if test.name == data.train.name else f", tested on {test.name}")
    counts = {"train": len(data.train), "validation": len(data.validation or ()), "test": None}
    prints = {"fingerprint": data.fingerprint, "test_fingerprint": test.fingerprint}
    facts |= {"data": {"name": name, **prints, **counts}, "classes": data.train.classes}
    if data.train.skipped:
        facts["data"]["skipped"] = [{"path": path, "reason": why} for path, why in data.train.skipped]
    facts |= {"mean": data.mean, "std": data.std}
    facts |= {"task": qualified_name(task), "own_modules": own_modules(model)}
    found = _found_to_resume(folder, config, facts, progress) if begun else None
    if found:  # as recorded: the last bits of a mean are not to depend on how it is computed today
        data = replace(data, mean=facts["mean"], std=facts["std"])
    elif config.init_from:
        started = start_from(model, config, data.train.classes, facts.get("init_from") or {})
        progress.message(started.line())
        facts["init_from"] = asdict(started)
    if config.freeze != "none":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    trainer = Trainer(fabric, config, data, model, task.objective(config, data))
    if found:
        trainer.restore(found)
    elif config.init_state:
        _go_on(trainer, RunDir.open(config.init_from or ""), facts["init_from"], progress)
    if not begun:  # last of all that can be refused, so that a start that is refused leaves no run
        by_the_first(fabric, lambda: folder.begin(config, facts))
    position = trainer.position
    by_the_first(fabric, lambda: folder.truncate_rows(position.epoch))
    if on_ready and fabric.global_rank == 0:
        on_ready(folder)
    progress.start(trainer.total_steps, config.epochs, _title(task, trainer, folder, facts))
    if found:
        progress.message(f"going on after step {found.step}, in epoch {position.epoch + 1}")

    def score(images: Images, last: bool = False) -> dict[str, Any]:
        figures = task.last_score if last else task.score
        return figures(trainer.evaluated, images, config, data, facts["precision"], fabric.device)

    def close_epoch(row: dict[str, Any]) -> None:
        """Validate, complete and write the epoch's row, then its checkpoint, which counts on the row."""
        figures = score(data.validation) if data.validation else {}
        row |= {"val_loss": figures.get("loss"), "val_accuracy": figures.get("accuracy")}
        folder.append_row(row)
        if row["epoch"] % config.checkpoint_every == 0 or row["epoch"] == config.epochs:
            trainer.save(folder)

    def finish() -> None:
        """Score the test set, once, and write the model, the figures and, last of all, the result."""
        figures = described(test, score(test, last=True))
        facts["data"]["test"] = len(test)
        folder.write_json("environment.json", facts)
        model = trainer.evaluated
        digest = save_model(folder, model, facts)
        size = sum(parameter.numel() for parameter in model.parameters())
        computed = facts | seconds | {"parameters": size, "flops_per_image": flops, "model_sha256": digest}
        result = _result(config, computed, folder.metrics, figures)
        ran_on = {name: result[name] for name in ("parameters", "flops_per_image", "device", "precision")}
        figures |= {"run": str(folder.path), "split": "test", **ran_on, "hardware": facts["hardware"]}
        folder.write_json("evaluation.json", figures)
        folder.write_json("result.json", result)
        name = f"{test.name}; {test.note}" if test.note else test.name
        progress.message(f"test accuracy {result['test_accuracy']:.2%} ({len(test):,} images, {name})")

    with StopRequest() as stop:
        seconds["compile_seconds"] = trainer.warm_up(lambda: fabric.world_size == 1 and stop.signal)
        _stop_if_asked(trainer, folder, stop)
        while position.epoch < config.epochs:
            _steps_of_epoch(trainer, folder, progress, stop)
            row = trainer.finish_epoch()
            by_the_first(fabric, partial(close_epoch, row))
            progress.epoch(row)
            _stop_if_asked(trainer, folder, stop)
        by_the_first(fabric, finish)


def _found_to_resume(folder: RunDir, config: Config, facts: dict[str, Any], progress: Progress) -> Checkpoint | None:
    """What a run that stopped goes on from, once it is checked that it can; ``facts`` takes over what it recorded."""
    before = folder.environment
    if "task" in before and (then := _named(before)) != (now := _named(facts)):
        why = f"was begun with another task or model ({then} vs {now})"
        raise InputError(str(folder.path), why, "Nothing was changed; go on with diffvit.train(..., task=).")
    # The precision is compared as resolved, with the environment.
    settings = differences(folder.config, config, ignore=WHEREABOUTS | {"precision"})
    environment.refuse_differences(folder.path, settings, before, facts)
    if before["hardware"] != facts["hardware"]:
        progress.message(f"note: the run began on {before['hardware']}; the results' last digits may differ here")
    known = ("mean", "std", "config_hash", "init_from")
    facts |= {name: before[name] for name in known if name in before}
    return checkpoint.newest(folder.checkpoints, progress.message)


def _go_on(trainer: Trainer, before: RunDir, started: dict[str, Any], progress: Progress) -> None:
    """Start from another run's last checkpoint if it fits, else from its final weights; ``started`` says which."""
    found = checkpoint.newest(before.checkpoints, progress.message)
    other = started["fresh"] or started["resampled"] or started["left_over"]
    if found and not other and before.config.optimizer.name == trainer.config.optimizer.name:
        trainer.take_state(found)
        taken = f"weights and optimiser state after step {found.step}"
    else:
        taken = f"the final weights alone ({'another model or optimiser' if found else 'it has no checkpoint'})"
    started["state"] = taken
    now, then = trainer.config.epochs, before.config.epochs
    progress.message(
        f"going on from {before.path}: {taken}; a new schedule of {now} epochs begins, which is not the same as "
        f"training {then + now} epochs at once"
    )


def _named(facts: Mapping[str, Any]) -> str:
    """A task, and the modules of its model that are not diffvit's own."""
    modules = [f"{name or 'the model'} {kind}" for name, kind in (facts.get("own_modules") or {}).items()]
    return ", ".join([str(facts["task"]), *modules])


def _title(task: Task, trainer: Trainer, folder: RunDir, facts: Mapping[str, Any]) -> str:
    count, trained = (sum(map(Tensor.numel, each)) for each in (trainer.model.parameters(), trainer.parameters))
    model = f"{task.title(trainer.config)} of {count:,} parameters" + (f" ({trained:,} trained)" * (trained < count))
    where = f"{facts['device']}, {facts['precision']}, threads: {facts['threads']}"
    where += f", processes: {facts['processes']}" if facts["processes"] > 1 else ""
    return f"{model}, {trainer.config.epochs} epochs ({where}) into {folder.path}"


def _steps_of_epoch(trainer: Trainer, folder: RunDir, progress: Progress, stop: StopRequest) -> None:
    """The rest of the present epoch: shown, and ended by a signal or by a figure that is not finite."""
    try:
        for _ in trainer.steps():
            if time.monotonic() - trainer.shown >= _SHOWN_EVERY:
                trainer.shown = time.monotonic()
                progress.step(trainer.running())
            # Many processes ask each other, and wait for the answer, only where they have waited for the figures too.
            asks = trainer.fabric.world_size == 1 or (trainer.position.step - 1) % trainer.read_every == 0
            if asks and trainer.position.in_epoch < trainer.steps_per_epoch:
                _stop_if_asked(trainer, folder, stop)
    except NonFiniteStep as error:
        kept = "No checkpoint was written yet."
        if trainer.saved is not None:
            kept = f"The checkpoint after step {trainer.saved} and all rows of finished epochs are kept."
        rates = "--optimizer.lr" + (" or --optimizer.muon-lr" if "muon" in trainer.optimizers else "")
        hint = f"{kept} Start another run with a lower {rates}, or with --optimizer.grad-clip 1."
        why = f"loss or gradient is not finite ({error}); training stopped, no state after it was saved"
        raise NonFiniteError(f"{folder.path}, step {trainer.position.step + 1}", why, hint) from None


def _stop_if_asked(trainer: Trainer, folder: RunDir, stop: StopRequest) -> None:
    """Save and raise :class:`Interrupted` where any of the processes got a signal."""
    number = environment.largest(trainer.fabric, stop.signal)
    if not number:
        return
    by_the_first(trainer.fabric, lambda: trainer.save(folder))
    by = {2: "Ctrl-C", 15: "SIGTERM"}.get(number, f"signal {number}")
    why = f"stopped by {by} after step {trainer.position.step} of {trainer.total_steps}"
    hint = f"The state is saved; resume with: {folder.resume_command}"
    raise Interrupted(number, str(folder.path), why, hint)


def _result(
    config: Config, facts: Mapping[str, Any], rows: list[dict[str, Any]], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of result.json, from what is known of the run, its epochs' rows and the test set's figures."""
    seconds = sum(row["seconds"] for row in rows)
    tested = {f"test_{name}": figures[name] for name in _TEST_FIGURES if name in figures}
    tested |= {name: figures[name] for name in _OTHER_FIGURES if name in figures}
    trained = {"val_accuracy": rows[-1]["val_accuracy"], "train_seconds": seconds}
    trained |= {"images_per_second": rows[-1]["images_seen"] / seconds, "data": facts["data"]["name"]}
    asked = {"epochs": config.epochs, "seed": config.seed, "attention": config.model.attention}
    return tested | trained | {name: facts[name] for name in _FACTS} | asked


@dataclass
class Position:
    """Position of a run (steps, epochs, running sums), in plain values."""

    step: int = 0  # optimiser steps done in the run
    epoch: int = 0  # epochs done
    in_epoch: int = 0  # steps done in the present epoch
    seconds: float = 0.0  # of training spent on those
    sums: dict[str, float] = field(default_factory=dict)  # of the metrics over those


class NonFiniteStep(ArithmeticError):
    """The loss or the gradient norm is NaN or infinite; nothing that came of it is in a checkpoint.

    On a CPU it is raised before the update; elsewhere up to 31 steps later, and always before anything is saved.
    """


class Trainer:
    """A model in training and everything that changes with it.

    ``model`` has fresh weights and also ``lambdas()``; it is accelerated here unless the config says no. ``objective``
    is what to minimise, see :meth:`diffvit.training.task.Task.objective`; ``fabric`` is launched.
    """

    def __init__(self, fabric: Fabric, config: Config, data: TrainingData, model: Any, objective: Any) -> None:
        self.fabric, self.config, self.objective = fabric, config, objective
        if config.accelerate != "off":
            accelerate(model)
        self.model = model.to(fabric.device).train()
        self.average = optimizers.WeightAverage(self.model, config.ema) if config.ema else None
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers = optimizers.build(self.model, config.optimizer)
        forward = compiled(self.model, config, fabric.device) if config.compile else self.model
        self._forward = fabric.setup_module(forward)
        self._pending: Tensor | None = None  # figures of the steps since they were last read, on the device
        self.read_every = _READ_EVERY.get(fabric.device.type, 1)
        self.batches = Augment(data.train.pixels, data.train.labels, data.mean, data.std, config, fabric.device)
        self.images = len(data.train)
        self._balanced = data.train.labels if config.sampling == "balanced" else None
        self.steps_per_epoch = math.ceil(self.images / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.position = Position()
        self.saved: int | None = None  # step of the newest checkpoint
        self.shown = -math.inf  # when the display was last updated

    @property
    def evaluated(self) -> Any:
        """The model to evaluate: the weights' moving average if there is one."""
        return self.average.model if self.average else self.model

    def steps(self) -> Iterator[None]:
        """Run the rest of the present epoch; yields after every optimiser step, or raises :class:`NonFiniteStep`."""
        at, size = self.position, self.config.batch_size
        order = epoch_order(self.config.seed, at.epoch, self.images, self._balanced)
        batches = (self._share(indices, at.epoch) for indices in order.split(size)[at.in_epoch :])
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

    def _share(self, indices: Tensor, epoch: int) -> tuple[int, list[tuple[Any, int]]]:
        """The number of a step's images, and this process's micro-batches of them, each with its number of images."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        slices = indices.tensor_split(self.config.accumulate * world)[rank::world]
        # A process without an image of its own still has to take part in the exchange of gradients.
        parts = [(self.batches(part if len(part) else indices[:1], epoch), len(part)) for part in slices]
        return len(indices), parts

    def _backward(self, total: int, parts: list[tuple[Any, int]]) -> Tensor:
        """Gradients of the step's mean loss; returns the sums (loss, metrics...) over all processes' images."""
        _seed_generators(self.config.seed, self.position.step, self.fabric.global_rank, self.fabric.device)
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
        """Read the figures where it is time to, set the learning rates, and take the optimisers' step."""
        position, config = self.position, self.config
        norm = get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        figures = torch.cat([sums, norm.double().reshape(1)])
        self._pending = figures if self._pending is None else self._pending + figures
        if position.step % self.read_every == 0:
            self._read()
        if config.optimizer.grad_clip:
            clip_grads_with_norm_(self.parameters, config.optimizer.grad_clip, norm)
        share = optimizers.schedule(position.step, self.total_steps, **config.schedule.model_dump())
        optimizers.set_rates(self.optimizers, share)
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.average:
            self.average.update(position.step)
        position.step, position.in_epoch = position.step + 1, position.in_epoch + 1

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

    def _timed_read(self) -> None:
        """A reading between steps: what it waits for is work of theirs, so the time is the epoch's."""
        if self._pending is not None:
            start = time.perf_counter()
            self._read()
            self.position.seconds += time.perf_counter() - start

    def running(self) -> dict[str, Any]:
        """Figures of the present epoch so far, for the progress display."""
        self._timed_read()
        at, sums = self.position, self.position.sums
        seen = max(1, min(at.in_epoch * self.config.batch_size, self.images))
        accuracy = sums["correct"] / seen if "correct" in sums else None
        rate = seen / at.seconds if at.seconds else 0.0
        figures = {"loss": sums["loss"] / seen, "accuracy": accuracy, "images_per_second": rate}
        return {"step": at.step, "epoch": at.epoch + 1, **figures}

    def finish_epoch(self) -> dict[str, Any]:
        """Close the epoch; returns its training columns for metrics.jsonl."""
        position, sums, seconds = self.position, self.position.sums, self.position.seconds
        position.epoch, position.in_epoch = position.epoch + 1, 0
        position.sums, position.seconds = {}, 0.0
        return {
            "epoch": position.epoch,
            "step": position.step,
            "images_seen": position.epoch * self.images,
            "train_loss": sums["loss"] / self.images,
            "train_accuracy": sums["correct"] / self.images if "correct" in sums else None,
            "lr": optimizers.rate(self.optimizers, "adamw"),
            "muon_lr": optimizers.rate(self.optimizers, "muon"),
            "gradient_norm": sums["gradient_norm"] / self.steps_per_epoch,
            "lambda": self.model.lambdas(),
            "images_per_second": self.images / seconds,
            "seconds": seconds,
        }

    def save(self, folder: RunDir) -> None:
        """Write a checkpoint, all that a resume needs, unless there is one of this step.

        EnvironmentFault where the disk refuses, NonFiniteStep where a step that was not yet read is not finite.
        """
        if self.saved == self.position.step:
            return
        self._timed_read()
        tensors = {"model": self.model.state_dict(), "optimizer": optimizers.state_tensors(self.optimizers, self.model)}
        if self.average:
            tensors["ema"] = self.average.model.state_dict()
        with disk_faults(folder.checkpoints, folder.kept):
            checkpoint.save(folder.checkpoints, self.position.step, tensors, asdict(self.position))
        self.saved = self.position.step

    def take_state(self, found: Checkpoint) -> None:
        """Take a checkpoint's weights, their moving average if it has one, and the optimisers' state."""
        self.model.load_state_dict(found.tensors("model"))
        optimizers.load_state_tensors(self.optimizers, self.model, found.tensors("optimizer"))
        if self.average:
            self.average.model.load_state_dict(found.tensors("ema") or found.tensors("model"))

    def restore(self, found: Checkpoint) -> None:
        """Restore the state of a checkpoint of the same run."""
        self.take_state(found)
        self.position, self.saved = Position(**found.progress), found.step

    def warm_up(self, stopped: Callable[[], object] = lambda: False) -> float:
        """Compile, where the config says so, for every batch size; returns the seconds it took.

        Nothing the run computes depends on it. Once ``stopped`` says yes, the rest is left to the steps.
        """
        if not self.config.compile:
            return 0.0
        start = time.perf_counter()
        pieces = torch.arange(self.images).split(self.config.batch_size)
        for indices in {len(piece): piece for piece in (pieces[0], pieces[-1])}.values():
            for _ in range(3 if self.read_every > 1 else 1):  # CUDA graphs are recorded on the second pass
                if stopped():
                    break
                self._backward(*self._share(indices, epoch=0)).tolist()
        for parameter in self.parameters:
            parameter.grad = None
        return time.perf_counter() - start


def compiled(model: Any, config: Config, device: torch.device) -> Any:
    """The model with its forward and backward pass compiled; for use within :func:`compile_limits`."""
    # "reduce-overhead" records CUDA graphs: a small model's step is bound by the launches of its kernels. The gradients
    # are the graph's own memory, so a second forward pass before the update would overwrite them.
    graphs = device.type == "cuda" and config.accumulate == 1
    # Static shapes: what a batch size compiles to must not depend on which sizes came before a resume.
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if graphs else None)


def _seed_generators(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Set torch's generators, which dropout draws from, by (seed, step, rank): so none has to be saved."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
