"""What autocast does on a CPU."""

from __future__ import annotations

import torch


def casts_to_bfloat16() -> bool:
    """Whether a CPU's matrix products are cast to bfloat16 here."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
