"""Labelled images that are read one at a time: a folder per class, ImageNet's layout, CIFAR-10; and their classes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffvit.clip.hub import imagenet_wordnet_ids
from diffvit.clip.load import IMAGENET
from diffvit.clip.templates import check_text, imagenet_names, twins
from diffvit.data import sources
from diffvit.data.cifar10 import CLASSES, SIZE
from diffvit.data.images import decode
from diffvit.data.layout import class_folders, image_files
from diffvit.errors import ConfigError, InputError, few

CIFAR10 = "cifar10"
OBJECTNET = "objectnet"
_BORDER = 2  # pixels around every image that ObjectNet released, to be cut off
_WORDNET_ID = re.compile(r"n\d{8}")
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Labelled:
    """Images with classes.

    Args:
        name: for people: "folder val", "CIFAR-10 (JPEG) test".
        classes: for people and for prompts; see :func:`open_labelled`.
        wordnet_ids: of the classes, where every folder is named by a WordNet id of ImageNet-1k.
        labels: per image, its place in ``classes``.
        places: per image, its path in the folder, or as "test/00042".
        stamps: per image, changes when its content does.
        read: an image by its number; InputError for one that cannot be decoded.
    """

    name: str
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...] | None
    labels: tuple[int, ...]
    places: tuple[str, ...]
    stamps: tuple[str, ...]
    read: Callable[[int], UInt8[np.ndarray, "3 h w"]]

    def __len__(self) -> int:
        return len(self.labels)

    def named(self, names: Sequence[str] | None = None) -> Labelled:
        """The same with these names for the classes; None leaves their own, if they are names.

        Raises:
            ConfigError: another number of names than of classes.
            InputError: folders by WordNet ids that are not all ImageNet-1k's.
        """
        if names is None:
            if any(_WORDNET_ID.fullmatch(name) for name in self.classes):
                others = [name for name in self.classes if name not in imagenet_wordnet_ids()]
                why = f"has folders by WordNet ids, but also some that are none of ImageNet-1k's ({few(others)})"
                raise InputError(self.name, why, "Take these away, or name every class (--labels-file).")
            return self
        if len(names) != len(self.classes):
            found = f"{len(names):,} vs {len(self.classes):,}"
            why = f"must name every class of {self.name}, in the folders' order ({found})"
            raise ConfigError("--labels-file", why)
        return replace(self, classes=tuple(names))

    def only(self, keep: Sequence[int]) -> Labelled:
        """The images of these classes, which get the places that they have in ``keep``; images stay in order."""
        ids, now = self.wordnet_ids, {label: place for place, label in enumerate(keep)}
        few = self._picked([number for number, label in enumerate(self.labels) if label in now])
        return replace(
            few,
            classes=tuple(self.classes[label] for label in keep),
            wordnet_ids=None if ids is None else tuple(ids[label] for label in keep),
            labels=tuple(now[label] for label in few.labels),
        )

    def at_most(self, per_class: int) -> Labelled:
        """So many images of each class, spread evenly over it; all of a class that has fewer.

        Raises:
            ConfigError: fewer than one.
        """
        if per_class < 1:
            raise ConfigError("--limit", f"must be at least 1 (found {per_class})")
        members: list[list[int]] = [[] for _ in self.classes]
        for number, label in enumerate(self.labels):
            members[label].append(number)
        return self._picked(sorted(number for mine in members for number in _spread(mine, per_class)))

    def spread(self, count: int, among: Sequence[int]) -> Labelled:
        """So many of these images, spread evenly over the classes; all of them where there are no more."""
        return self._picked(sorted(_spread(sorted(among, key=lambda n: (self.labels[n], n)), count)))

    def _picked(self, numbers: Sequence[int]) -> Labelled:
        read = self.read
        picked = {name: tuple(vars(self)[name][n] for n in numbers) for name in ("labels", "places", "stamps")}
        return replace(self, **picked, read=lambda place: read(numbers[place]))


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """So many of these at even distances, the first among them; all where there are no more."""
    count = min(count, len(numbers))
    return [numbers[place * len(numbers) // count] for place in range(count)]


def open_labelled(where: str | Path, *, split: str = "test", data_dir: Path | None = None) -> Labelled:
    """Labelled images, none of them read yet (those of CIFAR-10 are small, and are).

    Args:
        where: ``cifar10``, or a folder with a folder per class, whose files may lie deeper; hidden ones and those whose
            suffix says that they are no images are left out. Folders named by WordNet ids of ImageNet-1k get OpenAI's
            names for them (two pairs are the same), and so do all of "0" to "999", as ImageNet-V2 has them. Where all
            of ObjectNet's objects that ImageNet has are there, these 113 are the classes, their images without the
            border. Others are called as they are, with spaces for "_".
        split: of CIFAR-10: test or train.
        data_dir: where CIFAR-10 lies; by default what DIFFVIT_DATA says.

    Raises:
        ConfigError: a split of what has none.
        InputError: not a folder of classes with images, or two classes of the same name.
        EnvironmentFault: CIFAR-10 cannot be fetched, or WordNet ids are met and timm or open_clip is missing.
    """
    if str(where) == CIFAR10:
        return _cifar10(split, data_dir)
    if split != "test":
        raise ConfigError("--split", f"is for {CIFAR10}; a folder is taken as it is", "Name the split's own folder.")
    root = Path(where)
    naming, folders = named_folders(_class_folders(root))
    classes, ids = _names(root, folders, naming)
    labels: list[int] = []
    files: list[Path] = []
    for label, folder in enumerate(folders):
        mine = sorted(image_files(root / folder))
        if not mine:
            raise InputError(str(root / folder), "holds no images", "Put some there, or take the folder away.")
        files.extend(mine)
        labels.extend([label] * len(mine))
    found = of_files(root, files, labels, classes, ids)
    if naming != OBJECTNET:
        return found
    read, stamps = found.read, tuple(f"{stamp} without border" for stamp in found.stamps)
    return replace(found, stamps=stamps, read=lambda number: _inside(read(number)))


def _inside(pixels: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 inner_h inner_w"]:
    return pixels[:, _BORDER:-_BORDER, _BORDER:-_BORDER] if min(pixels.shape[1:]) > 2 * _BORDER else pixels


def named_folders(folders: list[str]) -> tuple[str | None, list[str]]:
    """How folders of classes are named, and those that are classes, in order.

    As "wordnet" (ids, of ImageNet-1k or not), "places" among ImageNet's classes or "objectnet"; None for any other.
    """
    if folders and all(_WORDNET_ID.fullmatch(folder) for folder in folders):
        return "wordnet", folders
    if len(folders) == IMAGENET and set(folders) == set(map(str, range(IMAGENET))):
        return "places", sorted(folders, key=int)
    objects = {entry["folder"] for entry in objectnet().values()}
    return (OBJECTNET, sorted(objects)) if objects <= set(folders) else (None, folders)


def of_files(
    root: Path, files: Sequence[Path], labels: Sequence[int], classes: Sequence[str], ids: Sequence[str] | None = None
) -> Labelled:
    """Images of a folder, none of them read yet; the rest as in :class:`Labelled`."""
    # The folder itself is a part of each stamp: two folders may hold files of the same names, sizes and times.
    home = root.resolve()
    return Labelled(
        f"folder {home.name}",
        tuple(classes),
        None if ids is None else tuple(ids),
        tuple(labels),
        tuple(file.relative_to(root).as_posix() for file in files),
        tuple(f"{_state(file)} {home}" for file in files),
        lambda number: decode(files[number], name=str(files[number])),
    )


def _cifar10(split: str, data_dir: Path | None) -> Labelled:
    images = sources.load(CIFAR10, split, data_dir=data_dir, image_size=SIZE)
    pixels = images.pixels.numpy()
    return Labelled(
        f"{images.name} {split}",
        tuple(images.classes),
        None,
        tuple(images.labels.tolist()),
        tuple(f"{split}/{number:05}" for number in range(len(images))),
        tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels),
        lambda number: pixels[number],
    )


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "no such folder"
        raise InputError(str(root), found, f"Give {CIFAR10}, or a folder with a folder per class.")
    folders = class_folders(root)
    if not folders:
        raise InputError(str(root), "has no folders of classes", "It must have a folder per class, with images in it.")
    splits = [name for name in folders if name.lower() in _SPLITS and class_folders(root / name)]
    if splits and all(name.lower() in _SPLITS for name in folders):
        one = next((name for name in splits if not name.lower().startswith("train")), splits[0])
        raise InputError(str(root), f"holds splits, not classes ({', '.join(splits)})", f"Give {root / one}.")
    return folders


def _names(root: Path, folders: Sequence[str], naming: str | None) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """What the classes are called, and their WordNet ids where all are ImageNet's."""
    if naming == "places":
        return imagenet_names(), imagenet_wordnet_ids()
    if naming == OBJECTNET:
        called = {entry["folder"]: name for name, entry in objectnet().items()}
        return tuple(called[folder] for folder in folders), None
    if naming == "wordnet":
        named = dict(zip(imagenet_wordnet_ids(), imagenet_names(), strict=True))
        if named.keys() >= set(folders):
            return tuple(named[folder] for folder in folders), tuple(folders)
    classes = tuple(folder.replace("_", " ").strip() or folder for folder in folders)
    for folder, name in zip(folders, classes, strict=True):
        check_text(name, str(root / folder), "a folder's name")
    if same := twins(classes):
        first, second = (folders[place] for place in same[0][:2])
        why = f"is the same class name as {first} ({classes[same[0][0]]!r}, with spaces for _)"
        raise InputError(str(root / second), why, "Rename one of them.")
    return classes, None


