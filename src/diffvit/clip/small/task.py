"""Training a small CLIP: how it is built, what its steps minimise, how good it is as a zero-shot classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffvit.clip.hub import simple_tokenizer
from diffvit.clip.small.captions import Captions
from diffvit.clip.small.contrast import Contrastive
from diffvit.clip.small.model import SmallClip
from diffvit.clip.small.score import score_clip
from diffvit.clip.templates import load_templates
from diffvit.config import ClipConfig, Config, to_dict
from diffvit.data.images import Images
from diffvit.training.material import Material, fresh_model
from diffvit.training.task import Task


class ContrastiveTask(Task):
    """See :class:`diffvit.training.task.Task`; its configs are :class:`diffvit.config.ClipConfig`.

    Figures are those of the zero-shot classifier made of the class names, computed in float32 whatever the precision
    of the steps, as the commands that classify with a CLIP compute them.
    """

    def title(self, config: Config) -> str:
        """See the base class."""
        return f"CLIP with a {super().title(config)}"

    def model(self, config: Config, data: Material) -> SmallClip:
        """Fresh weights; the image tower starts as its supervised twin does, but for the head."""
        config = _own(config)
        load_templates(config.captions.evaluated_with)  # refused now, not when the trained model is scored
        words = _captions(config, data).vocabulary
        tower = config.model.model_copy(update={"num_classes": config.joint_dim})
        visual = tower.model_dump(exclude={"preset"})
        torch.default_generator.manual_seed(config.seed)
        model = SmallClip(visual=visual, text=to_dict(config.text), joint_dim=config.joint_dim, vocabulary=len(words))
        model.text.token_embedding.know(words)
        twin = fresh_model(config, data).state_dict()
        start = {name: tensor for name, tensor in twin.items() if not name.startswith("head.")}
        model.visual.load_state_dict({**model.visual.state_dict(), **start})
        return model

    def image_tower(self, model: Any) -> nn.Module:
        """See the base class."""
        return model.visual

    def objective(self, config: Config, data: Material) -> Contrastive:
        """See the base class."""
        return Contrastive(_captions(_own(config), data), config.seed)

    def score(
        self, model: Any, images: Images, config: Config, data: Material, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """See the base class."""
        del precision
        return score_clip(model, images, data.mean, data.std, _own(config).captions, device=device)

    def last_score(
        self, model: Any, images: Images, config: Config, data: Material, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """Also what :func:`diffvit.clip.small.names.names_tried` gives, and ``zero_shot_accuracy``."""
        del precision
        return score_clip(model, images, data.mean, data.std, _own(config).captions, device=device, names_too=True)


def _captions(config: ClipConfig, data: Material) -> Captions:
    tokenizer = simple_tokenizer(config.text.context_length)
    return Captions(data.train.classes, config.captions.names, config.captions.templates, tokenizer)


def _own(config: Config) -> ClipConfig:
    assert isinstance(config, ClipConfig)
    return config
