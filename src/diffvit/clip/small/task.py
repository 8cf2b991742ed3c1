"""Training a small CLIP: how it is built, what its steps minimise, how good it is as a zero-shot classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffvit.clip.hub import simple_tokenizer
from diffvit.clip.small.captions import Captions
from diffvit.clip.small.contrast import Contrastive
from diffvit.clip.small.load import as_clip
from diffvit.clip.small.model import SmallClip
from diffvit.clip.small.names import names_tried
from diffvit.clip.templates import load_templates
from diffvit.clip.zero_shot import zero_shot_classifier
from diffvit.config import ClipConfig, Config, to_dict
from diffvit.data.batches import evaluation_batches
from diffvit.data.images import Images
from diffvit.training.material import Material, fresh_model
from diffvit.training.score import evaluating, metrics_of
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
        words = _captions(config, data).vocabulary
        tower = config.model.model_copy(update={"num_classes": config.joint_dim})
        visual = tower.model_dump(exclude={"preset"})
        torch.manual_seed(config.seed)
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
        return self._figures(model, images, _own(config), data, device, everything=False)

    def last_score(
        self, model: Any, images: Images, config: Config, data: Material, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """Also ``zero_shot_accuracy``, ``unseen_names_accuracy`` and ``names``, of :func:`names_tried`."""
        del precision
        return self._figures(model, images, _own(config), data, device, everything=True)

    def _figures(
        self, model: Any, images: Images, config: ClipConfig, data: Material, device: torch.device, *, everything: bool
    ) -> dict[str, Any]:
        templates = load_templates(config.captions.evaluated_with)
        found: list[torch.Tensor] = []
        with evaluating(model), torch.inference_mode():
            clip = as_clip(model, {"mean": data.mean, "std": data.std, "data": images.name}, "this run")
            for batch in evaluation_batches(images.pixels, 500, data.mean, data.std, device):
                found.append(model.encode_image(batch, normalize=True).cpu())
            features = torch.cat(found)
            rows = zero_shot_classifier(clip, images.classes, templates, use_cache=False).weights
            figures = metrics_of(model.logit_scale.exp().cpu() * features @ rows.T, images.labels)
            if everything:
                captions = config.captions
                tried = names_tried(clip, features, images, captions.names, captions.unseen, templates)
                figures |= {"zero_shot_accuracy": figures["accuracy"], **tried}
        return figures


def _captions(config: ClipConfig, data: Material) -> Captions:
    tokenizer = simple_tokenizer(config.text.context_length)
    return Captions(data.train.classes, config.captions.names, config.captions.templates, tokenizer)


def _own(config: Config) -> ClipConfig:
    assert isinstance(config, ClipConfig)
    return config
