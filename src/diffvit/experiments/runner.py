"""Run the cells of a study: a worker locks a cell's run folder, and the cell is done when result.json exists.

There is no server and no list of jobs. Any number of workers on any number of machines that share the folder each go
through the cells, skip those that are finished or locked, and train the others; the lock is released when a process
ends, however it ends, and the next worker goes on from the last checkpoint. So each cell is completed exactly once.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from diffvit.config import Config, parse, to_dict
from diffvit.errors import ConfigError, DiffvitError, InputError, Interrupted, RunBusyError
from diffvit.experiments.study import REPORTS, RUNS, Cell
from diffvit.files import disk_faults, to_json, write_file
from diffvit.registry import function_of
from diffvit.reporting.rows import read
from diffvit.training.progress import Progress, StopRequest
from diffvit.training.run_dir import RunDir

Tell = Callable[[str], object]
Score = Callable[[RunDir], Mapping[str, Any]]
ATTEMPTS = 3  # of a cell that fails by itself; a killed worker does not count
PAUSE = 0.5  # seconds between polls while other workers hold all that is left

TEST_ACCURACY = "test_accuracy"
SCORES: dict[str, Score | str] = {
    TEST_ACCURACY: lambda run: {TEST_ACCURACY: run.result[TEST_ACCURACY]},
    "attribution": "diffvit.attention.scores:attribution_scores",
    "maps": "diffvit.attention.statistics:maps_scores",
    "robustness": "diffvit.training.robustness:robustness_scores",
}
"""What a study may measure of a finished run, by the name in its ``score`` field: from the run folder to named numbers
and named tables, which are lists of rows (dicts). One that stands as ``"module:name"`` is imported when it is wanted.

What any but ``test_accuracy`` gives is kept in the run folder, as ``scores/NAME.json``. Its numbers stand in the
columns ``score.NUMBER`` of rows.csv, its tables in ``TABLE.csv`` beside it.
"""


def register_score(name: str, score: Score) -> None:
    """Register a score for a study's ``score`` field.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in SCORES:
        raise ValueError(f"score {name!r} is registered already")
    SCORES[name] = score


@dataclass(frozen=True)
class Conditions:
    """Data (its name and the training images' fingerprint), precision, device and kernels that a cell is run with."""

    data: str
    fingerprint: str
    precision: str
    device: str
    kernels: str

    @property
    def key(self) -> tuple[str, ...]:
        """As in :attr:`diffvit.reporting.rows.RunRecord.key`, behind the cell's own."""
        return self.fingerprint, self.precision, self.device, self.kernels

    @property
    def tag(self) -> str:
        """Eight hex digits for names of folders and rows."""
        return hashlib.sha256(" ".join(self.key).encode()).hexdigest()[:8]


def conditions_of(config: Config) -> Conditions:
    """The conditions of a run of this config on this machine; reads the training images, once for each source.

    Raises:
        ConfigError, InputError, EnvironmentFault: the data is missing or damaged, or there is no such device.
    """
    from diffvit.data.sources import place_of
    from diffvit.training import environment

    device = environment.resolve_device(config.device)
    precision = environment.resolve_precision(config.precision, device)
    sizes = {name: getattr(config.model, name) for name in ("image_size", "num_classes", "in_chans")}
    sizes = {name: size for name, size in sizes.items() if name in config.model.model_fields_set}
    place = place_of(config.data, config.data_dir)
    images = {"data": config.data, "data_dir": place and place.absolute(), "shapes": to_dict(config.shapes)}
    images |= {"test_size": config.test_size, "bad_files": config.bad_files}
    name, fingerprint = _images(parse({**images, "model": sizes}))  # pyright: ignore[reportArgumentType]  (frozen)
    return Conditions(name, fingerprint, precision, device, environment.kernels(device, precision, config.accelerate))


@cache
def _images(config: Config) -> tuple[str, str]:
    """Name and fingerprint of the training images."""
    from diffvit.training.task import load_split, source_of

    images = load_split(config, source_of(config), "train")
    return images.name, images.fingerprint


