"""Which trials are done, which run, and whose turn it is: every cell completes once, whoever is killed when.

A *cell* is what must be done once: an arm, an attention, a seed. In the storage it is an Optuna trial, which is
enqueued once and claimed by one worker, which from then on lets its *lease* beat. A trial whose lease has stopped
beating is marked as failed by whoever sees it first (the storage lets only one do so), and its cell is enqueued anew.
Who was only slow, not dead, finds its trial finished by another and its result not counted. No clock of one machine is
compared with another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffvit.experiments.holder import is_gone, this_process
from diffvit.experiments.standing import Claim, Standing
from diffvit.experiments.storage import close_storage, open_storage, optuna_library

CELL, LEASE, WHY, FORGIVEN = "cell", "lease", "why", "forgiven"
LOST, ERROR, DOUBLE = "lost", "error", "double"
ATTEMPTS = 3  # of a cell that fails by itself; lost workers do not count
LEASE_SECONDS = 60.0
_AT_ONCE = 8  # cells enqueued together: workers that begin together enqueue the same ones


@dataclass
class Ledger:
    """The trials of one study, as one worker sees them.

    Args:
        place: see :func:`diffvit.experiments.storage.open_storage`.
        name: of the study in the storage.
        cells: all of them, in the order in which they are wanted.
        lease: seconds without a beat after which a trial of another machine is taken for lost. One of this machine is
            known to be lost when its process is gone.
        sampler: Optuna's, for trials that ask for suggestions.
        pruner: Optuna's, for trials that tell values on the way.
        now: a clock, seconds; only differences count.
    """

    place: str
    name: str
    cells: Sequence[str]
    lease: float = LEASE_SECONDS
    sampler: Any = None
    pruner: Any = None
    now: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _beats: int = 0

    def __post_init__(self) -> None:
        optuna = optuna_library()
        self._optuna = optuna
        self._states = optuna.trial.TrialState
        self._finished_error = optuna.exceptions.UpdateFinishedTrialError
        self._study = optuna.create_study(
            storage=open_storage(self.place),
            study_name=self.name,
            load_if_exists=True,
            direction="maximize",
            sampler=self.sampler,
            pruner=self.pruner,
        )
        self._storage = self._study._storage  # with Optuna's memory of finished trials, which are not read again
        self._study_id = self._study._study_id

    def claim(self) -> Claim | None:
        """The next trial, now running and this worker's; None where all that is left is done or another's."""
        trials = self._trials()
        if self._bury(trials):
            trials = self._trials()
        first = self._first(trials)
        waiting = self._waiting(first)
        if not waiting and self._fill(first, trials):
            waiting = self._waiting(self._first(self._trials()))
        for trial in waiting:
            if self._take(trial):
                return Claim(trial.user_attrs[CELL], trial._trial_id, trial.number)
        return None

    def beat(self, claim: Claim) -> bool:
        """Say that the trial goes on; False where it is no longer this worker's."""
        self._beats += 1
        return self._set(claim.trial_id, LEASE, [self._beats, *this_process()])

    def complete(self, claim: Claim, value: float) -> bool:
        """The trial is done; False where it was given to another, and this does not count."""
        return self._finish(claim.trial_id, self._states.COMPLETE, [value])

    def prune(self, claim: Claim) -> bool:
        """The trial is not worth going on with, which is a way of being done."""
        return self._finish(claim.trial_id, self._states.PRUNED)

    def fail(self, claim: Claim, words: str, code: int = 1) -> bool:
        """The trial failed by itself, with this exit code; it is tried again unless it did :data:`ATTEMPTS` times."""
        return self._set(claim.trial_id, WHY, [ERROR, words, code]) and self._finish(claim.trial_id, self._states.FAIL)

    def forgive(self) -> list[str]:
        """Give the cells that were given up as many attempts again; which these are."""
        errors = self._errors(self._trials())
        given_up = list(self._given_up(errors))
        if given_up:
            forgiven = {cell: len(found) for cell, found in errors.items()}
            self._storage.set_study_user_attr(self._study_id, FORGIVEN, forgiven)
        return given_up

    def give_back(self, claim: Claim) -> bool:
        """The trial was stopped from outside; whoever comes next takes it up."""
        return self._set(claim.trial_id, WHY, [LOST, "given back"]) and self._finish(claim.trial_id, self._states.FAIL)

    def standing(self) -> Standing:
        """How the study stands."""
        done: dict[str, float] = {}
        running: dict[str, str] = {}
        trials = self._trials()
        for trial in trials:
            cell = trial.user_attrs.get(CELL)
            if trial.state == self._states.COMPLETE:
                done.setdefault(cell, trial.values[0])
            elif trial.state == self._states.PRUNED:
                done.setdefault(cell, max(trial.intermediate_values.values(), default=0.0))
            elif trial.state == self._states.RUNNING:
                beat = trial.user_attrs.get(LEASE)
                running[cell] = f"{beat[1]}, process {beat[2]}" if beat else "unknown"
        given_up = self._given_up(self._errors(trials))
        failed = {cell: given_up[cell][0] for cell in self.cells if cell in given_up and cell not in done}
        rest = [cell for cell in self.cells if cell not in {*done, *running, *failed}]
        running = {cell: running[cell] for cell in self.cells if cell in running and cell not in done}
        worst = max((given_up[cell][1] for cell in failed), default=0)
        return Standing({cell: done[cell] for cell in self.cells if cell in done}, running, failed, rest, worst)

    def trial(self, claim: Claim) -> Any:
        """Optuna's trial, which can be asked for suggestions and told values on the way."""
        return self._optuna.trial.Trial(self._study, claim.trial_id)

    def history(self) -> list[Any]:
        """All trials as Optuna keeps them, also those that were lost or failed."""
        return self._trials()

    def close(self) -> None:
        """Let go of the storage."""
        close_storage(self._storage)

    def _trials(self) -> list[Any]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _waiting(self, first: Mapping[str, Any]) -> list[Any]:
        """Trials to claim, in the cells' order; what others enqueued of other cells is not this worker's affair."""
        found = [first[cell] for cell in self.cells if cell in first]
        return [trial for trial in found if trial.state == self._states.WAITING]

    def _first(self, trials: Iterable[Any]) -> dict[str, Any]:
        """For each cell the first trial that is not lost: the one that counts, whatever was enqueued besides."""
        found: dict[str, Any] = {}
        for trial in trials:
            if trial.state != self._states.FAIL:
                found.setdefault(trial.user_attrs[CELL], trial)
        return found

    def _errors(self, trials: Iterable[Any]) -> dict[str, list[tuple[str, int]]]:
        """By cell, the words and exit code of every time it failed by itself."""
        found: dict[str, list[tuple[str, int]]] = {}
        for trial in trials:
            why, words, *code = trial.user_attrs.get(WHY, (LOST, ""))
            if trial.state == self._states.FAIL and why == ERROR:
                found.setdefault(trial.user_attrs[CELL], []).append((words, code[0] if code else 1))
        return found

    def _given_up(self, errors: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, tuple[str, int]]:
        often = {cell: found for cell, found in errors.items() if len(found) >= ATTEMPTS}
        if not often:
            return {}
        forgiven = self._storage.get_study_user_attrs(self._study_id).get(FORGIVEN, {})
        return {cell: found[-1] for cell, found in often.items() if len(found) - forgiven.get(cell, 0) >= ATTEMPTS}

    def _fill(self, first: Mapping[str, Any], trials: Sequence[Any]) -> bool:
        """Enqueue some cells that have no trial; whether there were any. Two workers may: the first trial counts."""
        given_up = self._given_up(self._errors(trials))
        missing = [cell for cell in self.cells if cell not in first and cell not in given_up]
        for cell in missing[:_AT_ONCE]:
            lost = [trial.params for trial in trials if trial.user_attrs[CELL] == cell and trial.params]
            # What was suggested to a trial that was lost: its cell goes on with the same.
            self._study.enqueue_trial(dict(lost[-1]) if lost else {}, user_attrs={CELL: cell})
        return bool(missing)

    def _take(self, trial: Any) -> bool:
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, self._states.RUNNING):
                return False
        except self._finished_error:
            return False
        claim = Claim(trial.user_attrs[CELL], trial._trial_id, trial.number)
        if not self.beat(claim):
            return False
        if self._first(self._trials())[claim.cell].number != trial.number:
            self._set(claim.trial_id, WHY, [DOUBLE, ""])
            self._finish(claim.trial_id, self._states.FAIL)
            return False
        return True

    def _bury(self, trials: Iterable[Any]) -> bool:
        """Mark the trials of workers that are gone, so that their cells are free; whether there were any."""
        now, found = self.now(), False
        for trial in (trial for trial in trials if trial.state == self._states.RUNNING):
            beat = trial.user_attrs.get(LEASE)
            if trial._trial_id not in self._seen or self._seen[trial._trial_id][0] != beat:
                self._seen[trial._trial_id] = (beat, now)
            silent = now - self._seen[trial._trial_id][1]
            if silent > self.lease or (beat is not None and is_gone(*beat[1:])):
                self._set(trial._trial_id, WHY, [LOST, "its worker is gone"])
                found |= self._finish(trial._trial_id, self._states.FAIL)
        return found

    def _set(self, trial_id: int, name: str, value: Any) -> bool:
        try:
            self._storage.set_trial_user_attr(trial_id, name, value)
        except self._finished_error:
            return False
        return True

    def _finish(self, trial_id: int, state: Any, values: Sequence[float] | None = None) -> bool:
        try:
            return bool(self._storage.set_trial_state_values(trial_id, state, values))
        except self._finished_error:
            return False
