"""Made rows of a study, for tests of what is said of them; and a search's storage closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffvit.experiments.study import Cell, flops_per_image
from diffvit.reporting.rows import OTHER_COLUMNS, RESULT_COLUMNS, RunRecord, arm_settings


def made_record(cell: Cell, accuracy: float, **row: object) -> RunRecord:
    """The row of a cell with this test accuracy, and a validation accuracy two points above where it has one."""
    config = cell.config
    made = dict.fromkeys((*RESULT_COLUMNS, *OTHER_COLUMNS)) | {
        **{"run": cell.name, "config_hash": cell.key[0], "seed": config.seed, "attention": config.model.attention},
        **{"data": "CIFAR-10 (JPEG)", "test_accuracy": accuracy, "parameters": 1000, "epochs": config.epochs},
        **{"flops_per_image": flops_per_image(config), "images_per_second": 1e3, "train_seconds": 60.0},
        **{"device": "cpu", "precision": "bf16", "hardware": "a machine", "threads": 1, "torch": "2.13.0"},
        **{"diffvit": "0.1.0", "python": "3.11", "test_images": 10_000, "fingerprint": "f"},
        **{"train_images": 50_000 - config.validation_size, "validation_images": config.validation_size},
        "val_accuracy": accuracy + 0.02 if config.validation_size else None,
    }
    epochs = [
        {"epoch": epoch + 1, "train_loss": 2 - accuracy * epoch / config.epochs, "train_accuracy": accuracy - 0.05}
        for epoch in range(config.epochs)
    ]
    return RunRecord(made | arm_settings(config) | row, epochs)


def made_records(
    cells: list[Cell] | tuple[Cell, ...], accuracy: Callable[[Cell], float], **row: object
) -> dict[str, list[RunRecord]]:
    """A row for each."""
    return {cell.name: [made_record(cell, accuracy(cell), **row)] for cell in cells}


def rows_of(records: dict[str, list[RunRecord]]) -> list[RunRecord]:
    """All of them."""
    return [record for each in records.values() for record in each]


def close(optuna_study: Any) -> None:
    """Close the connections of an Optuna study's storage."""
    storage = getattr(optuna_study._storage, "_backend", optuna_study._storage)
    storage.remove_session()
    storage.engine.dispose()
