"""What the precision report measures; plain data without torch, so that ``--help`` and the report stay quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffvit.errors import ConfigError

FOLDER = Path("reports/clip-precision")
FORMATS: tuple[str, ...] = ("contiguous", "channels_last")
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Mode:
    """One way to run the encoder.

    Args:
        name: what it is called in tables.
        asked: the precision of its products: ``float32``, ``tf32``, ``float16`` or ``bfloat16``.
        autocast: whether the weights stay float32 and autocast casts; else the weights are converted.
    """

    name: str
    asked: str
    autocast: bool = False

    @property
    def weights(self) -> str:
        """Dtype of the weights that are halved at all."""
        return "float32" if self.autocast or self.asked == "tf32" else self.asked


STRICT = Mode("FP32 strict", "float32")
TF32 = Mode("TF32", "tf32")
MODES = (
    *(STRICT, TF32, Mode("FP16", "float16"), Mode("BF16", "bfloat16")),
    *(Mode("autocast FP16", "float16", True), Mode("autocast BF16", "bfloat16", True)),
)


def modes_of(device: str) -> tuple[Mode, ...]:
    """Those that there are on a device: TF32 is CUDA's."""
    return MODES if device == "cuda" else tuple(mode for mode in MODES if mode is not TF32)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        batch_sizes: images per pass, ascending.
        budget: seconds for everything together; cells that do not fit are left out, and that is said.
        images: pictures that the drift is measured on.
        most: timed passes of a cell at most.
        least: timed passes that must fit into the budget, else the cell is left out.

    Raises:
        ConfigError: a number that measures nothing.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    budget: float = 240.0
    images: int = 32
    most: int = 15
    least: int = 2

    def __post_init__(self) -> None:
        for size in self.batch_sizes or (0,):
            if not 1 <= size <= 4096:
                raise ConfigError("--batch-sizes", f"must be from 1 to 4096 (found {size})")
        if not 1 <= self.budget < float("inf"):
            raise ConfigError("--budget", f"must be at least 1 second (found {self.budget:g})")
        if not 2 <= self.images <= 10_000:
            raise ConfigError("--images", f"must be from 2 to 10000 (found {self.images})")
