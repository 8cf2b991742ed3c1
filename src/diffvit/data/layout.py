"""Which files of a data folder are images of which class and split: the layouts in which people keep them.

Read in this order, the first that fits: split folders (``train/CLASS/...``, ``test/CLASS/...``, ``val/CLASS/...``); a
table of paths and labels (CSV or JSON Lines); class folders alone; a single folder with one of these inside, as an
unpacked archive has it. Images may lie at any depth below their class.
"""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffvit.errors import InputError, suggestion

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLITS = {"training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "dev": VALIDATION, "testing": TEST}
_SPLITS |= {name: name for name in (TRAIN, VALIDATION, TEST)}
_NO_IMAGES = {".txt", ".md", ".csv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".ini", ".db", ".html"}
_NO_FOLDERS = {"__macosx"}
_TABLES = {".csv", ".jsonl"}
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img")
_CAPTIONS = ("caption", "text", "sentence", "title", "description")
_LABELS = ("label", "class", "class_name", "category", "target")
_HINT = "Allowed: train/CLASS/ and test/CLASS/ (or val/); CLASS/ alone; a CSV or JSON Lines file of path and label."


@dataclass(frozen=True)
class Layout:
    """The files of a data folder, in the order of split, class and path.

    ``files`` are relative to ``root``; ``labels`` are places in ``classes``; ``splits`` has train, validation or test
    for each file, all train where the folder makes no difference. ``words`` says what was found.
    """

    root: Path
    words: str
    classes: list[str]
    files: list[str]
    labels: list[int]
    splits: list[str]


def find_layout(place: Path) -> Layout:
    """The layout of a folder, or of a CSV or JSON Lines file.

    Without ``test`` images, those of ``val`` are the test images. InputError where no layout fits, a class or a split
    is empty, only one class is there, a class of another split has no training images, or a table is damaged.
    """
    table = place.is_file() and place.suffix.lower() in _TABLES
    if not (table or place.is_dir()):
        raise InputError(str(place), "is not a folder" if place.exists() else "no such folder", _HINT)
    root, words, rows = _table(place.parent, [place]) if table else _folder(place)
    if not any(split == TEST for split, _, _ in rows):
        rows = [(TEST if split == VALIDATION else split, label, file) for split, label, file in rows]
    trained = {label for split, label, _ in rows if split == TRAIN}
    if unknown := sorted({label for _, label, _ in rows} - trained):
        where = sorted({split for split, label, _ in rows if label == unknown[0]})
        why = f"class {unknown[0]!r} is in {where[0]} and not in train"
        close = suggestion(unknown[0], trained)
        raise InputError(str(place), why, f"{close} Add training images of it, or take it away.")
    if len(trained) < 2:
        why = f"holds one class alone ({', '.join(trained)})" if trained else "holds no images"
        raise InputError(str(place), why, f"A classifier needs two or more. {_HINT}")
    classes = sorted(trained)
    order = {name: number for number, name in enumerate(classes)}
    rank = {TRAIN: 0, VALIDATION: 1, TEST: 2}
    rows.sort(key=lambda row: (rank[row[0]], order[row[1]], row[2].split("/")))
    splits, labels, files = ([row[at] for row in rows] for at in range(3))
    return Layout(root, words, classes, files, [order[label] for label in labels], splits)


_Found = tuple[Path, str, list[tuple[str, str, str]]]  # root, words, and (split, class, file) rows


def _folder(place: Path) -> _Found:
    names = class_folders(place)
    named = {name: _SPLITS[name.lower()] for name in names if name.lower() in _SPLITS}
    named = {name: split for name, split in named.items() if class_folders(place / name)}
    if TRAIN in named.values() and (len(named) > 1 or all(name.lower() in _SPLITS for name in names)):
        rows = [row for name, split in named.items() for row in _class_rows(place, name, split)]
        return place, " and ".join(f"{name}/" for name in named), rows
    tables = sorted(file for file in place.iterdir() if file.suffix.lower() in _TABLES)
    if known := [file for file in tables if _columns(file)]:
        return _table(place, [file for file in known if file.stem.lower() in _SPLITS] or known[:1])
    if len(names) == 1 and not any(_maybe_image(file.name) and file.is_file() for file in (place / names[0]).glob("*")):
        return _folder(place / names[0])
    if tables and len(names) < 2:
        return _table(place, tables[:1])  # which says what it lacks
    if not names:
        raise InputError(str(place), "has no folders of classes", _HINT)
    return place, "class folders", _class_rows(place, "", TRAIN)


def _class_rows(root: Path, folder: str, split: str) -> list[tuple[str, str, str]]:
    rows = []
    for name in class_folders(root / folder):
        files = list(_names(root, f"{folder}/{name}" if folder else name))
        if not files:
            raise InputError(str(root / folder / name), "holds no images", "Put some there, or take the folder away.")
        rows += [(split, name, file) for file in files]
    return rows


def class_folders(root: Path) -> list[str]:
    """The folders in a folder, sorted, also where a link leads nowhere; not hidden ones and what macOS adds."""
    try:
        paths = [path for path in root.iterdir() if path.is_dir() or not (path.exists() or path.suffix)]
    except OSError as error:
        raise InputError(str(root), f"cannot be listed ({error.strerror})") from None
    return sorted(path.name for path in paths if not path.name.startswith(".") and path.name.lower() not in _NO_FOLDERS)


def image_files(root: Path) -> Iterator[Path]:
    """Files at any depth that may be images, in no order: not hidden, and without a suffix that says otherwise.

    Links to folders are followed, but for those that lead to a folder around them.
    """
    return (root / name for name in _names(root, ""))


def named_files(given: Iterable[Path | str]) -> Iterator[tuple[str, Path | InputError]]:
    """Every file meant, with its path in words; folders give theirs at any depth, patterns what they match.

    What is not there gives an InputError in the place of a path.
    """
    for each in given:
        path = Path(each)
        if path.is_dir():
            found = sorted(image_files(path))
        elif not path.exists() and glob.has_magic(str(each)):
            matches = glob.iglob(str(each), recursive=True)  # noqa: PTH207  (absolute patterns too)
            found = sorted(file for file in map(Path, matches) if file.is_file())
        else:
            found = [path]
        if not found:
            yield str(each), InputError(str(each), "holds no images" if path.is_dir() else "matches no file")
        yield from ((str(file), file) for file in found)


def _names(root: Path, folder: str) -> Iterator[str]:
    """The paths of :func:`image_files` in a folder of ``root``, relative to it, as text: a Path each takes seconds."""
    base = str(root / folder)

    def refuse(error: OSError) -> None:
        raise InputError(str(error.filename), f"cannot be listed ({error.strerror})") from None

    for place, folders, names in os.walk(base, followlinks=True, onerror=refuse):
        here = Path(place)
        around = {here.resolve(), *here.resolve().parents}
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or name.lower() in _NO_FOLDERS)
            and not ((here / name).is_symlink() and (here / name).resolve() in around)
        ]
        inner = f"{folder}{place.removeprefix(base)}/".lstrip("/")
        yield from (inner + name for name in names if _maybe_image(name))


