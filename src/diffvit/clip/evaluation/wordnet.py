"""WordNet 3.0's nouns: what ImageNet's ids mean, what lies above them, and readable groups of classes.

The file is ``data.noun`` of WordNet 3.0 (Fellbaum, "WordNet: An Electronic Lexical Database", 1998). ImageNet's id
of a class is ``n`` and the place of its line in that file, so that ids of another version mean something else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffvit.clip.evaluation.wordnet_file import read_nouns

FILE = "data.noun"
INSTALLED = Path("/usr/share/wordnet")  # Debian's package wordnet-base
UNKNOWN = "not in WordNet"


@dataclass(frozen=True)
class WordNet:
    """Names and hypernyms of nouns by id, such as ``n02084071`` for the dog.

    Args:
        names: the first word of each id, with spaces.
        parents: the hypernyms of each id, those of instances too, in the file's order. Every parent is a key itself,
            and only the root has none.
    """

    names: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]

    def ancestors(self, id: str) -> list[str]:
        """All hypernyms of hypernyms, nearest first, each once; the id itself is not among them.

        Raises:
            KeyError: there is no such id.
        """
        queue = [id]
        for each in queue:  # grows while it is walked: breadth first
            queue += [parent for parent in self.parents[each] if parent not in queue]
        return queue[1:]

    def path(self, id: str) -> list[str]:
        """From the root to the id itself by each one's first hypernym: the tree that the network is read as.

        Raises:
            KeyError: there is no such id.
        """
        steps = [id]
        while above := self.parents[steps[-1]]:
            steps.append(above[0])
        return steps[::-1]


@dataclass(frozen=True)
class Superclass:
    """Some of the classes, under one name.

    Args:
        id: the noun that holds them; empty for those that WordNet does not know.
        name: its name, no other group's; ``other NAME`` where larger parts of it stand apart, or :data:`UNKNOWN`.
        members: places in the ids that were given, ascending.
    """

    id: str
    name: str
    members: tuple[int, ...]


def find_wordnet() -> Path | None:
    """The installed nouns: in the folder WNSEARCHDIR, in WNHOME/dict, or Debian's; None where there are none."""
    home, given = os.environ.get("WNHOME"), os.environ.get("WNSEARCHDIR")
    folders = [Path(given)] if given else []
    folders += [Path(home) / "dict"] if home else []
    return next((folder / FILE for folder in [*folders, INSTALLED] if (folder / FILE).is_file()), None)


def read_wordnet(path: Path) -> WordNet:
    """The nouns of WordNet 3.0 from its file ``data.noun``.

    Raises:
        InputError: it cannot be read, is not WordNet's nouns, is another version, or is not whole.
    """
    return WordNet(*read_nouns(path))


def superclasses(wordnet: WordNet, ids: Sequence[str], *, largest: int | None = None) -> tuple[Superclass, ...]:
    """A partition of classes that reads well in a table: every class in exactly one group.

    All classes start as one group at the root. A group that is too large is replaced by its parts, one for each child
    in the tree of first hypernyms, and a group is named after the deepest noun that holds all of its classes. Parts
    too small to stand alone (of one class; of fewer than a 125th of the classes where there are many) are gathered at
    the nearest noun above where enough of them meet, as ``other NAME``, if none of their further hypernyms leads to a
    group that has a name: then they are counted there.

    Args:
        wordnet: the nouns.
        ids: the classes; those that WordNet does not know come together as :data:`UNKNOWN`.
        largest: more classes are too large a group, if the tree can divide it. By default that is d percent of all
            classes (and at least 10) for a noun d steps below the root: a low noun, such as dog, says more about its
            classes than a high one, such as device.

    Returns:
        The groups in the order of their first classes.
    """
    paths = {place: wordnet.path(id) for place, id in enumerate(ids) if id in wordnet.parents}
    parts: list[_Part] = []
    if paths:
        division = _Division(len(ids), largest)
        parts = division.parts(paths)
        named = {part.noun for part in parts if not part.rest}
        for place in (place for part in parts if part.rest for place in part.members):
            home = next((above for above in wordnet.ancestors(ids[place]) if above in named), None)
            paths[place] = [*wordnet.path(home), ids[place]] if home else paths[place]
        parts = division.parts(paths)
    groups = [Superclass(part.noun, name, tuple(sorted(part.members))) for name, part in _named(wordnet, parts)]
    if unknown := tuple(place for place in range(len(ids)) if place not in paths):
        groups.append(Superclass("", UNKNOWN, unknown))
    return tuple(sorted(groups, key=lambda group: group.members[0]))


_Paths = Mapping[int, list[str]]  # a class's place -> the nouns from the root to it


@dataclass(frozen=True)
class _Part:
    noun: str
    rest: bool  # what is left over where larger parts of the noun stand apart
    members: list[int]


@dataclass(frozen=True)
class _Division:
    """How so many classes are divided; see :func:`superclasses`."""

    count: int
    largest: int | None

    def limit(self, depth: int) -> int:
        """More classes than these are divided further at a noun of this depth."""
        return max(10, self.count * depth // 100) if self.largest is None else self.largest

    @property
    def fewest(self) -> int:
        """Classes that can stand alone."""
        many = self.count // 125
        return max(2, many if self.largest is None else min(many, self.largest // 2))

    def parts(self, paths: _Paths) -> list[_Part]:
        """The parts of these classes, in no order; what is left over at the top is a part of any size."""
        found, alone = self._divided(paths, 0)
        top = next(iter(paths.values()))[_meeting(paths, 0)]
        return [*found, _Part(top, bool(found), alone)] if alone else found

    def _divided(self, paths: _Paths, depth: int) -> tuple[list[_Part], list[int]]:
        """Parts of classes that share a noun at this depth, and the places that are too few to be one there."""
        if len(paths) < self.fewest:
            return [], list(paths)
        depth = _meeting(paths, depth)
        whole = len(paths) <= self.limit(depth)
        found: list[_Part] = []
        alone: list[int] = []
        children: dict[str, dict[int, list[str]]] = {}
        for place, path in paths.items():
            if whole or len(path) == depth + 1:
                alone.append(place)
            else:
                children.setdefault(path[depth + 1], {})[place] = path
        for child in children.values():
            parts, left = self._divided(child, depth + 1)
            found += parts
            alone += left
        if len(alone) < self.fewest:
            return found, alone
        return [*found, _Part(next(iter(paths.values()))[depth], bool(found), alone)], []


def _meeting(paths: _Paths, depth: int) -> int:
    """The depth of the deepest noun that all of these paths go through; they share the one at ``depth``."""
    first, shortest = next(iter(paths.values())), min(map(len, paths.values()))
    while depth + 1 < shortest and all(path[depth + 1] == first[depth + 1] for path in paths.values()):
        depth += 1
    return depth


def _named(wordnet: WordNet, parts: Sequence[_Part]) -> list[tuple[str, _Part]]:
    """The parts with names of their own: where that is not enough with the noun above, and then the id, behind it."""
    names = [f"other {wordnet.names[part.noun]}" if part.rest else wordnet.names[part.noun] for part in parts]
    for more in (lambda noun: wordnet.names[wordnet.path(noun)[-2:][0]], str):
        count = Counter(names)
        names = [
            f"{name} ({more(part.noun)})" if count[name] > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return list(zip(names, parts, strict=True))
