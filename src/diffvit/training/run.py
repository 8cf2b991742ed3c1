"""One run from its data to its result: epochs, validation, checkpoints, stopping and going on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric

from diffvit.config import WHEREABOUTS, Config, differences
from diffvit.data.images import Images
from diffvit.errors import InputError, Interrupted, NonFiniteError
from diffvit.kernels import accelerate
from diffvit.training import checkpoint, environment, material, outcome
from diffvit.training.checkpoint import Checkpoint
from diffvit.training.files import disk_faults
from diffvit.training.material import Material
from diffvit.training.processes import by_the_first, largest
from diffvit.training.progress import Progress
from diffvit.training.run_dir import RunDir
from diffvit.training.score import described, flops_per_image
from diffvit.training.signals import StopRequest
from diffvit.training.task import Task
from diffvit.training.trainer import NonFiniteStep, Trainer

_SHOWN_EVERY = 0.1  # seconds between updates of the display


class Run:
    """A run in a folder that is held.

    Args:
        fabric: launched.
        config: the whole run.
        facts: what it runs on; gains what is known of the data.
        folder: where everything goes.
        progress: where to report.
        task: what it learns.
    """

    def __init__(
        self, fabric: Fabric, config: Config, facts: dict[str, Any], folder: RunDir, progress: Progress, task: Task
    ) -> None:
        self.fabric, self.config, self.facts, self.folder, self.progress = fabric, config, facts, folder, progress
        self.task = task
        self._saved: int | None = None  # step of the newest checkpoint
        self._shown = -math.inf
        self.aside: dict[str, float] = {}  # seconds beside the training's own

    def go(self, resume: bool, on_ready: Callable[[RunDir], None] | None) -> None:
        """From wherever it stands to its result; raises what :func:`diffvit.training.loop.train` raises."""
        start = time.perf_counter()
        data = material.load(self.config, self.progress.message)
        # Here and not at the end, where a test set that is missing or damaged would cost the whole training.
        test = material.load_split(self.config, data.source, "test")
        self.aside["data_seconds"] = time.perf_counter() - start
        model = self.task.model(self.config, data)
        flops = flops_per_image(self.task.image_tower(model))
        self.facts |= outcome.data_facts(data, test)
        self.facts |= {"task": outcome.qualified_name(self.task), "own_modules": outcome.own_modules(model)}
        if self.config.accelerate != "off":
            accelerate(model)
        begun = resume and (self.folder.path / "environment.json").exists()
        found = self._checkpoint() if begun else None
        if found:  # as recorded: the last bits of a mean are not to depend on how it is computed today
            data = replace(data, mean=self.facts["mean"], std=self.facts["std"])
        trainer = Trainer(self.fabric, self.config, data, model, self.task.objective(self.config, data))
        if found:
            trainer.restore(found)
            self._saved = found.step
        if not begun:  # last of all that can be refused, so that a start that is refused leaves no run
            by_the_first(self.fabric, self._write_beginning)
        position = trainer.position
        by_the_first(self.fabric, lambda: self.folder.truncate_rows(position.epoch))
        if on_ready and self.fabric.global_rank == 0:
            on_ready(self.folder)
        self.progress.start(trainer.total_steps, self.config.epochs, self._title(trainer))
        if found:
            self.progress.message(f"going on after step {found.step}, in epoch {position.epoch + 1}")
        with StopRequest() as stop:
            self.aside["compile_seconds"] = trainer.warm_up(lambda: self.fabric.world_size == 1 and stop.signal)
            self._interrupt_if_asked(trainer, stop)
            while position.epoch < self.config.epochs:
                self._epoch(trainer, data, stop)
            by_the_first(self.fabric, lambda: self._finish(trainer, data, test, flops))

    def _checkpoint(self) -> Checkpoint | None:
        """What a run that stopped goes on from, once it is checked that it can."""
        before = self.folder.environment
        then, now = ({key: facts.get(key) for key in ("task", "own_modules")} for facts in (before, self.facts))
        if "task" in before and then != now:
            why = f"was begun with another task or model ({_named(then)} vs {_named(now)})"
            raise InputError(str(self.folder.path), why, "Nothing was changed; go on with diffvit.train(..., task=).")
        # The precision is compared as resolved, with the environment.
        settings = differences(self.folder.config, self.config, ignore=WHEREABOUTS | {"precision"})
        environment.refuse_differences(self.folder.path, settings, before, self.facts)
        if before["hardware"] != self.facts["hardware"]:
            self.progress.message(f"note: the run began on {before['hardware']}; the last bits may differ here")
        self.facts |= {name: before[name] for name in ("mean", "std")}
        return checkpoint.newest(self.folder.checkpoints, self.progress.message)

    def _write_beginning(self) -> None:
        self.folder.write_config(self.config)
        self.folder.write_json("environment.json", self.facts)

    def _title(self, trainer: Trainer) -> str:
        facts = self.facts
        count = sum(parameter.numel() for parameter in trainer.parameters)
        name = self.task.title(self.config)
        where = f"{facts['device']}, {facts['precision']}, threads: {facts['threads']}"
        where += f", processes: {facts['processes']}" if facts["processes"] > 1 else ""
        return f"{name} of {count:,} parameters, {self.config.epochs} epochs ({where}) into {self.folder.path}"

    def _epoch(self, trainer: Trainer, data: Material, stop: StopRequest) -> None:
        try:
            for _ in trainer.steps():
                self._show(trainer)
                # Many processes ask each other, and the answer has to be waited for, as the figures have to be.
                asks = self.fabric.world_size == 1 or trainer.figures_read
                if asks and trainer.position.in_epoch < trainer.steps_per_epoch:
                    self._interrupt_if_asked(trainer, stop)
        except NonFiniteStep as error:
            raise self._not_finite(trainer, error) from None
        row = trainer.finish_epoch()
        by_the_first(self.fabric, lambda: self._close_epoch(trainer, data, row))
        self.progress.epoch(row)
        self._interrupt_if_asked(trainer, stop)

    def _interrupt_if_asked(self, trainer: Trainer, stop: StopRequest) -> None:
        if number := largest(self.fabric, stop.signal):
            self._interrupt(trainer, number)

    def _close_epoch(self, trainer: Trainer, data: Material, row: dict[str, Any]) -> None:
        """Validate, complete and write the epoch's row, then its checkpoint, which counts on the row."""
        figures: dict[str, Any] = {}
        if data.validation:
            figures = self.task.score(trainer.evaluated, data.validation, *self._where(data))
        row |= {"val_loss": figures.get("loss"), "val_accuracy": figures.get("accuracy")}
        self.folder.append_row(row)
        if row["epoch"] % self.config.checkpoint_every == 0 or row["epoch"] == self.config.epochs:
            self._save(trainer)

    def _show(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self._shown >= _SHOWN_EVERY:
            self._shown = now
            self.progress.step(trainer.running())

    def _save(self, trainer: Trainer) -> None:
        step = trainer.position.step
        if self._saved != step:
            with disk_faults(self.folder.checkpoints, self.folder.kept):
                checkpoint.save(self.folder.checkpoints, step, *trainer.state())
            self._saved = step

    def _interrupt(self, trainer: Trainer, number: int) -> None:
        by_the_first(self.fabric, lambda: self._save(trainer))
        by = {2: "Ctrl-C", 15: "SIGTERM"}.get(number, f"signal {number}")
        why = f"stopped by {by} after step {trainer.position.step} of {trainer.total_steps}"
        hint = f"Everything is saved; go on with: {self.folder.resume_command}"
        raise Interrupted(number, str(self.folder.path), why, hint)

    def _not_finite(self, trainer: Trainer, error: NonFiniteStep) -> NonFiniteError:
        kept = "No checkpoint was written yet."
        if self._saved is not None:
            kept = f"The checkpoint after step {self._saved} and all rows of finished epochs are kept."
        rates = "--optimizer.lr" + (" or --optimizer.muon-lr" if "muon" in trainer.optimizers else "")
        return NonFiniteError(
            f"{self.folder.path}, step {trainer.position.step + 1}",
            f"training is no longer finite ({error}); it stopped, and nothing that came of it was saved",
            f"{kept} Start another run with a lower {rates}, or with --optimizer.grad-clip 1.",
        )

    def _where(self, data: Material) -> tuple[Config, Material, str, torch.device]:
        return self.config, data, self.facts["precision"], self.fabric.device

    def _finish(self, trainer: Trainer, data: Material, test: Images, flops: int) -> None:
        """Score the test set, once, and write the model, the figures and, last of all, the result."""
        figures = described(test, self.task.last_score(trainer.evaluated, test, *self._where(data)))
        self.facts["data"]["test"] = len(test)
        self.folder.write_json("environment.json", self.facts)
        digest = outcome.write_model(self.folder, trainer.evaluated, self.facts)
        size = sum(parameter.numel() for parameter in trainer.evaluated.parameters())
        facts = self.facts | self.aside | {"parameters": size, "flops_per_image": flops, "model_sha256": digest}
        result = outcome.result(self.config, facts, self.folder.metrics, figures)
        self.folder.write_json("evaluation.json", outcome.evaluation(self.folder, self.facts, result, figures))
        self.folder.write_json("result.json", result)
        self.progress.message(f"test accuracy {result['test_accuracy']:.2%} ({len(test):,} images of {_quoted(test)})")


def _quoted(images: Images) -> str:
    """The data's name with its footnote."""
    return f"{images.name}; {images.note}" if images.note else images.name


def _named(facts: Mapping[str, Any]) -> str:
    """A task, and the modules of its model that are not diffvit's own."""
    modules = [f"{name or 'the model'} {kind}" for name, kind in (facts["own_modules"] or {}).items()]
    return ", ".join([str(facts["task"]), *modules])
