"""A study at a tier as trials: one run each, with its config, its seed and its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffvit.config import Config, config_hash, merge, parse, to_dict
from diffvit.errors import ConfigError, did_you_mean
from diffvit.experiments.definitions import STUDIES, Study
from diffvit.experiments.tiers import TIERS
from diffvit.reporting.arms import MODEL_NAMES
from diffvit.reporting.rows import flatten

EXPLORATORY_SEEDS = 2


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Args:
        study: its name.
        tier: how much.
        arm: as the study calls it.
        config: of the run, with its attention and seed.
    """

    study: str
    tier: str
    arm: str
    config: Config

    @property
    def name(self) -> str:
        """In the study, where no other has it."""
        words = re.sub(r"[^a-z0-9.]+", "-", self.arm.lower()).strip("-")
        return f"{words}-{self.config.model.attention}-s{self.config.seed}"

    @property
    def key(self) -> tuple[str, int]:
        """What is asked: config hash and seed. A row is known by this and by what it was computed on."""
        return config_hash(self.config), self.config.seed


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STUDIES:
        hint = did_you_mean(name, STUDIES).replace(" did", "Did", 1)
        raise ConfigError("study", f"no study {name!r} (have {', '.join(STUDIES)})", hint)
    return STUDIES[name]


def trials_of(study: Study, tier: str, *, seeds: int | None = None, validation: bool = True) -> tuple[Trial, ...]:
    """Every run of a study with given arms; all arms of one seed before the next seed.

    Args:
        study: which.
        tier: one of :data:`~diffvit.experiments.tiers.TIERS`.
        seeds: how many instead of the study's own.
        validation: False for the trials as they were before studies kept images for validation.

    Raises:
        ConfigError: no such tier, no seed, or an arm that the tier's recipe does not allow.
    """
    if tier not in TIERS:
        raise ConfigError("--tier", f"no tier {tier!r} (have {', '.join(TIERS)})")
    if seeds is not None and seeds < 1:
        raise ConfigError("--seeds", f"must be at least 1 (found {seeds})")
    count = seeds or seeds_of(study, tier)
    last: Mapping[str, Any] = {} if validation else {"validation_size": 0}
    return tuple(
        Trial(study.name, tier, arm, _config(study, tier, arm, attention, {"seed": seed, **last}))
        for seed in range(count)
        for arm in study.arms
        for attention in study.attentions or (None,)
    )


def seeds_of(study: Study, tier: str) -> int:
    """How many seeds a study has at a tier."""
    return min(EXPLORATORY_SEEDS if study.exploratory else study.seeds, TIERS[tier].seeds)


def _config(study: Study, tier: str, arm: str, attention: str | None, last: Mapping[str, Any]) -> Config:
    own = {} if attention is None else {"model": {"attention": attention}}
    layers = [TIERS[tier].recipe, study.base.get(tier, {}), study.arms[arm], own, last]
    return parse(merge(*layers), f"study {study.name}, {arm}")


def label_of(arm: str, attention: str, attentions: Sequence[str]) -> str:
    """An arm in a table: with its attention where the study runs several."""
    return f"{arm}, {MODEL_NAMES[attention]}" if attentions else arm


def apart_in(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """By name, the settings that are not the same in all configs, by their dotted names; the seed left out."""
    flat = {name: flatten(to_dict(config)) for name, config in configs.items()}
    keys = [key for key in next(iter(flat.values())) if len({str(each[key]) for each in flat.values()}) > 1]
    return {name: {key: found[key] for key in keys if key != "seed"} for name, found in flat.items()}
