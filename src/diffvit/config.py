"""Reading and writing configurations: flags, environment, YAML files and defaults become one validated config.

Precedence (:func:`resolve`): flag > environment (``DIFFVIT_*``) > file > default. A preset comes just below the
explicit values of whichever of these names it: one named by a flag beats the file's sizes, one named in the file does
not.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from diffvit.clip_settings import ClipConfig as ClipConfig
from diffvit.errors import ConfigError
from diffvit.models.presets import PRESETS
from diffvit.settings import AugmentConfig as AugmentConfig
from diffvit.settings import Config as Config
from diffvit.settings import ModelConfig as ModelConfig
from diffvit.settings import OptimizerConfig as OptimizerConfig
from diffvit.settings import ScheduleConfig as ScheduleConfig
from diffvit.settings import SettingPath, fault_of, section_of
from diffvit.settings import ShapesConfig as ShapesConfig

# Settings that say where and how a run happens, not what is computed: they do not enter the hash.
# (What kernels a run used is in its environment.json.)
WHEREABOUTS = frozenset({"data_dir", "device", "threads", "checkpoint_every", "accelerate"})
# Settings that are younger than committed results: they enter hashes, YAML and rows where they are not the default.
_YOUNGER = (
    *(f"model.{name}" for name in ("qk_norm", "layer_scale", "registers", "class_token", "no_embed_class", "fc_norm")),
    *(f"model.{name}" for name in ("init_std", "lambda_init")),
    *("accelerate", "test_size", "bad_files", "class_weights", "sampling", "train_share", "label_noise"),
    *("init_from", "init_state", "freeze", "optimizer.layer_decay"),
    *(f"shapes.{name}" for name in ("diameter", "beyond", "contrast", "decoys", "distractors", "occluders")),
)
_Kind = TypeVar("_Kind", bound=Config)
_Any = TypeVar("_Any", bound=BaseModel)


def parse(values: Mapping[str, Any], where: str = "config") -> Config:
    """Validate nested plain values into a :class:`Config`, or a :class:`ClipConfig` where they name its objective.

    ConfigError for an unknown key (with the closest known one), a wrong type or an impossible combination.
    """
    kind = ClipConfig if _is_contrastive(values) else Config
    return validate(kind, values, lambda path, _: f"{where}: {'.'.join(path) or 'config'}")


def _is_contrastive(values: Any) -> bool:
    return isinstance(values, Mapping) and "objective" in values


def validate(kind: type[_Any], values: Mapping[str, Any], name: Callable[[SettingPath, str], str]) -> _Any:
    """A config or a section of it; or a ConfigError, its first words ``name`` of the setting's path and the fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise fault_of(kind, error, name) from None


class _Strict(yaml.SafeLoader):
    """Refuses a name that a mapping has twice, where plain YAML would take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r} appears twice in one mapping, from line {node.start_mark.line + 1} on")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of one YAML file; ConfigError where it is missing, unreadable, not YAML, or not a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except FileNotFoundError:
        raise ConfigError(str(path), "no such config file", "See configs/ for the documented ones.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read as text ({error.__class__.__name__})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"is not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(str(path), f"must hold a mapping of names to values (found {type(values).__name__})")
    return values


def from_environment(environ: Mapping[str, str], kind: type[Config] = Config) -> dict[str, Any]:
    """``DIFFVIT_EPOCHS=3`` and ``DIFFVIT_MODEL__EMBED_DIM=64`` as nested values.

    Variables that name no setting are ignored, also ``DIFFVIT_DATA``, which says where CIFAR-10 lies
    (:func:`diffvit.data.sources.place_of`), not which data to take. ConfigError for a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith("DIFFVIT_") or name == "DIFFVIT_DATA" or not text:
            continue
        path = tuple(name.removeprefix("DIFFVIT_").lower().split("__"))
        section: type[BaseModel] | None = kind
        for key in path[:-1]:
            section = section_of(section, key) if section else None
        if section is None or path[-1] not in section.model_fields or section_of(section, path[-1]):
            continue
        inner = values
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        try:
            inner[path[-1]] = text if path[-1] in ("data_dir", "init_from") else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(name, f"cannot be read as a value (found {reprlib.repr(text)})") from None
    return values


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; later layers win key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted names, as ``model.depth``, as nested mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        found = merge(found, value)
    return found


