"""The file of WordNet 3.0's nouns, read without believing it.

Each noun's line begins with its own place in the file, in bytes, so that a line that is lost, added or changed in
length shows. The layout is that of WordNet's manual page wndb(5WN).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from diffvit.errors import InputError

MAX_BYTES = 64 * 2**20  # the published file has 15 MB
MAX_DEPTH = 100  # the published file has 19 steps at most
_VERSION = re.compile(rb"^ +\d+ WordNet (\S+) Copyright", re.MULTILINE)
_HINT = "Take data.noun of WordNet 3.0, for which ImageNet's ids are made: the package wordnet-base."


def read_nouns(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """The first word and the hypernyms of each noun by id, for a WordNet of the module beside this one.

    Raises:
        InputError: it cannot be read, is not WordNet's nouns, is another version, or is not whole.
    """
    data = _content(path)
    names: dict[str, str] = {}
    parents: dict[str, tuple[str, ...]] = {}
    needed: set[str] = set()
    start = 0
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        if not line.startswith(b"  "):
            try:
                own, name, above, below = _synset(line, start)
            except (ValueError, IndexError):
                raise InputError(str(path), f"is damaged: not a noun in its place (line {number})", _HINT) from None
            names[own], parents[own] = name, above
            needed.update(above, below)
        start += len(line) + 1
    if missing := needed - names.keys():
        raise InputError(
            str(path), f"is not whole: others name what is missing ({len(missing):,}, as {min(missing)})", _HINT
        )
    _check_tree(path, parents)
    return names, parents


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(str(path), f"cannot be read ({why})", _HINT) from None
    if len(data) > MAX_BYTES:
        raise InputError(str(path), f"is too large for WordNet's nouns (over {MAX_BYTES >> 20} MiB)", _HINT)
    version = _VERSION.search(data, 0, 4096)
    if version is None:
        raise InputError(str(path), "is not a file of WordNet: no licence at its top names a version", _HINT)
    if version[1] != b"3.0":
        found = version[1].decode(errors="replace")[:20]
        raise InputError(str(path), f"is of another version of WordNet ({found!r} vs '3.0')", _HINT)
    if not data.endswith(b"\n"):
        raise InputError(str(path), "is cut short: its last line has no end", _HINT)
    return data


def _synset(line: bytes, start: int) -> tuple[str, str, tuple[str, ...], list[str]]:
    """Id, name, hypernyms and hyponyms of a line that begins ``start`` bytes into the file.

    A line is: offset, lexicographer's file, ``n``, words (a hexadecimal count), each word with a number, pointers (a
    count), each pointer as symbol, offset, part of speech and source, and the gloss after a bar.

    Raises:
        ValueError, IndexError: it is not such a line.
    """
    head, bar, _ = line.partition(b" | ")
    fields = head.decode("ascii").split()
    words = int(fields[3], 16)
    first = 4 + 2 * words
    pointers = int(fields[first])
    rest = fields[first + 1 :]
    if not bar or fields[0] != f"{start:08}" or fields[2] != "n" or words < 1 or len(rest) != 4 * pointers:
        raise ValueError
    kinds: dict[str, list[str]] = {"@": [], "~": []}
    for symbol, offset in zip(rest[::4], rest[1::4], strict=True):
        if symbol in ("@", "@i", "~", "~i"):
            if len(offset) != 8 or not offset.isdecimal():
                raise ValueError
            kinds[symbol[0]].append(f"n{offset}")
    return f"n{fields[0]}", fields[4].replace("_", " "), tuple(dict.fromkeys(kinds["@"])), kinds["~"]


def _check_tree(path: Path, parents: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse what is no tree by the first hypernyms: no root or several, circles, endless chains."""
    roots = sum(not above for above in parents.values())
    if roots != 1:
        raise InputError(str(path), f"is damaged: {roots} nouns have no hypernym (vs one)", _HINT)
    depths: dict[str, int] = {}
    for id in parents:
        chain = [id]
        while chain[-1] not in depths and parents[chain[-1]] and len(chain) <= MAX_DEPTH:
            chain.append(parents[chain[-1]][0])
        depth = depths.get(chain[-1], 0)
        for steps, each in enumerate(reversed(chain)):
            depths[each] = depth + steps
        if depths[id] >= MAX_DEPTH:
            raise InputError(str(path), f"is damaged: the hypernyms of {id} do not end", _HINT)
