"""One worker of a study: claims trials, runs them, and tells the ledger, until nothing is left."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffvit.config import Config
from diffvit.errors import ConfigError, DiffvitError, Interrupted, RunBusyError
from diffvit.experiments.ledger import Ledger
from diffvit.experiments.pool import RUNS, conditions_of, folder_of
from diffvit.experiments.standing import Claim
from diffvit.experiments.storage import storage_faults
from diffvit.experiments.trials import Trial
from diffvit.training.progress import Progress
from diffvit.training.run_dir import RunDir
from diffvit.training.signals import StopRequest

Execute = Callable[[Claim], float]
Tell = Callable[[str], object]
_PAUSE = 0.5  # seconds between looks where all that is left is another's
_BEATS = 4  # in the time after which a lease is taken for lost


class Pruned(Exception):
    """The trial is not worth going on with."""


def work(
    ledger: Ledger,
    execute: Execute,
    *,
    tell: Tell = lambda _: None,
    pause: float = _PAUSE,
) -> int:
    """Run trials until every one is done or given up; returns how many this worker completed.

    Args:
        ledger: of the trials.
        execute: runs one, or takes it up where it stopped; gives its figure, or raises :class:`Pruned`.
        tell: told in a line what happens.
        pause: seconds between looks where all that is left is another's.

    Raises:
        Interrupted: this worker was stopped; the trial's state is saved, and the trial given back.
        EnvironmentFault: the storage was lost.
    """
    with storage_faults(), StopRequest() as stop:
        return _all(ledger, execute, tell, pause, stop)


def _all(ledger: Ledger, execute: Execute, tell: Tell, pause: float, stop: StopRequest) -> int:
    completed = 0
    while not stop.signal:
        claim = ledger.claim()
        if claim is None:
            if ledger.standing().over:
                return completed
            time.sleep(pause)
            continue
        tell(f"{claim.cell}: begins")
        with beating(ledger, claim):
            completed += _run(ledger, claim, execute, tell, pause)
    # A signal in a trial's last moments does not keep that trial from its end, nor a worker in its own.
    raise Interrupted(stop.signal, "worker", "was stopped between trials", "Every trial's state is saved.")


def _run(ledger: Ledger, claim: Claim, execute: Execute, tell: Tell, pause: float) -> bool:
    """Whether the trial was completed, and counted."""
    try:
        value = execute(claim)
    except Interrupted:
        ledger.give_back(claim)
        raise
    except Pruned:
        tell(f"{claim.cell}: pruned")
        return ledger.prune(claim)
    except RunBusyError as error:
        # Somebody else trains the same config: another study, or a worker that was taken for lost and is not.
        tell(f"{claim.cell}: waits ({error.why})")
        ledger.give_back(claim)
        time.sleep(pause)
        return False
    except DiffvitError as error:
        tell(f"{claim.cell}: failed ({error})")
        ledger.fail(claim, str(error), error.exit_code)
        return False
    except Exception as error:  # whatever a trial dies of, the study goes on, and says what it was
        words = f"{type(error).__name__}: {error}"
        tell(f"{claim.cell}: failed ({words})\n{traceback.format_exc()}")
        ledger.fail(claim, words)
        return False
    counted = ledger.complete(claim, value)
    tell(f"{claim.cell}: {value:.2%}" if counted else f"{claim.cell}: was done by another")
    return counted


@contextmanager
def beating(ledger: Ledger, claim: Claim) -> Iterator[None]:
    """The lease beats while the trial runs, on a thread of its own."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(ledger.lease / _BEATS) and ledger.beat(claim):
            pass

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Training:
    """Runs a trial as a training, in the folder that all studies share.

    Args:
        runs: where the folders lie.
        where: settings that say where and how, not what: ``data_dir``, ``device``, ``threads``.
        tell: told in a line what happens.
    """

    runs: Path = RUNS
    where: Mapping[str, Any] | None = None
    tell: Tell = lambda _: None

    def __call__(self, trial: Trial, progress: Progress | None = None) -> RunDir:
        """Train, or go on, or return what is there.

        Args:
            trial: what.
            progress: where the training reports.

        Raises:
            DiffvitError: whatever :func:`diffvit.training.loop.train` raises.
        """
        config = trial.config.model_copy(update=dict(self.where or {}))
        folder = folder_of(trial, conditions_of(config), self.runs)
        run = RunDir(folder)
        return run if run.finished else self._trained(trial, config, folder, progress)

    def _trained(self, trial: Trial, config: Config, folder: Path, progress: Progress | None) -> RunDir:
        from diffvit.training.loop import train

        if not (folder / "config.yaml").is_file():
            return train(config, out=folder, progress=progress)
        try:
            return train(_as_it_began(config, folder), out=folder, resume=True, progress=progress)
        except ConfigError as error:
            # Begun by another version, or on other data: its first part cannot be taken up.
            aside = _aside(folder)
            self.tell(f"{trial.name}: begins anew, what was there is now {aside} ({error.why})")
            return train(config, out=folder, progress=progress)


def _as_it_began(config: Config, folder: Path) -> Config:
    """With the number of threads the run began with: another would change the last bits, and is refused."""
    run = RunDir(folder)
    threads = run.environment.get("threads", 0) if (folder / "environment.json").is_file() else 0
    return config.model_copy(update={"threads": threads} if threads else {})


def _aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    return folder.rename(aside)
