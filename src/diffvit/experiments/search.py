"""The study that looks for its arms: TPE over the recipe's main dials, poor trials pruned, on the validation split.

Source of the sampler: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", as Optuna has it. Only the
validation split is looked at; the test figures of the runs are kept beside it and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffvit.config import merge, parse
from diffvit.experiments.definitions import BOTH
from diffvit.experiments.ledger import Ledger
from diffvit.experiments.pool import Conditions, conditions_of, tag_of
from diffvit.experiments.runner import Pruned, Training
from diffvit.experiments.standing import Claim, Standing
from diffvit.experiments.storage import close_storage, open_storage, optuna_library
from diffvit.experiments.tiers import TIERS
from diffvit.experiments.trials import Trial
from diffvit.training.progress import QuietProgress

TRIALS = {"smoke": 3, "short": 20, "full": 60}  # for each attention
EPOCHS = {"smoke": 2, "short": 6, "full": 15}
VALIDATION = {"smoke": 100, "short": 5_000, "full": 5_000}
ON = "on"  # a trial's attribute: data, precision and device
_SEED = 0
_BEFORE_PRUNING = 5  # trials that all run to their end
_SAFE = 1 / 3  # of a trial's epochs: none is judged by how it begins, for a warm-up and small rates start slowly


@dataclass(frozen=True)
class Dial:
    """A setting that is looked for.

    Args:
        setting: its dotted name.
        low: smallest value.
        high: largest value.
        log: whether factors count, not differences.
        choices: the values, where they are few.
    """

    setting: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggested(self, trial: Any) -> Any:
        """A value, by the study's sampler."""
        if self.choices:
            return trial.suggest_categorical(self.setting, self.choices)
        return trial.suggest_float(self.setting, self.low, self.high, log=self.log)


DIALS = (
    Dial("optimizer.muon_lr", 0.002, 0.02, log=True),
    Dial("optimizer.lr", 0.0005, 0.005, log=True),
    Dial("optimizer.weight_decay", 0.01, 0.2, log=True),
    Dial("schedule.warmup", 0.02, 0.2),
    Dial("label_smoothing", choices=(0.0, 0.1)),
    Dial("batch_size", choices=(64, 128, 256)),
    Dial("model.mlp_ratio", choices=(1.0, 2.0, 3.0)),
    Dial("augment.crop", choices=(0, 2, 4)),
)


def slots_of(tier: str) -> tuple[str, ...]:
    """The trials of one attention, by name; what they try is suggested when they begin."""
    return tuple(f"trial-{number:02}" for number in range(TRIALS[tier]))


def ledger_for(
    place: str, tier: str, attention: str, lease: float, on: Mapping[str, Conditions], name: str = ""
) -> Ledger:
    """The search's ledger for one attention.

    Args:
        place: see :func:`diffvit.experiments.storage.open_storage`.
        tier: how much.
        attention: of the models.
        lease: see :class:`~diffvit.experiments.ledger.Ledger`.
        on: what its trials are computed on; those on other data, precision or devices are another ledger's.
        name: of the study in the storage, where it is known already.
    """
    optuna = optuna_library()
    return Ledger(
        place,
        name or f"search-{tier}-{attention}-{tag_of(on.values())}",
        slots_of(tier),
        lease,
        # Workers share what is tried: trials that run count as poor, so that no two try the same.
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=safe_epochs(tier) + 1),
    )


def ledgers_in(place: str, tier: str, attention: str, lease: float) -> list[Ledger]:
    """All ledgers of the search at a place, whatever their trials were computed on."""
    storage = open_storage(place)
    names = [study.study_name for study in storage.get_all_studies()]
    close_storage(storage)
    mine = sorted(name for name in names if f"{name}-".startswith(f"search-{tier}-{attention}-"))
    return [ledger_for(place, tier, attention, lease, {}, name) for name in mine]


def safe_epochs(tier: str) -> int:
    """Epochs that every trial runs."""
    return int(EPOCHS[tier] * _SAFE)


def trial_of(tier: str, attention: str, slot: str, values: Mapping[str, Any]) -> Trial:
    """The run that tries these values."""
    tried: dict[str, Any] = {}
    for setting, value in values.items():
        inner: Any = value
        for part in reversed(setting.split(".")):
            inner = {part: inner}
        tried = merge(tried, inner)
    fixed = {
        "epochs": EPOCHS[tier],
        "validation_size": VALIDATION[tier],
        "seed": _SEED,
        "model": {"attention": attention},
    }
    return Trial("search", tier, slot, parse(merge(TIERS[tier].recipe, tried, fixed), f"study search, {slot}"))


def unpruned(tier: str) -> list[Trial]:
    """All trials of both attentions with the base recipe's values and none pruned, to tell about how long they take."""
    return [trial_of(tier, attention, slot, {}) for attention in BOTH for slot in slots_of(tier)]


class _Reporting(QuietProgress):
    """Tells the study each epoch's validation accuracy, and stops a poor trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def epoch(self, row: Mapping[str, Any]) -> None:
        """See :class:`~diffvit.training.progress.Progress`."""
        self._trial.report(row["val_accuracy"], int(row["epoch"]))
        if self._trial.should_prune():
            raise Pruned


@dataclass(frozen=True)
class Search:
    """Runs a claimed slot of the search: asks what to try, and trains it.

    Args:
        ledger: of :func:`ledger_for`.
        tier: how much.
        attention: of the models.
        training: runs a trial.
    """

    ledger: Ledger
    tier: str
    attention: str
    training: Training

    def __call__(self, claim: Claim) -> float:
        """The validation accuracy at the end.

        Raises:
            Pruned: it was not worth going on.
            DiffvitError: whatever a training raises.
        """
        trial = self.ledger.trial(claim)
        values = {dial.setting: dial.suggested(trial) for dial in DIALS}
        asked = trial_of(self.tier, self.attention, claim.cell, values)
        on = conditions_of(asked.config.model_copy(update=dict(self.training.where or {})))
        trial.set_user_attr(ON, {"data": on.data, "precision": on.precision, "device": on.device})
        run = self.training(asked, _Reporting(trial))
        return float(run.result["val_accuracy"])


def standing_of(ledgers: Mapping[str, Ledger]) -> Standing:
    """How the search stands, over its attentions."""
    found = {attention: ledger.standing() for attention, ledger in ledgers.items()}

    def named(cells: Mapping[str, Any], attention: str) -> dict[str, Any]:
        return {f"{cell}, {attention}": value for cell, value in cells.items()}

    return Standing(
        {name: value for attention, each in found.items() for name, value in named(each.done, attention).items()},
        {name: value for attention, each in found.items() for name, value in named(each.running, attention).items()},
        {name: value for attention, each in found.items() for name, value in named(each.failed, attention).items()},
        [f"{cell}, {attention}" for attention, each in found.items() for cell in each.waiting],
        max(each.worst for each in found.values()),
    )
