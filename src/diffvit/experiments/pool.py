"""Run folders and committed rows of study trials, by config, seed, data, precision, device and kernels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from diffvit.config import Config, parse, to_dict
from diffvit.experiments.trials import Trial
from diffvit.reporting.rows import RunRecord, read, read_run
from diffvit.training.run_dir import RunDir

RUNS, REPORTS = Path("runs/studies"), Path("reports")


@dataclass(frozen=True)
class Conditions:
    """Data, precision, device and kernels that a trial is run with.

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
    """Eight hex digits of the SHA-256 of one or more conditions, for names of folders and ledgers."""
    told = sorted({f"{each.fingerprint} {each.precision} {each.device} {each.kernels}" for each in conditions})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def conditions_of(config: Config) -> Conditions:
    """What a run of this config would be computed on here; reads the training images, once for each source.

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
    from diffvit.training.material import load_split

    config = parse(json.loads(asked))
    source = sources.resolve_auto(config.data_dir) if config.data == "auto" else config.data
    images = load_split(config, source, "train")
    return images.name, images.fingerprint


def located(trials: Iterable[Trial], where: Mapping[str, Any]) -> dict[str, Conditions]:
    """Conditions of each trial on this machine, by the trial's name.

    Args:
        trials: of any studies.
        where: settings laid over each trial's config, such as ``data_dir`` and ``device``.
    """
    return {trial.name: conditions_of(trial.config.model_copy(update=dict(where))) for trial in trials}


def folder_of(trial: Trial, conditions: Conditions, runs: Path = RUNS) -> Path:
    """The run folder of a trial; trials of the same config, seed and conditions share it, whatever their studies."""
    return runs / trial.tier / f"{_stem(trial)}-{conditions.tag}"


def _stem(trial: Trial) -> str:
    digest, seed = trial.key
    return f"{digest}-s{seed}"


def report_of(study: str, reports: Path = REPORTS) -> Path:
    """Where a study's rows and report lie."""
    return reports / study


def committed(
    trials: Sequence[Trial], conditions: Mapping[str, Conditions], reports: Path = REPORTS
) -> dict[str, RunRecord]:
    """Committed rows (``reports/NAME/rows.csv``) of trials, by the trial's name: these are not run again.

    Args:
        trials: of any studies.
        conditions: of each trial by name; a row with others is passed over.
        reports: where committed rows lie.

    Raises:
        InputError: a damaged rows.csv.
    """
    found: dict[str, RunRecord] = {}
    for study in dict.fromkeys(trial.study for trial in trials):
        known = {record.key: record for record in read(report_of(study, reports))}
        for trial in (each for each in trials if each.study == study):
            on = conditions[trial.name]
            record = known.get((*trial.key, on.fingerprint, on.precision, on.device, on.kernels))
            found |= {trial.name: record} if record else {}
    return found


def records_of(trials: Sequence[Trial], runs: Path = RUNS, reports: Path = REPORTS) -> dict[str, list[RunRecord]]:
    """Finished runs and committed rows of each trial, under any conditions, by the trial's name.

    Raises:
        InputError: a damaged run or rows.csv.
    """
    known: dict[tuple[Any, ...], dict[tuple[Any, ...], RunRecord]] = {}
    for study in dict.fromkeys(trial.study for trial in trials):
        for record in read(report_of(study, reports)):
            known.setdefault(record.key[:2], {})[record.key] = record
    found: dict[str, list[RunRecord]] = {}
    for trial in trials:
        records = dict(known.get(trial.key, {}))
        stem = _stem(trial)
        for folder in sorted((runs / trial.tier).glob(f"{stem}*")):
            tag = folder.name.removeprefix(stem)
            if tag and not (tag.startswith("-") and tag[1:].isalnum()):
                continue  # another seed, or a run that the runner renamed
            run = RunDir(folder)
            if run.finished:
                record = read_run(run)
                # A row that is committed keeps its name.
                name = records[record.key].row["run"] if record.key in records else f"{trial.name}{tag}"
                records[record.key] = replace(record, row={**record.row, "run": name})
        if records:
            found[trial.name] = list(records.values())
    return found
