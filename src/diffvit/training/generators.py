"""torch's own random numbers, as dropout and stochastic depth draw them."""

from __future__ import annotations

import hashlib

import torch


def seed_generators(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Set torch's generators from (seed, step, rank), so that no generator state has to be saved."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
