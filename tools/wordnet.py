"""Make the committed lists of classes from WordNet 3.0: ``python -m tools.wordnet [--check]``.

``cifar10_imagenet.json`` says which of ImageNet's 1000 classes are kinds of CIFAR-10's ten, ``superclasses.json`` which
groups ImageNet's and CIFAR-10's classes fall into, ``wordnet_names.json`` all names that WordNet has for each of them.
They lie in src/diffvit/clip; WordNet is needed here alone (Debian's package wordnet-base). A class of CIFAR-10 is a
noun, and its members are ImageNet's classes below it by any chain of hypernyms. What was chosen, and why:

- Ship is the vessel (n04530566), not the ship (n04194289): CIFAR-10's pictures under that name show sailing boats and
  motor boats too, and WordNet keeps the schooner, the yawl, the catamaran, the trimaran, the speedboat and the lifeboat
  beside its ship, not under it.
- Cat is the domestic cat: the cougar and the lynx, which are under the cat, are no pictures of CIFAR-10's.
- Airplane is the airplane, and has the airliner alone: WordNet puts the warplane beside it.
- Truck has the pickup, though CIFAR-10 left pickups out of both the truck and the automobile.
- A class under two nouns goes to the one that is fewer steps above it: the minivan is a car, and only then a van and so
  a truck. A class as near to both is refused.
- No deer is among ImageNet's 1000 classes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffvit.clip.hub import imagenet_wordnet_ids

NOUNS = Path("/usr/share/wordnet/data.noun")
SOURCE = "WordNet 3.0, https://wordnet.princeton.edu"
SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"  # ImageNet's ids are places in this file
FOLDER = Path(__file__).parents[1] / "src" / "diffvit" / "clip"
SYNSETS = {  # in CIFAR-10's order; the second is the name that WordNet must have there
    "airplane": ("n02691156", "airplane"),
    "automobile": ("n02958343", "car"),
    "bird": ("n01503061", "bird"),
    "cat": ("n02121808", "domestic cat"),
    "deer": ("n02430045", "deer"),
    "dog": ("n02084071", "dog"),
    "frog": ("n01639765", "frog"),
    "horse": ("n02374451", "horse"),
    "ship": ("n04530566", "vessel"),
    "truck": ("n04490091", "truck"),
}


@dataclass(frozen=True)
class WordNet:
    """Names and hypernyms of nouns by id, such as ``n02084071`` for the dog; the root alone has no hypernym.

    ``names`` are the first of all ``synonyms``; ``licence`` is WordNet's own.
    """

    names: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    licence: str = ""

    def path(self, id: str) -> list[str]:
        """From the root to the id itself by each one's first hypernym: the tree that the network is read as."""
        steps = [id]
        while above := self.parents[steps[-1]]:
            steps.append(above[0])
        return steps[::-1]

    def ancestors(self, id: str) -> list[str]:
        """All hypernyms of hypernyms, nearest first, each once."""
        queue = [id]
        for each in queue:  # grows while it is walked: breadth first
            queue += [parent for parent in self.parents[each] if parent not in queue]
        return queue[1:]


def read_nouns(path: Path = NOUNS) -> WordNet:
    """The nouns of WordNet 3.0's file ``data.noun``, whose layout is that of the manual page wndb(5WN)."""
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ValueError(f"{path} is not WordNet 3.0's data.noun (SHA-256 {found} vs {SHA256})")
    names, parents, synonyms = {}, {}, {}
    licence: list[str] = []
    for line in data.decode("ascii").splitlines():
        if line.startswith("  "):  # the licence, its lines numbered
            licence += line.split()[1:]
            continue
        fields = line.partition(" | ")[0].split()
        words = 4 + 2 * int(fields[3], 16)
        pointers = fields[words + 1 :]  # symbol, offset, part of speech and source of each
        synonyms[f"n{fields[0]}"] = tuple(word.replace("_", " ") for word in fields[4:words:2])
        names[f"n{fields[0]}"] = synonyms[f"n{fields[0]}"][0]
        above = [f"n{offset}" for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True) if symbol[0] == "@"]
        parents[f"n{fields[0]}"] = tuple(dict.fromkeys(above))
    return WordNet(names, parents, synonyms, " ".join(licence).replace("- ", "-"))


