"""Writes Parquet files of labelled images as class folders, which ``--data folder`` reads.

``python -m tools.class_folders TRAIN.parquet TEST.parquet OUT [--label fine_label] [--per-class 20]``: a file of the
schema ``img: {bytes, path}, LABEL: int64``, as of the public CIFAR Parquet files, becomes ``OUT/train/CLASS/HASH.png``
and ``OUT/test/CLASS/HASH.png``. Of the training images ``--per-class`` keeps those whose SHA-256 comes first.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from diffvit.data.cifar10 import CLASSES


def export(file: Path, label: str, out: Path, per_class: int | None = None) -> int:
    """Write the images of one file as ``out/CLASS/HASH.png``; returns their number.

    The classes are CIFAR-10's names where the column is ``label`` and has ten, else numbers.
    """
    table = pq.read_table(file, columns=["img", label])
    found: dict[int, dict[str, bytes]] = defaultdict(dict)
    for image, number in zip(table["img"].to_pylist(), table[label].to_pylist(), strict=True):
        found[number][hashlib.sha256(image["bytes"]).hexdigest()] = image["bytes"]
    for number, images in found.items():
        name = CLASSES[number] if label == "label" and len(found) == len(CLASSES) else f"{number:03d}"
        (out / name).mkdir(parents=True, exist_ok=True)
        for digest in sorted(images)[:per_class]:
            (out / name / f"{digest[:16]}.png").write_bytes(images[digest])
    return sum(len(images) if per_class is None else min(per_class, len(images)) for images in found.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.class_folders", description=__doc__)
    for name in ("train", "test", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--label", default="label", help="column of the classes' numbers")
    parser.add_argument("--per-class", type=int, help="training images of each class; by default all")
    given = parser.parse_args(arguments)
    trained = export(given.train, given.label, given.out / "train", given.per_class)
    print(f"{given.out}: {trained} images to train, {export(given.test, given.label, given.out / 'test')} to test")


if __name__ == "__main__":
    main()
