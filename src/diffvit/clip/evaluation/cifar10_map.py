"""CIFAR-10's classes in ImageNet's: ``python -m diffvit.clip.evaluation.cifar10_map [--check]``.

A class of CIFAR-10 is a noun of WordNet, and its members are those of ImageNet's 1000 classes that are such a thing by
any chain of hypernyms. What was chosen, and why:

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
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from diffvit.clip.evaluation.wordnet import WordNet, find_wordnet, read_wordnet
from diffvit.clip.hub import timm_library
from diffvit.errors import EnvironmentFault, InputError
from diffvit.reporting import markdown
from diffvit.reporting.generated import brought_up_to_date, finish, with_block
from diffvit.reporting.tables import Table
from diffvit.training.files import to_json

FILE = Path(__file__).with_name("cifar10_imagenet.json")
PAGE = Path("docs/clip.md")
BLOCK = "cifar10-map"
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
_SHOWN = 6  # names in a row of the table
ABSENT = "WordNet is not installed"
_INSTALL = "Install it with apt-get install wordnet-base, or set WNSEARCHDIR to the folder with data.noun."


class Entry(TypedDict):
    """One class of CIFAR-10: its noun, and the classes of ImageNet that are such a thing, in ImageNet's order."""

    synset: str
    name: str
    members: list[str]
    member_names: list[str]


def imagenet_ids() -> tuple[str, ...]:
    """The ids of ImageNet's 1000 classes, in their order.

    Raises:
        EnvironmentFault: timm is missing.
    """
    return tuple(timm_library().data.ImageNetInfo().label_names())


def cifar10_map(wordnet: WordNet, ids: Sequence[str]) -> dict[str, Entry]:
    """The map for these classes of ImageNet.

    Raises:
        InputError: WordNet's names are not those of :data:`SYNSETS`, or a class is as near to one as to another.
    """
    for synset, name in SYNSETS.values():
        if wordnet.names.get(synset) != name:
            raise InputError("WordNet", f"has another noun at {synset} ({wordnet.names.get(synset)!r} vs {name!r})")
    wanted = {synset: label for label, (synset, _) in SYNSETS.items()}
    homes = {id: _home(wordnet, id, wanted) for id in ids if id in wordnet.parents}
    found: dict[str, Entry] = {}
    for label, (synset, name) in SYNSETS.items():
        members = [id for id, home in homes.items() if home == label]
        names = [wordnet.names[id] for id in members]
        found[label] = Entry(synset=synset, name=name, members=members, member_names=names)
    return found


def _home(wordnet: WordNet, id: str, wanted: Mapping[str, str]) -> str | None:
    """The class of CIFAR-10 that is fewest steps above this id; None where none is above it."""
    level, seen = {id}, {id}
    while level:
        if len(found := sorted(wanted[each] for each in level & wanted.keys())) > 1:
            raise InputError("WordNet", f"{id} ({wordnet.names[id]}) is as near to {found[0]} as to {found[1]}")
        if found:
            return found[0]
        level = {above for each in level for above in wordnet.parents[each]} - seen
        seen |= level
    return None


def table(found: Mapping[str, Entry]) -> str:
    """The map as a Markdown table."""
    rows = []
    for label, entry in found.items():
        names = entry["member_names"]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        noun = f"{entry['name']} ({entry['synset']})"
        rows.append([label, noun, str(len(names)), ", ".join(names[:_SHOWN]) + more or "none"])
    text = markdown.table(Table(["CIFAR-10", "WordNet", "ImageNet classes", "They are"], rows))
    rule = "| --- | --- | ---: | --- |"  # words to the left, the number to the right
    heading, _, *body = text.splitlines()
    return "\n".join([heading, rule, *body])


def update(file: Path = FILE, page: Path = PAGE, *, check: bool = False) -> list[str]:
    """Bring the map and its table up to date with the installed WordNet, or only check them.

    Returns:
        What was out of date, one line each; empty when nothing was.

    Raises:
        EnvironmentFault: no WordNet or timm is installed, or a file cannot be written.
        InputError: WordNet is damaged, or the page cannot be read or lacks its two markers.
    """
    source = find_wordnet()
    if source is None:
        raise EnvironmentFault(file.name, f"is left as it is: {ABSENT}", _INSTALL)
    found = cifar10_map(read_wordnet(source), imagenet_ids())
    new = with_block(page, BLOCK, table(found)).encode()
    wanted = {file: (to_json(found), "is not made from WordNet"), page: (new, "its map of CIFAR-10 is another")}
    return brought_up_to_date(wanted, check=check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 where ``--check`` found something out of date, 3 for bad input, 4.

    Where WordNet is not installed a check says so and passes, and a rewrite fails with 4.
    """
    parser = argparse.ArgumentParser(prog="python -m diffvit.clip.evaluation.cifar10_map", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    parser.add_argument("--file", type=Path, default=FILE, help="the map")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with its table")
    given = parser.parse_args(arguments)
    if given.check and find_wordnet() is None:
        sys.stdout.write(f"not checked: {given.file.name}, because {ABSENT}. {_INSTALL}\n")
        return 0
    return finish(lambda: update(given.file, given.page, check=given.check), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