def cifar10_map(wordnet: WordNet, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each class of CIFAR-10 its ``synset`` and ``name``, and of these ids its ``members`` and ``member_names``."""
    for synset, name in SYNSETS.values():
        if wordnet.names.get(synset) != name:
            raise ValueError(f"another noun at {synset} ({wordnet.names.get(synset)!r} vs {name!r})")
    wanted = {synset: label for label, (synset, _) in SYNSETS.items()}
    homes = {id: _home(wordnet, id, wanted) for id in ids if id in wordnet.parents}
    found = {}
    for label, (synset, name) in SYNSETS.items():
        members = [id for id, home in homes.items() if home == label]
        found[label] = {"synset": synset, "name": name, "members": members}
        found[label]["member_names"] = [wordnet.names[id] for id in members]
    return found


def _home(wordnet: WordNet, id: str, wanted: Mapping[str, str]) -> str | None:
    """The class of CIFAR-10 that is fewest steps above this id; None where none is above it."""
    level, seen = {id}, {id}
    while level:
        if len(found := sorted(wanted[each] for each in level & wanted.keys())) > 1:
            raise ValueError(f"{id} ({wordnet.names[id]}) is as near to {found[0]} as to {found[1]}")
        if found:
            return found[0]
        level = {above for each in level for above in wordnet.parents[each]} - seen
        seen |= level
    return None


@dataclass(frozen=True)
class Superclass:
    """Some of the classes under one name.

    Args:
        id: the noun that holds them.
        name: its name, which no other group has; ``other NAME`` where larger parts of it are groups of their own.
        members: places among the ids that were given, ascending.
    """

    id: str
    name: str
    members: tuple[int, ...]


def superclasses(wordnet: WordNet, ids: Sequence[str], *, largest: int | None = None) -> tuple[Superclass, ...]:
    """A partition of classes that reads well in a table: every class in exactly one group.

    All classes start as one group at the root. A group that is too large is replaced by its parts, one for each child
    in the tree of first hypernyms, and a group is named after the deepest noun that holds all of its classes. Parts
    too small to stand alone (of one class; of fewer than a 125th of the classes where there are many) are gathered at
    the nearest noun above where enough of them meet, as ``other NAME``, if none of their further hypernyms leads to a
    group that has a name: then they are counted there.

    Args:
        wordnet: the nouns.
        ids: the classes.
        largest: more classes are too large a group, if the tree can divide it. By default that is d percent of all
            classes (and at least 10) for a noun d steps below the root: a low noun, such as dog, says more about its
            classes than a high one, such as device.

    Returns:
        The groups in the order of their first classes.
    """
    if not ids:
        return ()
    paths = {place: wordnet.path(id) for place, id in enumerate(ids)}
    division = _Division(len(ids), largest)
    parts = division.parts(paths)
    named = {part.noun for part in parts if not part.rest}
    for place in (place for part in parts if part.rest for place in part.members):
        home = next((above for above in wordnet.ancestors(ids[place]) if above in named), None)
        paths[place] = wordnet.path(home) if home else paths[place]
    parts = division.parts(paths)
    names = [f"other {wordnet.names[part.noun]}" if part.rest else wordnet.names[part.noun] for part in parts]
    for more in (lambda noun: wordnet.names[wordnet.path(noun)[-2:][0]], str):  # equal names get the noun above behind
        count = Counter(names)
        pairs = zip(names, parts, strict=True)
        names = [f"{name} ({more(part.noun)})" if count[name] > 1 else name for name, part in pairs]
    groups = [Superclass(part.noun, name, tuple(sorted(part.members))) for name, part in zip(names, parts, strict=True)]
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
        limit = max(10, self.count * depth // 100) if self.largest is None else self.largest
        found: list[_Part] = []
        alone: list[int] = []
        children: dict[str, dict[int, list[str]]] = {}
        for place, path in paths.items():
            if len(paths) <= limit or len(path) == depth + 1:
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


def lists(wordnet: WordNet, imagenet: Sequence[str]) -> dict[str, str]:
    """The files' contents by their names."""
    cifar10 = [synset for synset, _ in SYNSETS.values()]
    lines = []
    for name, ids, largest in (("imagenet", imagenet, None), ("cifar10", cifar10, 5)):
        groups = superclasses(wordnet, ids, largest=largest)
        rows = [{"id": each.id, "name": each.name, "members": [ids[n] for n in each.members]} for each in groups]
        lines.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
    mapped = json.dumps(cifar10_map(wordnet, imagenet), indent=2)
    about = json.dumps({"source": SOURCE, "licence": wordnet.licence}, indent=0)[:-2]
    rows = [f"{json.dumps(id)}: {json.dumps(wordnet.synonyms[id])}" for id in sorted({*imagenet, *cifar10})]
    return {
        "cifar10_imagenet.json": mapped + "\n",
        "superclasses.json": "{\n" + ",\n".join(lines) + "\n}\n",
        "wordnet_names.json": about + ',\n"names": {\n' + ",\n".join(rows) + "\n}\n}\n",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the lists, or with ``--check`` exit 1 where they are not what WordNet gives."""
    parser = argparse.ArgumentParser(prog="python -m tools.wordnet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--nouns", type=Path, default=NOUNS, help="WordNet 3.0's data.noun")
    given = parser.parse_args(arguments)
    stale = 0
    for name, content in lists(read_nouns(given.nouns), imagenet_wordnet_ids()).items():
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        stale += 1
        sys.stdout.write(f"{'out of date' if given.check else 'updated'}: {path}\n")
        if not given.check:
            path.write_text(content, encoding="utf-8")
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