def stem_of(cell: Cell) -> str:
    """Beginning of the name of a cell's run folder: hash of the config, and seed."""
    digest, seed = cell.key
    return f"{digest}-s{seed}"


def folder_of(cell: Cell, conditions: Conditions, runs: Path = RUNS) -> Path:
    """The run folder of a cell; cells of the same config, seed and conditions share it, whatever their studies."""
    return runs / cell.tier / f"{stem_of(cell)}-{conditions.tag}"


def uncommitted(cells: Sequence[Cell], conditions: Mapping[str, Conditions], reports: Path = REPORTS) -> list[Cell]:
    """The cells of a study without a committed row (``reports/STUDY/rows.csv``) of their conditions, given by name.

    Raises:
        InputError: a damaged rows.csv.
    """
    known = {record.key for record in read(reports / cells[0].study)}
    return [cell for cell in cells if (*cell.key, *conditions[cell.name].key) not in known]


@dataclass
class State:
    """State of the cells of a study, by the cell's name."""

    done: dict[str, float] = field(default_factory=dict)  # first number of the score, test accuracy where it has none
    running: dict[str, str] = field(default_factory=dict)  # the process that holds the run folder's lock
    failed: dict[str, str] = field(default_factory=dict)  # last error of those given up after ATTEMPTS of them
    waiting: list[str] = field(default_factory=list)  # names of all others
    exit_code: int = 0  # the largest of those given up


def scores_of(folder: Path, score: str) -> Mapping[str, Any] | None:
    """The numbers and tables of a run's score; None where the run is not finished or not yet scored."""
    run, file = RunDir(folder), folder / "scores" / f"{score}.json"
    if not run.finished:
        return None
    if score == TEST_ACCURACY:
        return function_of(SCORES[score])(run)
    return json.loads(file.read_bytes()) if file.is_file() else None