def resolve(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    kind: type[_Kind] = Config,
) -> _Kind:
    """The config of a command: flag > environment > file > default, a preset just below whatever names it.

    ``flags`` are the nested values given on the command line, explicit ones only; ``environ`` is by default the
    process's. A file for :class:`ClipConfig` is refused where the ``kind`` wanted is a :class:`Config`.
    ConfigError as for :func:`parse` and :func:`read_yaml`; the line names the flag, variable or file at fault.
    """
    in_file = read_yaml(file) if file else {}
    if kind is Config and _is_contrastive(in_file):
        raise ConfigError(str(file), "is the config of a CLIP", f"Train it with: diffvit clip train {file}")
    flags = flags or {}
    environ = os.environ if environ is None else environ
    from_env = from_environment(environ, kind)
    source = merge({"data": kind().data}, in_file, from_env, flags)["data"]
    if environ.get("DIFFVIT_DATA") and source in ("auto", "cifar10"):
        in_file = {key: value for key, value in in_file.items() if key != "data_dir"}  # the variable beats a file
    layers = [(f"{file}: ", in_file), ("DIFFVIT_", from_env), ("--", flags)]
    values = merge(*_with_preset([each for _, each in layers]))
    return validate(kind, values, lambda path, why: _blame(path, why, layers if file else layers[1:]))


def _with_preset(layers: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers, lowest first, with the winning preset's values laid just below the layer that names it."""
    for place in reversed(range(len(layers))):
        model = layers[place].get("model")
        name = model.get("preset") if isinstance(model, Mapping) else None
        if isinstance(name, str) and name in PRESETS:
            return [*layers[:place], {"model": dict(PRESETS[name].settings)}, *layers[place:]]
    return layers


def _blame(path: SettingPath, why: str, layers: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Name the setting at fault as the user wrote it: a flag, else a variable, else the file's key.

    Where two settings of a section do not go together, the highest layer that gives one the message mentions is named.
    """
    for kind, values in reversed(layers):
        found: Any = values
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            continue
        full = path
        if isinstance(found, Mapping):
            named = [key for key in found if key in why]
            if not named:
                continue
            full = (*path, min(named, key=why.index))
        if kind == "--":
            return "--" + ".".join(full).replace("_", "-")
        if kind == "DIFFVIT_":
            return "DIFFVIT_" + "__".join(full).upper()
        return kind + ".".join(full)
    return f"{layers[0][0]}{'.'.join(path)}" if layers[0][0].endswith(": ") else ".".join(path) or "config"


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain JSON values, every setting present."""
    return config.model_dump(mode="json")


def flat(config: BaseModel) -> dict[str, Any]:
    """Plain JSON values of every setting by dotted name, as ``model.depth``."""

    def dotted(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from dotted(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(dotted(to_dict(config), ""))


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; feeding it back gives an equal config.

    It has every setting but those that are younger than committed results and have their default.
    """
    values = _without_younger(to_dict(config))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _without_younger(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a config without its younger settings that have their default."""
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    defaults = flat(Config())
    for name in _YOUNGER:
        section, _, key = name.rpartition(".")
        inner = values[section] if section else values
        if key in inner and inner[key] == defaults[name]:
            del inner[key]
    return values


def flat_without_younger(config: Config) -> dict[str, Any]:
    """:func:`flat` without the younger settings that have their default, as the rows of older runs are."""
    defaults = flat(Config())
    return {name: value for name, value in flat(config).items() if name not in _YOUNGER or value != defaults[name]}


def differences(one: Config, other: Config, *, ignore: frozenset[str] = WHEREABOUTS) -> list[str]:
    """``["epochs 50 vs 3", "model.depth 9 vs 4"]``: every setting in which two configs differ."""
    here, there = flat(one), flat(other)
    names = [name for name in here if name not in ignore | {"model.preset"}]
    return [f"{name} {here[name]} vs {there[name]}" for name in names if here[name] != there[name]]


def config_hash(config: Config) -> str:
    """Twelve hex digits over every setting that changes what is computed."""
    values = _without_younger({key: value for key, value in to_dict(config).items() if key not in WHEREABOUTS})
    del values["model"]["preset"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
