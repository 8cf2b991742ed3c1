"""Run folders as rows: one per run, one per epoch, written to and merged with committed CSV files.

``predictions.csv`` beside them has a row for each run whose test predictions are known: the fingerprint of the test
images, and ``correct``, one bit per test image, set where the run classified it correctly. Images are in the order of
loading (CIFAR-10: by SHA-256 of an image's uint8 pixels, channel by channel, then by label); image 0 is the most
significant bit of the first byte; the bytes are in base64. Reports read it to pair two runs image by image.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffvit.config import Config, flat_without_younger
from diffvit.errors import InputError
from diffvit.files import Row, read_csv, write_csv
from diffvit.training.run_dir import RunDir

ROWS_FILE, EPOCHS_FILE, PREDICTIONS_FILE = "rows.csv", "epochs.csv", "predictions.csv"
RESULT_COLUMNS = (
    *("run", "config_hash", "seed", "attention", "data"),
    *("test_accuracy", "val_accuracy", "test_top5", "test_loss", "calibration_error"),
    *("parameters", "flops_per_image", "images_per_second", "train_seconds", "epochs"),
    *("data_seconds", "compile_seconds"),
    *("device", "precision", "hardware", "cores", "threads", "diffvit", "python", "torch", "commit"),
    *("fingerprint", "train_images", "validation_images", "test_images"),
)
# What only some runs have: figures of a CLIP, which kernels ran, what data with some foreign images asks for, and
# figures younger than committed rows. (A new figure of result.json becomes a column here.)
OTHER_COLUMNS = (
    *("zero_shot_accuracy", "unseen_names_accuracy", "kernels", "test_accuracy_exact", "data_note"),
    *("test_balanced_accuracy", "test_macro_f1"),
)
CONDITIONS = ("data", "fingerprint", "precision", "device", "hardware")
_TOP = 5  # best classes that top-5 counts; it says nothing of so few classes
_YOUNGER_COLUMNS = {"data_seconds", "compile_seconds"}  # which rows of diffvit 0.1.0 lack
SCORE = "score."  # before the names of a study's score's numbers
_KEY_COLUMNS = ("run", "config_hash", "seed", "attention", "data")
# Settings that the result columns already hold (as resolved), or that do not change what is computed.
_NOT_AN_ARM = {"seed", "epochs", "precision", "device", "threads", "data_dir", "checkpoint_every", "model.preset"}


@dataclass(frozen=True)
class Correct:
    """Which of ``count`` test images a run classified correctly; ``fingerprint`` is theirs, in the order of loading.

    ``packed`` has a bit for each, the first one the most significant of the first byte.
    """

    fingerprint: str
    count: int
    packed: bytes

    @property
    def images(self) -> NDArray[np.bool_]:
        """A bool for each test image."""
        return np.unpackbits(np.frombuffer(self.packed, np.uint8), count=self.count).astype(bool)

    def fits(self, row: Row) -> bool:
        """Whether there is a bit for each of the row's test images, and as many are set as its accuracy says."""
        whole = self.count == row["test_images"] and len(self.packed) == -(-self.count // 8)
        return whole and abs(self.images.sum() - (row["test_accuracy"] or 0) * self.count) < 0.5


@dataclass(frozen=True)
class RunRecord:
    """One run as the reports see it."""

    row: Row  # the columns of RESULT_COLUMNS, then the arm's settings with dotted names
    epochs: list[Row]  # one dict per epoch, as in metrics.jsonl
    evaluation: Row | None = None  # figures per class and per image (evaluation.json), where the run has any
    classes: list[str] = field(default_factory=list)  # names in the order of the labels; empty where unknown
    folder: Path | None = None  # of the run; None for a committed row
    correct: Correct | None = None  # the test images that it got right, where that is known

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a run unique: what was asked (config hash and seed), and on what it was computed."""
        asked = (str(self.row["config_hash"]), int(self.row["seed"]))
        return (*asked, *(self.row.get(name) for name in ("fingerprint", "precision", "device", "kernels")))

    @property
    def conditions(self) -> tuple[Any, ...]:
        """The values of :data:`CONDITIONS`: runs that differ in one are shown apart, never ranked or paired."""
        return tuple(self.row.get(name) for name in CONDITIONS)

    @property
    def settings(self) -> Row:
        """The arm's settings, dotted names to values."""
        known = {*RESULT_COLUMNS, *OTHER_COLUMNS}
        return {name: value for name, value in self.row.items() if name not in known and not name.startswith(SCORE)}


def read_run(run: RunDir | Path | str) -> RunRecord:
    """One finished run folder as a record.

    Raises:
        InputError: not a run folder, damaged, or not finished.
    """
    run = run if isinstance(run, RunDir) else RunDir.open(Path(run))
    result, environment, config = run.result, run.environment, run.config
    evaluation = _read_evaluation(run.path)
    data = environment.get("data", {})
    row: Row = {**dict.fromkeys(RESULT_COLUMNS), "run": run.path.resolve().name}
    columns = (*RESULT_COLUMNS, *OTHER_COLUMNS)
    row |= {name: environment[name] for name in columns if name in environment and name != "data"}
    row |= {name: result[name] for name in columns if name in result}
    row |= {"fingerprint": data.get("fingerprint"), "commit": environment.get("commit")}
    row |= {f"{split}_images": data.get(split) for split in ("train", "validation", "test")}
    if evaluation and row["calibration_error"] is None:
        row["calibration_error"] = evaluation.get("calibration_error")
    classes = list(environment.get("classes", []))
    if 0 < len(classes) <= _TOP:
        row["test_top5"] = None  # runs of diffvit 0.1.0 have 100%
    correct = _correct(evaluation or {}, row)
    return RunRecord(row | arm_settings(config), run.metrics, evaluation, classes, run.path, correct)


def _correct(evaluation: Row, row: Row) -> Correct | None:
    """From a run's evaluation.json; None where that was written again and is not what result.json was written from."""
    predictions, labels = evaluation.get("predictions") or [], evaluation.get("labels") or []
    if "fingerprint" not in evaluation or len(predictions) != len(labels):
        return None
    packed = np.packbits(np.array(predictions) == np.array(labels)).tobytes()
    correct = Correct(str(evaluation["fingerprint"]), len(labels), packed)
    return correct if correct.fits(row) else None


def arm_settings(config: Config) -> Row:
    """Every setting that makes an arm what it is; ``data`` becomes ``source``, for ``data`` is the data's name."""
    settings = {name: value for name, value in flat_without_younger(config).items() if name not in _NOT_AN_ARM}
    return {"source" if name == "data" else name: value for name, value in settings.items()}


def _read_evaluation(folder: Path) -> Row | None:
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict) or not {"confusion", "per_class_accuracy", "calibration_error"} <= values.keys():
        hint = f"Write it again with: diffvit evaluate {folder}"
        raise InputError(str(path), "is not what evaluate writes", hint)
    return values


