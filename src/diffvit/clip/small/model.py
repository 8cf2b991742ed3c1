"""A small CLIP (arXiv 2103.00020): a ViT of ours, a small text transformer, and the scale between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.hub import encode_text
from diffvit.hub.libraries import library
from diffvit.models.vit import VisionTransformer

_FIRST_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0  # section 2.5 of the paper


class KnownTokens(nn.Module):
    """Vectors for the ``tokens`` of a vocabulary; any other token has the zero vector, which is never trained.

    open_clip's tokenizer knows 49,408 tokens, which would be most of a small model, and a token that no caption holds
    would keep its random start, and so say something that nobody taught it.
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


class SmallClip(nn.Module):
    """A ViT of ours beside a causal text transformer of open_clip's, with ``joint_dim`` features of images and texts.

    ``visual`` are settings of :class:`diffvit.VisionTransformer`; ``text`` has ``embed_dim``, ``depth``, ``num_heads``
    and ``context_length`` of the text tower, which knows so many tokens (``vocabulary``).

    Raises:
        ConfigError: sizes that do not go together.
        EnvironmentFault: open_clip is missing.
    """

    def __init__(self, *, visual: Mapping[str, Any], text: Mapping[str, int], joint_dim: int, vocabulary: int) -> None:
        super().__init__()
        self.settings = {"kind": "clip", "visual": {**visual, "num_classes": joint_dim}, "text": dict(text)}
        self.settings |= {"joint_dim": joint_dim, "vocabulary": vocabulary}
        self.visual = VisionTransformer(**self.settings["visual"])
        self.text = library("open_clip").transformer.TextTransformer(
            context_length=text["context_length"],
            width=text["embed_dim"],
            heads=text["num_heads"],
            layers=text["depth"],
            output_dim=joint_dim,
            vocab_size=1,  # its table makes room for ours
        )
        self.text.token_embedding = KnownTokens(vocabulary, text["embed_dim"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def forward(
        self, images: Float[Tensor, "n chans height width"], tokens: Int64[Tensor, "m cut"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "m dim"], Float[Tensor, ""]]:
        """Features of unit length of images and of texts, and the scale of their products."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))
        seen, read = self.encode_image(images, normalize=True), self.encode_text(tokens, normalize=True)
        return seen, read, self.logit_scale.exp()

    def encode_image(
        self, images: Float[Tensor, "n chans height width"], normalize: bool = False
    ) -> Float[Tensor, "n dim"]:
        """Image features, float32, of unit length where ``normalize``."""
        features = self.visual(images).float()
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Int64[Tensor, "n cut"], normalize: bool = False) -> Float[Tensor, "n dim"]:
        """Text features; texts may be cut after the end of the longest, the tower is causal."""
        features = encode_text(self.text, tokens).float()
        return F.normalize(features, dim=-1) if normalize else features

    def lambdas(self) -> list[float]:
        """The image tower's lambda of each layer; empty for softmax attention."""
        return self.visual.lambdas()
