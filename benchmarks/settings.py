"""What is measured and how often; plain data without torch, so that ``--help`` stays quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffvit.errors import ConfigError, did_you_mean

FOLDER = Path("reports/speed")
BENCHMARKS = ("train", "inference", "attention", "profile")
DTYPES = ("fp32", "bf16")
PEERS = ("timm", "vit-pytorch", "transformers")
SOFTMAX, DIFFERENTIAL = "diffvit", "diffvit differential"
TIMM, TIMM_DIFFERENTIAL = "timm", "timm differential"
TOKENS, WIDTHS, HEAD_WIDTH = (16, 64, 65, 256, 257), (128, 192, 384), 32
PROFILE_WARMUP, PROFILED = 5, 10  # steps before the timed ones, and after them under the profiler
PASSES = ("forward", "forward+backward")
# Our attention as it chooses by itself, and the other ways to compute the same.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    SOFTMAX: ("explicit", "SDPA math", "SDPA flash", "SDPA efficient", "SDPA cuDNN"),
    DIFFERENTIAL: ("step by step", "two SDPA calls", TIMM_DIFFERENTIAL),
}


@dataclass(frozen=True)
class Sizes:
    """The model and the batch, the same for everyone; always a [CLS] token and learned 1-D positions."""

    image_size: int = 32
    """Side of the square input, pixels."""
    patch_size: int = 4
    """Side of a square patch, pixels."""
    num_classes: int = 10
    """Outputs of the head."""
    embed_dim: int = 192
    """Width of a token."""
    depth: int = 9
    """Number of encoder blocks."""
    num_heads: int = 6
    """Heads of the softmax models."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLP over embed-dim."""
    batch_size: int = 128
    """Images in one step."""

    def __post_init__(self) -> None:
        at_least_one(**{name: value for name, value in vars(self).items() if isinstance(value, int)})


@dataclass(frozen=True)
class Rounds:
    """How often. In every round each model has its turn of so many steps; the first rounds are thrown away.

    Raises:
        ConfigError: a count that measures nothing.
    """

    rounds: int
    steps: int = 1
    warmup: int = 1

    def __post_init__(self) -> None:
        at_least_one(rounds=self.rounds, steps=self.steps)
        if self.warmup < 0:
            raise ConfigError("--warmup", f"must be at least 0 (found {self.warmup})")


@dataclass(frozen=True)
class Choice:
    """Which arms: the peers, the dtypes, and whether torch.compile is measured too."""

    peers: tuple[str, ...] = PEERS
    dtypes: tuple[str, ...] = DTYPES
    compiled: bool = False


@dataclass(frozen=True)
class Grid:
    """What is measured: every combination. The batch is such that a step has about ``tokens_per_step`` tokens.

    Raises:
        ConfigError: nothing to measure, or a width that is no multiple of two heads.
    """

    tokens: tuple[int, ...] = TOKENS
    widths: tuple[int, ...] = WIDTHS
    tokens_per_step: int = 4096

    def __post_init__(self) -> None:
        at_least_one(tokens_per_step=self.tokens_per_step, tokens=min(self.tokens, default=0))
        for width in self.widths or (0,):
            if width < 1 or width % (2 * HEAD_WIDTH):
                raise ConfigError("--widths", f"must be multiples of {2 * HEAD_WIDTH}, two heads (found {width})")

    def batch(self, tokens: int) -> int:
        """Sequences in a step."""
        return max(1, round(self.tokens_per_step / tokens))


def at_least_one(**counts: int) -> None:
    """Refuse a count below 1.

    Raises:
        ConfigError: naming the flag.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", f"must be at least 1 (found {value})")


def peers_of(text: str) -> tuple[str, ...]:
    """``"timm,transformers"`` as names in the fixed order; ``"none"`` measures diffvit alone.

    Raises:
        ConfigError: a name that is no peer.
    """
    names: Sequence[str] = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    for name in names or [""]:
        if name not in PEERS:
            why = f"no such peer ({name!r} vs {', '.join(PEERS)}, or none);{did_you_mean(name, PEERS)}"
            raise ConfigError("--peers", why.rstrip(";"))
    return tuple(name for name in PEERS if name in names)