def epoch_rows(record: RunRecord) -> list[Row]:
    """The epochs with the run's key columns in front and one column per layer's lambda (``lambda_0``, ...)."""
    rows = []
    for epoch in record.epochs:
        lambdas = {f"lambda_{layer}": value for layer, value in enumerate(epoch.get("lambda") or [])}
        rows.append(_key_columns(record) | {name: epoch[name] for name in epoch if name != "lambda"} | lambdas)
    return rows


def _key_columns(record: RunRecord) -> Row:
    return {name: record.row[name] for name in _KEY_COLUMNS}


def write(folder: Path, records: Sequence[RunRecord]) -> str:
    """Write rows.csv, epochs.csv and, where any are known, predictions.csv; returns their :func:`content_hash`.

    Of runs that are called and configured alike, as on two machines, the second is called ``NAME (2)``.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    records, met = list(records), Counter[tuple[Any, ...]]()
    for place, record in enumerate(records):
        met[key := _key_of(record.row)] += 1
        if met[key] > 1:
            records[place] = replace(record, row=record.row | {"run": f"{record.row['run']} ({met[key]})"})
    write_csv(folder / ROWS_FILE, [record.row for record in records])
    write_csv(folder / EPOCHS_FILE, [row for record in records for row in epoch_rows(record)])
    predictions = [
        _key_columns(record) | {"test_fingerprint": each.fingerprint, "correct": base64.b64encode(each.packed).decode()}
        for record in records
        if (each := record.correct)
    ]
    if predictions:
        write_csv(folder / PREDICTIONS_FILE, predictions)
    else:
        (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
    return content_hash(folder)


def read(folder: Path) -> list[RunRecord]:
    """The records of a folder's rows.csv, epochs.csv and predictions.csv; an empty list where there is no rows.csv.

    Raises:
        InputError: the files are not what :func:`write` writes.
    """
    if not (folder / ROWS_FILE).is_file():
        return []
    rows, epochs, predictions = (
        read_csv(folder / name) if (folder / name).is_file() else []
        for name in (ROWS_FILE, EPOCHS_FILE, PREDICTIONS_FILE)
    )
    # Rows of diffvit 0.1.0 lack the younger columns.
    rows = [
        {name: row.get(name) for name in RESULT_COLUMNS if name in row or name in _YOUNGER_COLUMNS} | row
        for row in rows
    ]
    missing = [name for name in RESULT_COLUMNS if rows and name not in rows[0]]
    if missing:
        raise InputError(str(folder / ROWS_FILE), f"lacks the column {missing[0]}", "Generate it again from its runs.")
    bits = {_key_of(each): each for each in predictions}
    own: dict[tuple[Any, ...], list[Row]] = {}
    for epoch in epochs:
        own.setdefault(_key_of(epoch), []).append(_unfold(epoch))
    records = []
    for row in rows:
        key = _key_of(row)
        correct = _decoded(bits[key], row, folder / PREDICTIONS_FILE) if key in bits else None
        records.append(RunRecord(row, own.get(key, []), correct=correct))
    return records


def _key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY_COLUMNS)


def _decoded(bits: Row, row: Row, path: Path) -> Correct:
    try:
        packed = base64.b64decode(bits["correct"], validate=True)
    except (KeyError, TypeError, ValueError):
        packed = b""
    correct = Correct(str(bits.get("test_fingerprint")), int(row["test_images"] or 0), packed)
    if not correct.fits(row):
        hint = "Generate it again from its runs, or remove the file: reports then go without."
        raise InputError(str(path), f"does not fit {ROWS_FILE} (run {row['run']})", hint)
    return correct


def _unfold(epoch: Row) -> Row:
    """An epoch as in metrics.jsonl: without the key columns, the lambdas as a list again."""
    layers = [name for name in epoch if name.startswith("lambda_") and epoch[name] is not None]
    own = {name: value for name, value in epoch.items() if name not in _KEY_COLUMNS and not name.startswith("lambda_")}
    return own | {"lambda": [epoch[f"lambda_{layer}"] for layer in range(len(layers))]}


def merge(committed: Iterable[RunRecord], new: Iterable[RunRecord]) -> list[RunRecord]:
    """Committed records, each replaced by a new one of the same :attr:`RunRecord.key`; further new ones follow."""
    merged, left = list(committed), dict[tuple[Any, ...], list[int]]()
    for place, record in enumerate(merged):
        left.setdefault(record.key, []).append(place)
    for record in new:
        if places := left.get(record.key):
            merged[places.pop(0)] = record
        else:
            merged.append(record)
    return merged


def content_hash(folder: Path) -> str:
    """SHA-256 over the files of :func:`write`: what a plot carries to say which rows it was made from."""
    digest = hashlib.sha256()
    for name in (ROWS_FILE, EPOCHS_FILE, PREDICTIONS_FILE):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