def _maybe_image(name: str) -> bool:
    return not name.startswith(".") and f".{name.rpartition('.')[2]}".lower() not in _NO_IMAGES


def _columns(file: Path, second: Sequence[str] = _LABELS) -> tuple[str, str, str] | None:
    """The columns of path, label (or another ``second``) and split in a table; None without one of the first two."""
    known = {str(name).strip().lower(): name for name in next(_records(file), {})}
    path, text = (next((known[name] for name in names if name in known), None) for names in (_PATHS, second))
    return None if path is None or text is None else (path, text, known.get("split", "split"))


def _cells(root: Path, file: Path, second: Sequence[str], word: str) -> Iterator[tuple[str, list[str]]]:
    """For each row of a table its file and number in words, and its path, its ``second`` and its split, if it has one.

    InputError, with the ``word`` for the second column, where the table lacks one of the two or a cell of the second,
    or a path is not that of a file under ``root``.
    """
    if (columns := _columns(file, second)) is None:
        found = ", ".join(map(str, next(_records(file), {}))) or "no rows"
        why = f"has no columns of path and {word} (found {found}; allowed {', '.join(_PATHS)} and {', '.join(second)})"
        raise InputError(str(file), why, "The first line of a CSV file names its columns.")
    for number, record in enumerate(_records(file), 1):
        cells = ["" if (cell := record.get(key)) is None else str(cell).strip() for key in columns]
        where = f"{file}, row {number}"
        if not cells[1]:
            raise InputError(where, f"has no {word} (of {cells[0] or 'no path'})")
        there = False
        with suppress(OSError):  # of a name that is too long
            there = (root / cells[0]).is_file()
        if not there:
            raise InputError(where, f"names a missing file ({cells[0] or 'no path'})", f"It is looked for in {root}.")
        yield where, cells


def captioned(root: Path, table: Path) -> list[tuple[str, str]]:
    """Paths under ``root`` and captions, from a CSV or JSON Lines file; a path may have several, in a row each.

    InputError where the table is damaged, or names a missing file or no caption.
    """
    if not root.is_dir():
        raise InputError(str(root), "is not a folder" if root.exists() else "no such folder", "It holds the images.")
    return [(image, text) for _, (image, text, _) in _cells(root, table, _CAPTIONS, "caption")]


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a header, or of a JSON Lines file."""
    number = 0
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            if file.suffix.lower() == ".csv":
                header = lines.readline()
                lines.seek(0)
                yield from csv.DictReader(lines, delimiter=max(",;\t", key=header.count))
                return
            for number, line in enumerate(lines, 1):  # noqa: B007  (the error names it)
                if line.strip():
                    yield dict(json.loads(line))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        where = f"line {number}: " if number else ""
        raise InputError(str(file), f"cannot be read as a table ({where}{' '.join(str(error).split())})") from None


def _table(root: Path, files: Sequence[Path]) -> _Found:
    rows: list[tuple[str, str, str]] = []
    for file in files:
        usual = _SPLITS.get(file.stem.lower(), TRAIN)
        for where, (path, name, split) in _cells(root, file, _LABELS, "label"):
            split = split.lower() or usual
            if split not in _SPLITS:
                raise InputError(where, f"is not a path and a label (found split {split!r})")
            rows.append((_SPLITS[split], name, os.path.relpath(root / path, root)))
    return root, " and ".join(file.name for file in files), rows
