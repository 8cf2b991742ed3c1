"""A table of token vectors for the few tokens that captions use."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class KnownTokens(nn.Module):
    """Vectors for the tokens of a vocabulary; any other token has the zero vector, which is never trained.

    open_clip's tokenizer knows 49,408 tokens, which would be most of a small model, and a token that no caption holds
    would keep its random start, and so say something that nobody taught it.

    Args:
        size: tokens in the vocabulary; ``tokens`` holds them once :meth:`know` was called or a state loaded.
        width: of a vector.
    """

    tokens: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(size, dtype=torch.int64))
        self.vectors = nn.Embedding(size + 1, width, padding_idx=0)
        with torch.no_grad():
            self.vectors.weight[1:].normal_(std=0.02)

    def know(self, tokens: Int64[Tensor, " size"]) -> None:
        """Set the vocabulary: different tokens, ascending."""
        self.tokens.copy_(tokens)

    def forward(self, tokens: Int64[Tensor, "n context"]) -> Float[Tensor, "n context width"]:
        """The tokens' vectors."""
        place = torch.searchsorted(self.tokens, tokens.contiguous()).clamp(max=len(self.tokens) - 1)
        return self.vectors((place + 1) * (self.tokens[place] == tokens))

    def extra_repr(self) -> str:
        """The vocabulary's size."""
        return f"{len(self.tokens)}"
