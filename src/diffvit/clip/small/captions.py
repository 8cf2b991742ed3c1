"""Captions for images: a template with a name of the image's class, drawn anew in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from diffvit.clip.templates import Templates
from diffvit.data.random_draws import Stream, below, hash_words
from diffvit.errors import ConfigError


class Captions:
    """Every caption there may be, as tokens.

    Args:
        classes: of the data, in the order of the labels.
        names: of a class; one that is not here has its own name.
        templates: with ``{}`` where the name goes.
        tokenizer: texts to int64 (texts, context).
        device: where the tokens go.

    Raises:
        ConfigError: names for a class that the data does not have.
    """

    def __init__(
        self,
        classes: Sequence[str],
        names: Mapping[str, Sequence[str]],
        templates: Sequence[str],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device | str = "cpu",
    ) -> None:
        if strangers := [name for name in names if name not in classes]:
            have = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise ConfigError("captions.names", f"{strangers[0]!r} is no class of the data (have {have})")
        sentences = Templates("captions", tuple(templates))
        self.names = [tuple(names.get(label, (label,))) for label in classes]
        self.texts = [prompt for own in self.names for name in own for prompt in sentences.prompts(name)]
        tokens = tokenizer(self.texts)
        longest = int(tokens.argmax(dim=1).max()) + 1  # a text's end is its largest token
        self.tokens = tokens[:, :longest].contiguous().to(device)
        counts = torch.tensor([len(own) for own in self.names])
        self._templates = len(sentences.texts)
        self._counts = counts.to(device)
        self._firsts = (counts.cumsum(0) - counts).to(device)

    @property
    def vocabulary(self) -> Int64[Tensor, " size"]:
        """The different tokens, ascending."""
        return self.tokens.unique()

    def draw(
        self, seed: int, epoch: int, indices: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]
    ) -> Int64[Tensor, "n cut"]:
        """A caption for each sample; it depends on (seed, epoch, index) and the sample's class alone."""
        words = hash_words(seed, epoch, indices, Stream.CAPTION, 2)
        name = self._firsts[labels] + below(words[:, 0], self._counts[labels])
        return self.tokens[name * self._templates + below(words[:, 1], self._templates)]
