"""The models that the page offers: fixed when it starts, known to the browser by name alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffvit import weights
from diffvit.app.kept import Kept
from diffvit.attention.subject import Subject, of_pretrained, of_run
from diffvit.errors import DiffvitError, InputError
from diffvit.reporting.arms import MODEL_NAMES
from diffvit.reporting.tables import percent
from diffvit.training.load import locate, metadata_of, read_header

RUNS = Path("runs")
_MOST = 100  # run folders that are offered without being named
_LOADED = 8  # models in memory
_SIDE = 224  # pixels of the square that a pretrained model is shown: what most were trained on, and 11 MB of maps
_CLIP = "clip"
_FILES = (".pt", ".pth", ".bin", ".safetensors")  # meant as a file, also where there is none


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen.

    Args:
        name: in the lists; no other has it.
        reference: what :func:`diffvit.load` takes; never comes from the browser.
        folder: its run folder; None of a packaged model.
        data: what it was trained on.
        words: what it is, in a line.
        depth: blocks of its image model.
        clip: whether it is a small CLIP of our own.
        pretrained: whether others trained it.
    """

    name: str
    reference: str
    folder: Path | None
    data: str
    words: str
    depth: int
    clip: bool = False
    pretrained: bool = False


def offers_of(runs: Sequence[str], folder: Path = RUNS) -> list[Offer]:
    """The runs that are named, else the finished ones under a folder; then the packaged models.

    Args:
        runs: run folders or weights files.
        folder: where to look where none is named.

    Raises:
        InputError: a run that is named cannot be read.
    """
    found = [_offer(run) for run in runs]
    for path in [] if runs else _finished(folder):
        try:
            found.append(_offer(str(path)))
        except DiffvitError:
            continue  # half a run, or none of ours: nobody asked for it by name
    packaged = [_offer(name) for name in weights.names()]
    return _unique([*found, *packaged])


def _finished(folder: Path) -> list[Path]:
    """Run folders with a result, the newest first."""
    results = [*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]
    return [path.parent for path in sorted(results, key=lambda path: -path.stat().st_mtime)[:_MOST]]


def _offer(reference: str) -> Offer:
    path = locate(reference)
    meta = metadata_of(path, read_header(path))
    folder = Path(reference) if Path(reference).is_dir() else None
    known = weights.registry().get(reference, {})
    settings, data = meta["model"], str(meta["data"])
    clip = settings.get("kind") == _CLIP
    visual = settings["visual"] if clip else settings
    parts = [_kind(visual, clip), f"trained on {data}"]
    if known:
        parts.append(f"{percent(known['test_accuracy'], 1)} of the test images right")
    name = folder.resolve().name if folder else Path(reference).stem
    return Offer(name, reference, folder, data, ", ".join(parts), visual["depth"], clip)


def _kind(settings: Mapping[str, Any], clip: bool) -> str:
    name = MODEL_NAMES.get(str(settings["attention"]), str(settings["attention"]))
    said = f"{name}, patch {settings['patch_size']}, {settings['depth']} blocks, {settings['num_heads']} heads"
    return f"CLIP ({said})" if clip else said


def _unique(offers: Sequence[Offer]) -> list[Offer]:
    """Names told apart by their folder, then by a number."""
    seen: dict[str, int] = {}
    found = []
    for offer in offers:
        twins = [each for each in offers if each.name == offer.name]
        name = f"{offer.folder.parent.name}/{offer.name}" if len(twins) > 1 and offer.folder else offer.name
        seen[name] = seen.get(name, 0) + 1
        found.append(dataclasses.replace(offer, name=name if seen[name] == 1 else f"{name} ({seen[name]})"))
    return found


def pretrained_of(references: Sequence[str], device: str = "cpu") -> dict[str, Subject]:
    """Vision Transformers that others trained, by name, loaded at once.

    Args:
        references: a name that timm has, whose weights are fetched if need be, or a weights file.
        device: where they run.

    Raises:
        ConfigError: no such model.
        InputError: weights that do not fit, or a part that is not supported.
        EnvironmentFault: no timm, or no network.
    """
    found: dict[str, Subject] = {}
    for reference in references:
        path = Path(reference)
        named = (None, path) if path.is_file() or path.suffix in _FILES else (reference, None)
        subject = of_pretrained(*named, device=device)
        side = max(_SIDE // subject.patch, 1) * subject.patch
        name = subject.name if subject.name not in found else f"{subject.name} ({len(found) + 1})"
        found[name] = dataclasses.replace(subject, name=name, side=side)
    return found


def _pretrained_offer(subject: Subject) -> Offer:
    blocks = subject.model.blocks
    words = f"pretrained, patch {subject.patch}, {len(blocks)} blocks"
    return Offer(subject.name, "", None, "", f"{words}, {subject.source}", len(blocks), pretrained=True)


class Models:
    """The offers, loaded as they are asked for.

    Args:
        offers: of :func:`offers_of`.
        device: where models run.
        pretrained: of :func:`pretrained_of`; a name that an offer has already is told apart.
    """

    def __init__(
        self, offers: Sequence[Offer], device: str = "cpu", pretrained: Mapping[str, Subject] | None = None
    ) -> None:
        self._offers = {offer.name: offer for offer in offers}
        self._pretrained: dict[str, Subject] = {}
        for given, subject in (pretrained or {}).items():
            name = f"{given} (pretrained)" if given in self._offers else given
            self._pretrained[name] = dataclasses.replace(subject, name=name)
            self._offers[name] = _pretrained_offer(self._pretrained[name])
        self._loaded: Kept[Subject] = Kept(_LOADED)
        self._loading = threading.Lock()
        self._device = device

    @property
    def classifiers(self) -> list[Offer]:
        """Those that can be looked into and have test images: trained by this project."""
        return [offer for offer in self.lookers if not offer.pretrained]

    @property
    def lookers(self) -> list[Offer]:
        """Those that can be looked into, pretrained ones last."""
        return [offer for offer in self._offers.values() if not offer.clip]

    @property
    def clips(self) -> list[Offer]:
        """CLIP models of our own."""
        return [offer for offer in self._offers.values() if offer.clip]

    @property
    def runs(self) -> list[Offer]:
        """Those with a run folder, for curves and tables."""
        return [offer for offer in self._offers.values() if offer.folder and (offer.folder / "result.json").is_file()]

    def offer(self, name: str) -> Offer:
        """By its name.

        Raises:
            InputError: it is not among those that were offered at the start.
        """
        if name not in self._offers:
            raise InputError("model", "is not among those that are offered")
        return self._offers[name]

    def subject(self, name: str) -> Subject:
        """A model to look into.

        Raises:
            InputError: not offered, a CLIP, or damaged.
        """
        offer = self.offer(name)
        if offer.clip:
            raise InputError(name, "is a CLIP: it is for the zero-shot page")
        if offer.pretrained:
            return self._pretrained[name]
        with self._loading:
            return self._loaded.get(name, lambda: self._load(offer))

    def _load(self, offer: Offer) -> Subject:
        return dataclasses.replace(of_run(offer.reference, device=self._device), name=offer.name)