def numbers_in(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a score, without its tables."""
    return {name: value for name, value in scores.items() if not isinstance(value, list)}


@dataclass(frozen=True)
class Runner:
    """Runs cells, as one worker of any number."""

    cells: Sequence[Cell]  # in the order in which they are wanted
    folders: Mapping[str, Path]  # of their runs, by the cells' names; see :func:`folder_of`
    where: Mapping[str, Any] = field(default_factory=dict)  # settings of where and how: data_dir, device, threads
    score: str = TEST_ACCURACY  # what is measured of a finished run, a name in :data:`SCORES`
    tell: Tell = lambda _: None  # called with a line of text for each event

    def state(self) -> State:
        """State of the cells, from their run folders."""
        state = State()
        for cell in self.cells:
            folder = self.folders[cell.name]
            if (scores := scores_of(folder, self.score)) is not None:
                numbers = numbers_in(scores) or {TEST_ACCURACY: RunDir(folder).result[TEST_ACCURACY]}
                state.done[cell.name] = next(iter(numbers.values()))
            elif process := RunDir(folder).locked_by:
                state.running[cell.name] = f"process {process}"
            elif len(errors := self._errors(cell)) >= ATTEMPTS:
                state.failed[cell.name] = errors[-1]["why"]
                state.exit_code = max(state.exit_code, errors[-1]["exit_code"])
            else:
                state.waiting.append(cell.name)
        return state

    def work(self, *, wait: bool = True) -> int:
        """Run cells until each is done or given up; returns how many this worker completed.

        Raises:
            ConfigError: there is no such score.
            Interrupted: this worker was stopped; the run's state is saved.
            RunBusyError: another process holds a cell, and ``wait`` is False.
        """
        if self.score not in SCORES:
            raise ConfigError("score", f"no score {self.score!r} (have {', '.join(SCORES)})")
        completed = 0
        with StopRequest() as stop:
            while not stop.signal:
                state, before = self.state(), completed
                if not state.waiting and not state.running:
                    return completed
                if not state.waiting and not wait:
                    name, process = next(iter(state.running.items()))
                    raise RunBusyError(str(self.folders[name]), f"another process is training here ({process})")
                for cell in self.cells:
                    folder = self.folders[cell.name]
                    open_ = cell.name in state.waiting and scores_of(folder, self.score) is None
                    if open_ and not RunDir(folder).locked_by and not stop.signal:
                        completed += self._completed(cell)
                if completed == before and not stop.signal:
                    time.sleep(PAUSE)
        raise Interrupted(stop.signal, "worker", "was stopped between runs", "Every run's state is saved.")

    def _completed(self, cell: Cell) -> bool:
        """Run a cell; an error of its own is kept beside the run folder, and the study goes on."""
        self.tell(f"{cell.name}: begins")
        try:
            numbers = numbers_in(self._scored(self.train(cell)))
        except Interrupted:
            raise
        except RunBusyError as error:
            self.tell(f"{cell.name}: waits ({error.why})")
            return False
        except Exception as error:
            known = isinstance(error, DiffvitError)
            why, code = (error.line, error.exit_code) if known else (f"{type(error).__name__}: {error}", 1)
            self.tell(f"{cell.name}: failed ({why})" + ("" if known else f"\n{traceback.format_exc()}"))
            file = self._errors_file(cell)
            with disk_faults(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a") as lines:
                    lines.write(json.dumps({"why": why, "exit_code": code}) + "\n")
            return False
        told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.tell(f"{cell.name}: {told or 'done'}")
        return True

    def train(self, cell: Cell, progress: Progress | None = None) -> RunDir:
        """Train a cell, or go on from its last checkpoint, or return what is there.

        Raises:
            RunBusyError: another process trains it.
            DiffvitError: whatever :func:`diffvit.training.loop.train` raises.
        """
        from diffvit.training.loop import train

        folder = self.folders[cell.name]
        config, run = cell.config.model_copy(update=dict(self.where)), RunDir(folder)
        if run.finished:
            return run
        if began := _beginning(folder):
            # With the number of threads the run began with: another would change the last bits, and is refused.
            threads = run.environment.get("threads") if (folder / "environment.json").is_file() else None
            resumed = config.model_copy(update={"threads": threads} if threads else {})
            try:
                return train(resumed, out=folder, resume=True, progress=progress)
            except ConfigError as error:  # begun by another version: its first part cannot be continued bit for bit
                with run.lock():  # others may have come to the same
                    if _beginning(folder) == began and not run.finished:
                        names = (folder.with_name(f"{folder.name}.stale-{number}") for number in count(1))
                        aside = folder.rename(next(name for name in names if not name.exists()))
                        self.tell(f"{cell.name}: starts again; the earlier run was renamed to {aside} ({error.why})")
            except InputError:
                if _beginning(folder):
                    raise
        try:
            return train(config, out=folder, progress=progress)
        except InputError:
            if _beginning(folder):  # since it was looked for, another process made it a run
                raise RunBusyError(str(folder), "another process began to train here") from None
            raise

    def _scored(self, run: RunDir) -> Mapping[str, Any]:
        """A finished run's score, measured if it is not there yet, while the run folder is locked."""
        if (scores := scores_of(run.path, self.score)) is not None:
            return scores
        with run.lock():
            scores = scores_of(run.path, self.score)
            if scores is None:
                scores = dict(function_of(SCORES[self.score])(run))
                write_file(run.path / "scores" / f"{self.score}.json", to_json(scores))
        return scores

    def forget_errors(self) -> list[str]:
        """Give the cells that were given up as many attempts again; which these are."""
        failed = self.state().failed
        given_up = [cell for cell in self.cells if cell.name in failed]
        for cell in given_up:
            self._errors_file(cell).unlink(missing_ok=True)
        return [cell.name for cell in given_up]

    def _errors_file(self, cell: Cell) -> Path:
        """Beside the run folder: a start that is refused leaves no folder."""
        folder = self.folders[cell.name]
        return folder.with_name(f"{folder.name}.errors.jsonl")

    def _errors(self, cell: Cell) -> list[dict[str, Any]]:
        file = self._errors_file(cell)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _beginning(folder: Path) -> list[bytes]:
    """What tells one beginning of a run from another; empty where there is no run."""
    files = (folder / name for name in ("config.yaml", "environment.json"))
    return [file.read_bytes() for file in files if file.is_file()]