def _state(file: Path) -> str:
    """Size and time of change; a file that cannot be looked at is unreadable later, which stops nothing."""
    try:
        state = file.stat()
    except OSError:
        return "none"
    return f"{state.st_size} {state.st_mtime_ns}"


# What ImageNet has of a data set's classes


def cifar10_members() -> dict[str, list[str]]:
    """For each class of CIFAR-10 the WordNet ids of ImageNet-1k that are kinds of it; deer has none."""
    return {name: list(entry["members"]) for name, entry in _committed("cifar10_imagenet.json").items()}


def objectnet() -> dict[str, dict[str, Any]]:
    """ObjectNet's 113 objects that ImageNet-1k has: for each name its ``folder`` and the WordNet ``ids``."""
    return _committed("robustness_sets.json")[OBJECTNET]["classes"]


def subsets() -> dict[str, set[str]]:
    """The WordNet ids of the sets that have some of ImageNet-1k's classes: ``imagenet-a`` and ``imagenet-r``."""
    return {name: set(each["ids"]) for name, each in _committed("robustness_sets.json").items() if "ids" in each}


@cache
def _committed(name: str) -> Any:
    """A committed list, which is not to be changed."""
    return json.loads(resources.files("diffvit.clip").joinpath(name).read_text(encoding="utf-8"))


