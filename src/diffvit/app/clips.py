"""The CLIP models of the page, and the classifiers they make of a visitor's labels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffvit.app.desk import Desk
from diffvit.app.kept import Kept
from diffvit.errors import InputError

if TYPE_CHECKING:
    from diffvit.clip.load import Clip
    from diffvit.clip.zero_shot import Classifier

TEMPLATES = ("openai-80", "openai-7", "single")
OPENAI = "OpenAI's RN50"


class Clips:
    """The CLIP models of the page, loaded when they are asked for.

    Args:
        desk: its offers of our own.
        openai: OpenAI's weights for RN50; None where they are not on this machine.
    """

    def __init__(self, desk: Desk, openai: Path | None) -> None:
        self._makers: dict[str, Callable[[], Clip]] = {
            offer.name: lambda offer=offer: _small(offer.reference) for offer in desk.models.clips
        }
        if openai is not None:
            self._makers[OPENAI] = lambda: _openai(openai)
        self._loaded: Kept[Clip] = Kept(2)
        self._classifiers: Kept[Classifier] = Kept(32)
        self._loading = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self._makers)

    def classifier(self, name: str, labels: tuple[str, ...], templates: str) -> tuple[Clip, Classifier]:
        """A model and what it makes of the labels.

        Raises:
            InputError: not offered.
            EnvironmentFault: open_clip is not installed.
        """
        from diffvit.clip.templates import load_templates
        from diffvit.clip.zero_shot import zero_shot_classifier

        if name not in self._makers or templates not in TEMPLATES:
            raise InputError("CLIP", "is none of those that are offered")
        with self._loading:
            clip = self._loaded.get(name, self._makers[name])
        made = self._classifiers.get(
            (name, labels, templates),
            lambda: zero_shot_classifier(clip, labels, load_templates(templates), use_cache=False),
        )
        return clip, made


def _small(reference: str) -> Clip:
    from diffvit.clip.small.load import load_small

    return load_small(reference)


def _openai(weights: Path) -> Clip:
    from diffvit.clip.load import load_clip

    return load_clip("RN50", "openai", weights)


def openai_weights(named: Path | None) -> Path | None:
    """OpenAI's RN50 from a file that is named, or where OpenAI's own package keeps it.

    Raises:
        InputError: the file that is named is not there.
    """
    known = Path.home() / ".cache" / "clip" / "RN50.pt"
    if named is None:
        return known if known.is_file() else None
    if not named.is_file():
        raise InputError(str(named), "no such file", "--clip-weights names OpenAI's RN50.pt.")
    return named
