"""Options that the verbs of ``diffvit clip`` share: which models and pictures; progress lines; errors of many files."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diffvit.cli.options import COMMAND
from diffvit.config import resolve
from diffvit.errors import ConfigError, InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.labelled import Labelled
    from diffvit.clip.load import Clip, Supervised
    from diffvit.clip.shifts import Shift

_NO_TAG = "none"


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class ClipChoice:
    """A CLIP and where it runs."""

    model: str = "RN50"
    """open_clip's name of the architecture; or a small CLIP of our own: cifar10-clip, or its run folder."""
    pretrained: str = "openai"
    """Which of its weights; of a --weights FILE, what it holds (or none)."""
    weights: Path | None = None
    """Weights from a file: OpenAI's archive, .pt, .safetensors."""
    device: Annotated[Device | None, Parameter(show_default="auto")] = None
    """Where to run."""

    @property
    def place(self) -> str:
        """The device: flag > environment > default."""
        return resolve(None, {} if self.device is None else {"device": self.device}).device

    def load(self) -> Clip:
        """The model, in a process that keeps freed memory: each batch asks for the same large blocks again."""
        from diffvit.clip.load import load_clip
        from diffvit.clip.small.load import is_own, load_small
        from diffvit.kernels import accelerate
        from diffvit.training.memory import keep_freed_memory

        keep_freed_memory()
        if self.weights is None and is_own(self.model):
            clip = load_small(self.model, device=self.place)
            accelerate(clip.model)
            return clip
        return load_clip(
            self.model, None if self.pretrained == _NO_TAG else self.pretrained, self.weights, device=self.place
        )


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class SupervisedChoice:
    """The supervised model beside it."""

    supervised: str | None = None
    """Evaluate this model on the same pictures: tv-v1, tv-v2 or timm's name of a ResNet-50, or a ViT of ours."""
    supervised_weights: Path | None = None
    """The ResNet-50's weights from a file."""

    def name(self, *, compare: bool) -> str | None:
        """Of the model, or None where none is asked for; a comparison has tv-v2 by default."""
        return self.supervised or ("tv-v2" if compare else None)

    def own(self, name: str) -> bool:
        """Whether it is a ViT of ours."""
        from diffvit.clip.small.load import is_own

        return self.supervised_weights is None and is_own(name)

    def load(self, name: str | None, device: str) -> Supervised | None:
        """The model of that name."""
        from diffvit.clip.load import load_resnet50, load_vit
        from diffvit.kernels import accelerate

        if name is None:
            return None
        if not self.own(name):
            return load_resnet50(name, self.supervised_weights, device=device)
        supervised = load_vit(name, device=device)
        accelerate(supervised.model)
        return supervised

    def check(self) -> None:
        """Refuse weights of no model."""
        if self.supervised_weights is not None and self.supervised is None:
            raise ConfigError("--supervised-weights", "needs --supervised", "Say what they are: tv-v1 or tv-v2.")


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class PicturesChoice:
    """Which labelled pictures."""

    limit: int | None = None
    """At most so many pictures of each class, spread over it."""
    split: Literal["test", "train"] = "test"
    """Which images of cifar10."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies; by default what DIFFVIT_DATA says."""

    def open(self, where: str) -> Labelled:
        """The pictures."""
        from diffvit.clip.labelled import open_labelled

        labelled = open_labelled(where, split=self.split, data_dir=self.data_dir)
        return labelled if self.limit is None else labelled.at_most(self.limit)


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class ShiftsChoice:
    """What is done to the pictures in a comparison."""

    shifts: str = "all"
    """Of a comparison: all, none, or some of edges,grey,blur,jpeg,noise,inversion."""
    shift_pictures: int = 500
    """To how many pictures, spread over the classes; 5 severities of each."""

    def made(self) -> tuple[Shift, ...]:
        """The shifts.

        Raises:
            ConfigError: no such kind, or no pictures.
        """
        from diffvit.clip.shifts import KINDS, shifts

        if self.shift_pictures < 1:
            raise ConfigError("--shift-pictures", f"must be at least 1 (found {self.shift_pictures})")
        if self.shifts == "none":
            return ()
        return shifts(KINDS if self.shifts == "all" else [kind.strip() for kind in self.shifts.split(",")])


CLIP, SUPERVISED, PICTURES, SHIFTS = ClipChoice(), SupervisedChoice(), PicturesChoice(), ShiftsChoice()


class Lines:
    """A line on standard error at most every two seconds, while something is computed."""

    def __init__(self, what: str) -> None:
        self.what, self.start, self.last = what, time.monotonic(), 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell it."""
        now = time.monotonic()
        if done < total and now - self.last >= 2 and now - self.start >= 2:
            self.last = now
            print(f"{self.what}: {done:,} of {total:,} ({now - self.start:.0f} s)", file=sys.stderr, flush=True)


def summed(faults: Sequence[InputError], kept: str = "") -> InputError:
    """The first of the faults, how many more there are, and what was done all the same."""
    first = faults[0]
    more = f"{len(faults) - 1} more could not be read either." if len(faults) > 1 else ""
    return InputError(first.what, first.why, f"{more} {kept}".strip())
