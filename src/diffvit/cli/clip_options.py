"""What the verbs of ``diffvit clip`` share: which CLIP, errors of many files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffvit.cli.options import COMMAND
from diffvit.config import resolve
from diffvit.errors import InputError
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.clip.load import Clip


@Parameter(name="*", group=COMMAND)
@dataclass(frozen=True)
class ClipChoice:
    """A CLIP and where it runs."""

    model: str = "RN50"
    """open_clip's architecture name, or a small CLIP trained with diffvit: cifar10-clip or a run folder."""
    pretrained: str = "openai"
    """Tag of the weights; with --weights FILE, the tag of what the file holds, or none."""
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
        pretrained = None if self.pretrained == "none" else self.pretrained
        return load_clip(self.model, pretrained, self.weights, device=self.place)


CLIP = ClipChoice()


def summed(faults: Sequence[InputError], kept: str = "") -> InputError:
    """The first of the faults, how many more there are, and what was done all the same."""
    first = faults[0]
    more = f"{len(faults) - 1} more could not be read either." if len(faults) > 1 else ""
    return InputError(first.what, first.why, f"{more} {kept}".strip())
