"""What a run learns: everything about a run that another objective does otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffvit.config import Config
from diffvit.data.images import Images
from diffvit.registry import label_of
from diffvit.training.material import Material, fresh_model
from diffvit.training.objective import Classification, Objective
from diffvit.training.score import score


class Task:
    """Classification; a task of another kind overrides what it does otherwise."""

    def title(self, config: Config) -> str:
        """What the model is called."""
        return label_of(config.model.attention)

    def model(self, config: Config, data: Material) -> Any:
        """The model with fresh weights; besides a module's own it has ``settings`` and ``lambdas()``."""
        return fresh_model(config, data)

    def image_tower(self, model: Any) -> nn.Module:
        """The part that sees images, whose operations are counted."""
        return model

    def objective(self, config: Config, data: Material) -> Objective:
        """What its steps minimise."""
        del config, data
        return Classification()

    def score(
        self, model: Any, images: Images, config: Config, data: Material, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """How good it is: :func:`diffvit.training.score.score`'s figures."""
        return score(
            model,
            images,
            mean=data.mean,
            std=data.std,
            batch_size=max(500, config.batch_size),
            precision=precision,
            device=device,
        )

    def last_score(
        self, model: Any, images: Images, config: Config, data: Material, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """The figures of the finished run: :meth:`score`'s, and whatever else is worth knowing then."""
        return self.score(model, images, config, data, precision, device)
