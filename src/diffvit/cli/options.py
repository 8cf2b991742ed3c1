"""Options that several verbs share, and flags made from the configuration's fields."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from diffvit.cli import show
from diffvit.config import Config, resolve
from diffvit.errors import ConfigError, EnvironmentFault, Size, checked_size
from diffvit.files import finite
from diffvit.models.presets import PRESETS
from diffvit.registry import ATTENTION, AUGMENTATIONS, SOURCES, position_names
from diffvit.settings import Device, Precision

RUN = Group("The run", sort_key=2)
SWITCH = Parameter(negative="", show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How a command reports."""

    json: Annotated[bool, SWITCH] = False
    """Print the result as one JSON object on the last line of standard output."""
    debug: Annotated[bool, SWITCH] = False
    """Show the traceback of an error."""
    plugin: Annotated[tuple[Path, ...], SWITCH] = ()
    """Python file that registers your own attentions, positions, ...; repeatable."""

    def as_json(self, values: Mapping[str, Any]) -> None:
        """Print one JSON object on one line, where ``--json`` asks for it; what is not finite becomes null."""
        if self.json:
            show.line(dumps(finite(values), allow_nan=False, default=str))


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where a model runs."""

    device: Annotated[Device | None, Parameter(show_default="auto")] = None
    """Device to run on."""
    precision: Annotated[Precision | None, Parameter(show_default="auto")] = None
    """auto: as the run itself was scored, else bf16 where the hardware has bf16 arithmetic, else fp32."""

    def resolved(self) -> dict[str, str]:
        """``device`` and ``precision``: flag > environment > default."""
        config = settings_of(**vars(self))
        return {"device": config.device, "precision": config.precision}


DeviceFlag = Annotated[Device | None, Parameter(show_default="auto", help="Where to run.")]
_DATA_DIR = "Folder of the data; for CIFAR-10 the default is DIFFVIT_DATA."
DataDir = Annotated[Path | None, Parameter(help=_DATA_DIR)]
_SIZE = "Side of the input, or HEIGHT,WIDTH, pixels, if not the one trained for; positions are interpolated."
InputSize = Annotated[str | None, Parameter(name="--size", help=_SIZE)]
Resume = Annotated[Path | None, Parameter(help="Run folder of a stopped run to resume.")]
_CONTINUE = "Finished run to go on from, with its settings, in a new run with a new schedule."
Continue = Annotated[Path | None, Parameter(name="--continue", help=_CONTINUE)]
Quiet = Annotated[bool, SWITCH, Parameter(help="Show no progress and no summary.")]
OUTPUT, PLACE = Output(), Place()


def settings_of(**flags: Any) -> Config:
    """The settings of a command with these flags, None for one not given: flag > environment > default."""
    return resolve(None, {name: value for name, value in flags.items() if value is not None})


def numbers_of(flag: str, text: str) -> tuple[int, ...]:
    """``"16,64"`` as numbers, each once; a ConfigError for anything else."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(flag, f"must be whole numbers with commas (found {text!r})") from None


def size_of(text: str | None) -> Size | None:
    """What ``--size`` gives: None where it is not there."""
    return None if text is None else checked_size("--size", text)


def refuse_folder(folder: Path) -> None:
    """Raise an EnvironmentFault, before measuring, if a folder cannot be written to."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "cannot be written to" if place.is_dir() else f"is no folder ({place} is a file)"
        raise EnvironmentFault(str(folder), why, "Nothing was written; give another --out.")


def flags_of(section: type[BaseModel], group: Group = RUN, *, without: frozenset[str] = frozenset()) -> Any:
    """A TypedDict with a key for each field of a section but those in ``without``.

    cyclopts makes a flag of each key, under ``group`` in ``--help``, and passes only those that were given.
    """
    fields: dict[str, Any] = {}
    for place, (name, field) in enumerate(section.model_fields.items()):
        if name in without:
            continue
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            part = Group(f"{name.capitalize()} (--{name}.*)", sort_key=3 + place)
            fields[name] = Annotated[flags_of(inner, part), Parameter(group=part)]
        else:
            text, default = _meaning(name, field), _shown(field.default)
            fields[name] = Annotated[_plain(inner), Parameter(help=text, show_default=default, group=group)]
    return TypedDict(section.__name__, fields, total=False)  # pyright: ignore[reportArgumentType]


def _meaning(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    known = {"preset": PRESETS, "attention": ATTENTION, "policy": AUGMENTATIONS, "data": SOURCES}
    names = position_names() if name == "pos_embed" else known.get(name)
    return f"{text} One of {', '.join(names)}." if names else text


def _shown(default: Any) -> str | bool:
    if default is None:
        return False
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def _plain(annotation: Any) -> Any:
    """``X`` for ``X | None``: a flag that was not given has no key at all. Text for a size, which the config reads."""
    if annotation == Size:
        return str
    if get_origin(annotation) in (Union, types.UnionType):
        return next(each for each in get_args(annotation) if each is not type(None))
    return annotation
