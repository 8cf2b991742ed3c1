"""Run the cells of a study: a worker takes a cell by the lock of its run folder, and is done when result.json is there.

There is no server and no list of jobs. Any number of workers on any number of machines that share the folder each go
through the cells, skip those that are finished or locked, and train the others; the lock is released when a process
ends, however it ends, and the next worker goes on from the last checkpoint. So each cell is completed exactly once.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from diffvit.config import Config, parse, to_dict
from diffvit.errors import ConfigError, DiffvitError, InputError, Interrupted, RunBusyError
from diffvit.experiments.study import REPORTS, RUNS, Cell
from diffvit.files import disk_faults, to_json
from diffvit.files import replace as write_atomically
from diffvit.reporting.rows import RunRecord, read
from diffvit.training.progress import Progress, StopRequest
from diffvit.training.run_dir import RunDir

Tell = Callable[[str], object]
Score = Callable[[RunDir], Mapping[str, Any]]
ATTEMPTS = 3  # of a cell that fails by itself; a killed worker does not count
_PAUSE = 0.5  # seconds between looks where all that is left is locked by others

TEST_ACCURACY = "test_accuracy"
SCORES: dict[str, Score] = {TEST_ACCURACY: lambda run: {TEST_ACCURACY: run.result[TEST_ACCURACY]}}
"""What a study may measure of a finished run, by the name in its ``score`` field: from the run folder to named numbers
and named tables, which are lists of rows (dicts).

What any but ``test_accuracy`` gives is kept in the run folder, as ``scores/NAME.json``. Its numbers stand in the
columns ``score.NUMBER`` of rows.csv, its tables in ``TABLE.csv`` beside it.
"""


def register_score(name: str, score: Score) -> None:
    """Make a score of your own one that a study may name.

    Raises:
        ValueError: there is one of this name already.
    """
    if name in SCORES:
        raise ValueError(f"score {name!r} is registered already")
    SCORES[name] = score


@dataclass(frozen=True)
class Conditions:
    """Data, precision, device and kernels that a cell is run with.

    Args:
        data: name of the images; not a part of :attr:`tag`.
        fingerprint: of the training images.
        precision: fp32 or bf16.
        device: cpu or cuda.
        kernels: native or torch.
    """

    data: str
    fingerprint: str
    precision: str
    device: str
    kernels: str

    @property
    def tag(self) -> str:
        """Eight hex digits for names of folders and rows."""
        return tag_of([self])


def tag_of(conditions: Iterable[Conditions]) -> str:
    """Eight hex digits of the SHA-256 of one or more conditions."""
    told = sorted({f"{each.fingerprint} {each.precision} {each.device} {each.kernels}" for each in conditions})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def conditions_of(config: Config) -> Conditions:
    """The conditions of a run of this config on this machine; reads the training images, once for each source.

    Raises:
        ConfigError, InputError, EnvironmentFault: the data is missing or damaged, or there is no such device.
    """
    from diffvit.data.sources import place_of
    from diffvit.training import environment

    device = environment.resolve_device(config.device)
    precision = environment.resolve_precision(config.precision, device)
    asked = {name: to_dict(config)[name] for name in ("data", "shapes")}
    place = place_of(config.data, config.data_dir)
    asked |= {"data_dir": str(place.absolute()) if place else None}
    asked |= {"model": {name: getattr(config.model, name) for name in ("image_size", "num_classes", "in_chans")}}
    data, fingerprint = _images(json.dumps(asked))
    return Conditions(data, fingerprint, precision, device, environment.kernels(device, precision))


@cache
def _images(asked: str) -> tuple[str, str]:
    """Name and fingerprint of the training images of these settings, which are JSON."""
    from diffvit.data import sources
    from diffvit.training.task import load_split

    config = parse(json.loads(asked))
    source = sources.resolve_auto(config.data_dir) if config.data == "auto" else config.data
    images = load_split(config, source, "train")
    return images.name, images.fingerprint


def located(cells: Iterable[Cell], where: Mapping[str, Any]) -> dict[str, Conditions]:
    """Conditions of each cell on this machine, by the cell's name.

    Args:
        cells: of a study.
        where: settings laid over each cell's config, such as ``data_dir`` and ``device``.
    """
    return {cell.name: conditions_of(cell.config.model_copy(update=dict(where))) for cell in cells}


def stem_of(cell: Cell) -> str:
    """Beginning of the name of a cell's run folder: hash of the config, and seed."""
    digest, seed = cell.key
    return f"{digest}-s{seed}"


def folder_of(cell: Cell, conditions: Conditions, runs: Path = RUNS) -> Path:
    """The run folder of a cell; cells of the same config, seed and conditions share it, whatever their studies."""
    return runs / cell.tier / f"{stem_of(cell)}-{conditions.tag}"


def committed(
    cells: Sequence[Cell], conditions: Mapping[str, Conditions], reports: Path = REPORTS
) -> dict[str, RunRecord]:
    """Committed rows (``reports/STUDY/rows.csv``) of cells, by the cell's name: these are not run again.

    Args:
        cells: of a study.
        conditions: of each cell by name; a row of others is passed over.
        reports: where committed rows lie.

    Raises:
        InputError: a damaged rows.csv.
    """
    found: dict[str, RunRecord] = {}
    for study in dict.fromkeys(cell.study for cell in cells):
        known = {record.key: record for record in read(reports / study)}
        for cell in (each for each in cells if each.study == study):
            on = conditions[cell.name]
            record = known.get((*cell.key, on.fingerprint, on.precision, on.device, on.kernels))
            found |= {cell.name: record} if record else {}
    return found