def imagenet_groups(labelled: Labelled) -> tuple[list[int], list[list[int]]]:
    """The classes that a model of ImageNet's 1000 classes can answer, and for each its places among those.

    WordNet ids have one place each. Classes that are all CIFAR-10's have the places of :func:`cifar10_members`, those
    of ObjectNet the places of :func:`objectnet`. Any other class has the place of the one OpenAI name that is the same
    but for capitals.

    Raises:
        ConfigError: no class, or only one where there are several, can be answered; or two have the same place.
        EnvironmentFault: timm or open_clip is missing.
    """
    order = {wordnet_id: place for place, wordnet_id in enumerate(imagenet_wordnet_ids())}
    if labelled.wordnet_ids is not None:
        groups = [[order[wordnet_id]] for wordnet_id in labelled.wordnet_ids]
    elif set(labelled.classes) <= set(CLASSES):
        members = cifar10_members()
        groups = [sorted(order[wordnet_id] for wordnet_id in members[name]) for name in labelled.classes]
    elif set(labelled.classes) == objectnet().keys():
        groups = [[order[wordnet_id] for wordnet_id in objectnet()[name]["ids"]] for name in labelled.classes]
    else:
        named: dict[str, list[int]] = {}
        for place, name in enumerate(imagenet_names()):
            named.setdefault(name.casefold(), []).append(place)
        groups = [found if len(found := named.get(name.casefold(), [])) == 1 else [] for name in labelled.classes]
    places = [place for place, group in enumerate(groups) if group]
    if not places or (len(places) == 1 and len(groups) > 1):
        why = f"shares {'one class' if places else 'no class'} with ImageNet (found {few(labelled.classes)})"
        allowed = "Allowed are folders named by WordNet ids (n01440764), CIFAR-10's classes, or ImageNet's own names."
        raise ConfigError(labelled.name, why, allowed)
    taken: dict[int, str] = {}
    for name, group in zip(labelled.classes, groups, strict=True):
        for one in group:
            if one in taken:
                why = f"has two classes for one of ImageNet's ({taken[one]} and {name})"
                raise ConfigError(labelled.name, why, "Rename one.")
            taken[one] = name
    return places, [groups[place] for place in places]


class Superclass(NamedTuple):
    """Some of the classes under one noun of WordNet: its ``id``, its ``name``, and their places, ascending."""

    id: str
    name: str
    members: tuple[int, ...]


def superclasses(labelled: Labelled) -> tuple[Superclass, ...]:
    """What ImageNet's classes, or CIFAR-10's, are kinds of: each class in one group, in the order of first classes.

    The partition is committed; groups without a class here are left out. Classes without WordNet ids have no groups.
    """
    ids, kind = _wordnet_ids(labelled)
    found = []
    for group in _committed("superclasses.json")[kind]:
        members = tuple(place for place, id in enumerate(ids) if id in group["members"])
        found.append(Superclass(group["id"], group["name"], members))
    return tuple(sorted((group for group in found if group.members), key=lambda group: group.members[0]))


def _wordnet_ids(labelled: Labelled) -> tuple[tuple[str, ...], str]:
    """The classes' ids, none where they have none, and whose they are."""
    synsets = {name: entry["synset"] for name, entry in _committed("cifar10_imagenet.json").items()}
    if labelled.wordnet_ids is None and set(labelled.classes) <= synsets.keys():
        return tuple(synsets[name] for name in labelled.classes), "cifar10"
    return labelled.wordnet_ids or (), "imagenet"


def wordnet_names(labelled: Labelled) -> list[tuple[str, ...]]:
    """WordNet's names of each class, synonyms of one another; none where the classes have no WordNet ids."""
    names = _committed("wordnet_names.json")["names"]
    return [tuple(names[id]) for id in _wordnet_ids(labelled)[0]] or [()] * len(labelled.classes)
