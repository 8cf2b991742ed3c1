"""Studies: experiments as YAML files, and their cells (one training for each arm, attention and seed)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from diffvit.config import Config, config_hash, flat, merge, parse, read_yaml, validate
from diffvit.errors import ConfigError, did_you_mean, sides, suggestion
from diffvit.registry import ACCELERATED, ATTENTION, LayerSize
from diffvit.settings import ModelConfig, Section

TierName = Literal["smoke", "short", "standard", "full"]
Settings = dict[str, Any]
BOTH = ("softmax", "differential")
RUNS, REPORTS = Path("runs/studies"), Path("reports")
EXPLORATORY_SEEDS = 2
GRACE_SECONDS = 60.0  # of a search: without a heartbeat until a worker is taken for lost
_FOLDER = Path(__file__).parent
_BUILT_IN = (  # in order of worth; each is a YAML file beside this one
    *("vit-vs-diffvit", "patch-size", "position", "augmentation"),
    *("width", "depth", "mlp-ratio", "heads", "pooling", "head", "optimizer", "initialisation", "search"),
    *("attribution", "differential-tuning", "differential", "differential-where", "augmentation-25"),
)
_TRAIN_IMAGES = {"cifar10": 50_000}
PASSES = 3  # of a training step: forward, and backward to inputs and weights


class Range(Section):
    """Values that a search may try for one setting: a range, or a few choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()


class SearchSpace(Section):
    """Search space: number of trials per tier, of each arm or attention, and the range of each setting."""

    trials: dict[TierName, int]
    settings: dict[str, Range] = Field(min_length=1)


class Study(Section):
    """An experiment: arms that differ only in the setting under study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The file's name without ``.yaml``; also that of its folder in ``reports``."""
    question: str
    """What it asks."""
    arms: dict[str, Settings] = Field({})
    """Settings of each arm, by name, laid over the tier's recipe and :attr:`base`."""
    attentions: tuple[str, ...] = BOTH
    """Every arm is run with each of them; empty where the arms name their own."""
    seeds: int = Field(3, ge=1)
    """How many; exploratory studies have two at most."""
    exploratory: bool = False
    """Two seeds, and no winner is named."""
    base: Settings = Field({})
    """Settings of all arms, laid over the tier's recipe."""
    tiers: dict[TierName, Settings] = Field({})
    """Settings of all arms at one tier, laid over :attr:`base`."""
    skip: dict[TierName, tuple[str, ...]] = Field({})
    """Arms that are left out at a tier."""
    score: str = "test_accuracy"
    """What is measured of each finished run; see :data:`diffvit.experiments.runner.SCORES`."""
    report: bool = True
    """Whether there are tables and plots of the test accuracy; False for rows and the score's tables alone."""
    fit: bool = False
    """Whether the report says how close each arm fits its training images."""
    search: SearchSpace | None = None
    """Where given, settings are searched for (:mod:`diffvit.experiments.search`), for each arm or else attention."""
    tuned: str | None = None
    """A search whose best trial gives each arm, by its name, the settings that are tried there; it is run first."""

    def trials(self, tier: TierName) -> int:
        """How many trials the search has at a tier, of each of :attr:`searched`; ConfigError where it gives none."""
        if self.search is None or tier not in self.search.trials:
            have = ", ".join(self.search.trials) if self.search else "none"
            raise ConfigError(f"study {self.name}", f"has no trials at tier {tier} (have {have})")
        return self.search.trials[tier]

    @property
    def searched(self) -> dict[str, Settings]:
        """What a search is made for, by name: the arms, or the attentions where there are none."""
        return self.arms or {attention: {"model": {"attention": attention}} for attention in self.attentions}


def load_study(path: Path) -> Study:
    """Read a study from a YAML file; its name is that of the file.

    Raises:
        ConfigError: the file is missing, no YAML, or not a study.
    """
    values = {"name": path.stem, **read_yaml(path)}
    study = validate(Study, values, lambda key, _: f"{path}: {'.'.join(key)}")
    if not study.arms and not study.search:
        raise ConfigError(str(path), "must have arms, or a search")
    for arm in (name for skipped in study.skip.values() for name in skipped if name not in study.arms):
        raise ConfigError(f"{path}: skip", f"no arm {arm!r};{did_you_mean(arm, study.arms)}".rstrip(";"))
    return study


STUDIES: dict[str, Study] = {name: load_study(_FOLDER / f"{name}.yaml") for name in _BUILT_IN}
"""The studies by name: the built-in ones, and those of :func:`register_study`."""


def register_study(study: Study) -> None:
    """Register a study, which can then be run by its name.

    Raises:
        ValueError: there is one of this name already.
    """
    if study.name in STUDIES:
        raise ValueError(f"study {study.name!r} is registered already")
    STUDIES[study.name] = study