@dataclass(frozen=True)
class State:
    """What has become of the cells of a study, read from their run folders.

    Args:
        done: the first number of the score by the cell's name, or the test accuracy where it has tables alone.
        running: which process holds the run folder's lock.
        failed: the last error of those given up after :data:`ATTEMPTS` of them.
        waiting: names of all others.
        exit_code: the largest of those given up; 0 where none was.
    """

    done: dict[str, float]
    running: dict[str, str]
    failed: dict[str, str]
    waiting: list[str]
    exit_code: int = 0


def scores_of(folder: Path, score: str) -> Mapping[str, Any] | None:
    """The numbers and tables of a run's score; None where the run is not finished or not yet scored."""
    run, file = RunDir(folder), folder / "scores" / f"{score}.json"
    if not run.finished:
        return None
    if score == TEST_ACCURACY:
        return SCORES[score](run)
    return json.loads(file.read_bytes()) if file.is_file() else None


def numbers_in(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a score, without its tables."""
    return {name: value for name, value in scores.items() if not isinstance(value, list)}


@dataclass(frozen=True)
class Runner:
    """Runs cells, as one worker of any number.

    Args:
        cells: in the order in which they are wanted.
        folders: the run folder of each by name; see :func:`folder_of`.
        where: settings that say where and how, not what: ``data_dir``, ``device``, ``threads``.
        score: what is measured of a finished run, a name in :data:`SCORES`.
        tell: told in a line what happens.
    """

    cells: Sequence[Cell]
    folders: Mapping[str, Path]
    where: Mapping[str, Any] = field(default_factory=dict)
    score: str = TEST_ACCURACY
    tell: Tell = lambda _: None

    def state(self) -> State:
        """What has become of the cells."""
        state, codes = State({}, {}, {}, []), [0]
        for cell in self.cells:
            folder = self.folders[cell.name]
            if (scores := scores_of(folder, self.score)) is not None:
                numbers = numbers_in(scores) or {TEST_ACCURACY: RunDir(folder).result[TEST_ACCURACY]}
                state.done[cell.name] = next(iter(numbers.values()))
            elif process := RunDir(folder).locked_by:
                state.running[cell.name] = f"process {process}"
            elif len(errors := self._errors(cell)) >= ATTEMPTS:
                state.failed[cell.name] = errors[-1]["why"]
                codes.append(errors[-1]["exit_code"])
            else:
                state.waiting.append(cell.name)
        return replace(state, exit_code=max(codes))

    def work(self, *, wait: bool = True, pause: float = _PAUSE) -> int:
        """Run cells until each is done or given up; returns how many this worker completed.

        Args:
            wait: for cells that others hold, too.
            pause: seconds between looks where all that is left is held by others.

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
                    time.sleep(pause)
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
        except DiffvitError as error:
            self.tell(f"{cell.name}: failed ({error})")
            self._add_error(cell, str(error), error.exit_code)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self.tell(f"{cell.name}: failed ({why})\n{traceback.format_exc()}")
            self._add_error(cell, why, 1)
        else:
            told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self.tell(f"{cell.name}: {told or 'done'}")
            return True
        return False

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
            try:
                return train(_with_threads_of(run, config), out=folder, resume=True, progress=progress)
            except ConfigError as error:  # begun by another version: its first part cannot be continued bit for bit
                with run.lock():  # others may have come to the same
                    if _beginning(folder) == began and not run.finished:
                        aside = folder.rename(_free_name(folder))
                        self.tell(f"{cell.name}: begins anew, what was there is now {aside} ({error.why})")
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
                scores = dict(SCORES[self.score](run))
                with disk_faults(run.path):
                    (run.path / "scores").mkdir(exist_ok=True)
                    write_atomically(run.path / "scores" / f"{self.score}.json", to_json(scores))
        return scores

    def forget_errors(self) -> list[str]:
        """Give the cells that were given up as many attempts again; which these are."""
        given_up = self.state().failed
        for cell in (each for each in self.cells if each.name in given_up):
            self._errors_file(cell).unlink(missing_ok=True)
        return list(given_up)

    def _errors_file(self, cell: Cell) -> Path:
        """Beside the run folder: a start that is refused leaves no folder."""
        folder = self.folders[cell.name]
        return folder.with_name(f"{folder.name}.errors.jsonl")

    def _errors(self, cell: Cell) -> list[dict[str, Any]]:
        file = self._errors_file(cell)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def _add_error(self, cell: Cell, why: str, exit_code: int) -> None:
        file = self._errors_file(cell)
        with disk_faults(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(json.dumps({"why": why, "exit_code": exit_code}) + "\n")


def _beginning(folder: Path) -> list[bytes]:
    """What tells one beginning of a run from another; empty where there is no run."""
    files = (folder / name for name in ("config.yaml", "environment.json"))
    return [file.read_bytes() for file in files if file.is_file()]


def _with_threads_of(run: RunDir, config: Config) -> Config:
    """With the number of threads the run began with: another would change the last bits, and is refused."""
    threads = run.environment.get("threads", 0) if (run.path / "environment.json").is_file() else 0
    return config.model_copy(update={"threads": threads} if threads else {})


def _free_name(folder: Path) -> Path:
    number = 1
    while (name := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    return name
