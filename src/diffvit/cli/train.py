"""``diffvit train``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import OUTPUT, Continue, Output, Quiet, Resume, flags_of
from diffvit.config import Config, resolve
from diffvit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from diffvit.training.run_dir import RunDir
    from diffvit.training.task import Task

    Settings = dict[str, Any]
else:
    Settings = flags_of(Config)

_Kind = TypeVar("_Kind", bound=Config)


def train(
    config: Annotated[Path | None, Parameter(help="YAML file with settings; see configs/.")] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/DATA-ATTENTION-sSEED.")] = None,
    resume: Resume = None,
    go_on: Continue = None,
    quiet: Quiet = False,
    output: Output = OUTPUT,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train a model and write a run folder, resume a stopped run, or go on from a finished one."""
    if go_on:
        resolved = continued(go_on, config or resume, settings or {})
    else:
        resolved = resumed(resume, out, config, settings or {}, Config) if resume else resolve(config, settings)
    run_and_report(resolved, resume or out or default_folder(resolved), resume is not None, quiet, output, summary)


def run_and_report(
    config: Config,
    out: Path,
    resume: bool,
    quiet: bool,
    output: Output,
    summary: Callable[[RunDir, Path], Mapping[str, Any]],
    task: Task | None = None,
) -> None:
    """Train, write the run's report, and print what ``summary`` gives for the run and its report."""
    from diffvit.training.loop import train as run_training
    from diffvit.training.progress import make_progress

    run = run_training(config, out=out, resume=resume, progress=make_progress(quiet), task=task)
    if int(os.environ.get("RANK", "0")):
        return  # of many processes the first one reports

    from diffvit.reporting.render import run_report

    report = run_report(run)
    if not quiet:
        show.pairs(summary(run, report))
    output.as_json({**run.result, "run": run.path, "report": report})


def resumed(run: Path, out: Path | None, file: Path | None, flags: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    """The config to take a run up with: its own, but for settings of where and how.

    ConfigError where flags, environment or file ask for another computation than the run began, or it is a run of
    another kind; InputError for no run folder.
    """
    from diffvit.training.run_dir import RunDir

    if out is not None and out.resolve() != run.resolve():
        raise ConfigError("--out", f"does not go with --resume ({out} vs {run})", "Give one of the two.")
    begun = RunDir.open(run)
    if type(begun.config) is not kind:
        verb, does = ("clip train", "trains") if kind is Config else ("train", "does not train")
        raise ConfigError(f"--resume {run}", f"the run {does} a CLIP", f"Resume it with: diffvit {verb} --resume {run}")
    asked = resolve(file or run / "config.yaml", flags, kind=kind)
    begun.refuse_other_settings(asked)
    return asked


def continued(run: Path, other: Path | str | None, flags: Mapping[str, Any]) -> Config:
    """The config of a new run from a finished run's last state: its own, with ``flags`` over it.

    With other data the size of the validation set is that data's again, but for 0. ConfigError where ``other``, a
    config file or a run to resume, is given too; InputError where the run is not finished.
    """
    from diffvit.training.run_dir import RunDir

    if other := other or flags.get("init_from"):
        raise ConfigError("--continue", f"takes the settings of {run} (found {other} too)", "Give flags over them.")
    begun = RunDir.open(run)
    if not begun.finished:
        why = "the run is not finished: there is nothing to go on from"
        raise InputError(f"--continue {run}", why, f"Finish it with: {begun.resume_command}")
    flags = {"whiten": False, "freeze": "none", **flags, "init_from": str(run.absolute()), "init_state": True}
    found, first = resolve(run / "config.yaml", flags), begun.config
    elsewhere = (found.data, found.data_dir) != (first.data, first.data_dir)
    if elsewhere and "validation_size" not in flags and found.validation_size == first.validation_size != 0:
        given = found.model_fields_set - {"validation_size"}  # which is that of the first run's data
        found = Config.model_construct(**{name: value for name, value in found if name in given})
    return found


def free_folder(folder: Path) -> Path:
    """``folder``, or ``folder-2``, ``folder-3``, ... where that is taken."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(each for each in chain([folder], others) if not each.exists())


def default_folder(config: Config, kind: str = "") -> Path:
    """``runs/DATA-ATTENTION-sSEED``, ``kind`` before the attention; with ``-2``, ``-3``, ... where that is taken.

    ConfigError where several processes train together, which could not agree on a free name.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--out", "is needed when several processes train together", "Give all of them the same one.")
    return free_folder(Path("runs") / f"{config.data}-{kind}{config.model.attention}-s{config.seed}")


def summary(run: RunDir, report: Path) -> dict[str, Any]:
    """Accuracies, the run folder, its report, and what to try next."""
    test, validation = run.result["test_accuracy"], run.result["val_accuracy"]
    accuracy = show.percent(test) + ("" if validation is None else f" (validation {show.percent(validation)})")
    return {"test accuracy": accuracy, "run folder": run.path, "report": report, "next": next_command(run)}


def next_command(run: RunDir) -> str:
    """Compare with the finished twin beside this run, or train that twin; of transferred weights there is none."""
    if run.config.init_from:
        return shlex.join(["diffvit", "attention", str(run.path)])
    mine = run.config.model.attention
    twin = "differential" if mine == "softmax" else "softmax"
    name = run.path.name.replace(mine, twin) if mine in run.path.name else f"{run.path.name}-{twin}"
    other = run.path.with_name(name)
    if (other / "result.json").is_file():
        return shlex.join(["diffvit", "compare", str(run.path), str(other)])
    command = ["diffvit", "train", str(run.path / "config.yaml"), "--model.attention", twin, "--out", str(other)]
    return shlex.join(command)
