"""The two-layer perceptron of an encoder block; also the ``mlp`` head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diffvit.models.linear import linear
from diffvit.models.native_tokens import gelu


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the exact GELU (arXiv 2010.11929, section 3.1).

    Args:
        dim: width of the input.
        hidden: width between the two layers.
        out: width of the output.
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead out"]:
        """Act on the last dimension."""
        return linear(self.fc2, gelu(linear(self.fc1, x)))