def find_study(name: str) -> Study:
    """Find a study by name, or read one from a YAML file.

    Raises:
        ConfigError: there is none, or the file is not a study or has the name of another.
    """
    if name in STUDIES:
        return STUDIES[name]
    if name.endswith((".yaml", ".yml")):
        study = load_study(Path(name))
        if study.name in STUDIES:
            raise ConfigError(name, f"there is a study named {study.name} already", "Rename the file.")
        return study
    hint = suggestion(name, STUDIES)
    raise ConfigError("study", f"no study {name!r} (have {', '.join(STUDIES)}, or a YAML file)", hint)


class Tier(Section):
    """Size of a study: its purpose, the most seeds, and every arm's recipe before the study's own settings."""

    words: str
    seeds: int
    recipe: Settings


_TIERS = read_yaml(_FOLDER / "tiers.yaml")
TIERS: dict[TierName, Tier] = {name: Tier.model_validate(_TIERS[name]) for name in get_args(TierName)}


@dataclass(frozen=True)
class Cell:
    """One training of a study: an arm, an attention and a seed."""

    study: str  # its name
    tier: TierName
    arm: str  # as the study calls it
    config: Config  # of the run, with its attention and seed

    @property
    def name(self) -> str:
        """Unique in the study."""
        return f"{slug(self.arm)}-{self.config.model.attention}-s{self.config.seed}"

    @property
    def key(self) -> tuple[str, int]:
        """Hash of the config, and the seed."""
        return config_hash(self.config), self.config.seed


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def recipe_of(study: Study, tier: TierName, *layers: Mapping[str, Any]) -> Config:
    """The tier's recipe with the study's settings and then these laid over it.

    Raises:
        ConfigError: settings that do not go together.
    """
    return parse(merge(TIERS[tier].recipe, study.base, study.tiers.get(tier, {}), *layers), f"study {study.name}")


def cells_of(study: Study, tier: TierName, *, seeds: int | None = None, validation: bool = True) -> tuple[Cell, ...]:
    """Every cell of a study with arms; all arms of one seed before the next seed.

    ``seeds`` is how many instead of the study's own; ``validation`` is False for the cells as they were before studies
    kept images for validation.

    Raises:
        ConfigError: no seed, or an arm that the tier's recipe does not allow.
    """
    if seeds is not None and seeds < 1:
        raise ConfigError("--seeds", f"must be at least 1 (found {seeds})")
    last = {} if validation else {"validation_size": 0}
    cells = []
    arms = {arm: settings for arm, settings in study.arms.items() if arm not in study.skip.get(tier, ())}
    for seed in range(seeds or seeds_of(study, tier)):
        for arm, settings in arms.items():
            for attention in study.attentions or (None,):
                own = {"model": {"attention": attention}} if attention else {}
                cells.append(Cell(study.name, tier, arm, recipe_of(study, tier, settings, own, {"seed": seed, **last})))
    return tuple(cells)


def seeds_of(study: Study, tier: TierName) -> int:
    """How many seeds a study has at a tier."""
    wanted = min(EXPLORATORY_SEEDS, study.seeds) if study.exploratory else study.seeds
    return min(wanted, TIERS[tier].seeds)


def differing(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """By name, the settings that are not the same in all configs, by their dotted names; the seed left out."""
    settings = {name: flat(config) for name, config in configs.items()}
    keys = [key for key in next(iter(settings.values())) if len({str(each[key]) for each in settings.values()}) > 1]
    return {name: {key: found[key] for key in keys if key != "seed"} for name, found in settings.items()}


def flops_per_image(config: Config) -> float:
    """FLOPs of a forward pass of one image: matrix products only, a multiply-add counted as two.

    Computed from sizes; the same that :func:`diffvit.training.score.flops_per_image` counts in the model.
    """
    model = config.model
    patches = math.prod(sides(model.image_size)) // model.patch_size**2
    tokens, width = patches + (model.pool == "cls"), model.embed_dim
    embed = patches * width * model.in_chans * model.patch_size**2
    mlp = 2 * int(model.mlp_ratio * width) * width  # of one token
    block = tokens * (4 * width**2 + mlp + 2 * tokens * width)
    more = ATTENTION[model.attention].more
    block += more(LayerSize(width, model.num_heads, tokens)) if more else 0.0
    head = width * model.num_classes + (width * width if model.head == "mlp" else 0)
    whole = model.pool == "mean" or model.attention not in ACCELERATED
    last = block if whole else _attention_of_cls(model, tokens) + mlp
    return 2 * (embed + (model.depth - 1) * block + last + head)


def _attention_of_cls(model: ModelConfig, tokens: int) -> float:
    """Multiply-adds of attention in the last block, where only [CLS] queries."""
    width = model.embed_dim
    with_keys = 2 * width**2 + 2 * tokens * width**2 + 2 * tokens * width
    maps = ATTENTION[model.attention].maps(model.num_heads)
    without = 4 * width**2 + (model.num_heads + maps) * tokens * width
    return with_keys if model.pos_embed.endswith("rope-2d") else min(with_keys, without)


def training_flops(config: Config) -> float:
    """FLOPs of a whole training."""
    images = _TRAIN_IMAGES.get(config.data, config.shapes.train) - config.validation_size
    return PASSES * flops_per_image(config) * images * config.train_share * config.epochs
