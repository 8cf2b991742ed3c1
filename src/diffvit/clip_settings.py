"""Configuration of a small CLIP: a training run's settings, the text tower's and the captions'."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffvit.settings import Config, ModelConfig, Positive, Section

NAME = "{}"  # where a class's name goes in a template


class TextConfig(Section):
    """The text tower: a causal transformer over open_clip's tokens."""

    embed_dim: Positive = 128
    """Width of a token."""
    depth: Positive = 2
    """Number of blocks."""
    num_heads: Positive = 4
    """Attention heads; divides embed_dim."""
    context_length: Positive = 32
    """Tokens of a text, its first and last included; longer texts are cut."""

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}")
        if self.context_length < 3:
            raise ValueError(f"context_length {self.context_length} has no room for a word")
        return self


class CaptionsConfig(Section):
    """What an image's caption is drawn from: a template, and a name of its class."""

    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with {} where the name goes."""
    names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The names of each class; a class that is not here has its own name."""
    unseen: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names that are kept out of the captions, to be tried on the finished model."""
    evaluated_with: str = "openai-80"
    """Templates of the zero-shot classifier that is scored: openai-80, openai-7, single."""

    @model_validator(mode="after")
    def _check(self) -> CaptionsConfig:
        if not self.templates:
            raise ValueError("templates must have at least one")
        for template in self.templates:
            if NAME not in template:
                raise ValueError(f"templates: {template!r} has no {{}} where the name goes")
        for label, names in self.names.items():
            if not names:
                raise ValueError(f"names: class {label} has none")
        for label, names in self.unseen.items():
            if seen := sorted(set(names) & set(self.names.get(label, (label,)))):
                raise ValueError(f"unseen: {seen[0]!r} of class {label} is among its names")
        return self


class ClipConfig(Config):
    """One training run of an image tower and a text tower, whole."""

    objective: Literal["contrastive"] = "contrastive"
    """Images against captions."""
    joint_dim: Positive = 128
    """Width of the joint embedding space of images and texts."""
    text: TextConfig = TextConfig()
    captions: CaptionsConfig = CaptionsConfig()

    @model_validator(mode="after")
    def _check_contrast(self) -> ClipConfig:
        if self.accumulate > 1:
            raise ValueError(f"accumulate {self.accumulate} would split the batch that captions are contrasted over")
        if self.init_from or self.freeze != "none" or self.optimizer.layer_decay != 1.0:
            raise ValueError("init_from, freeze and layer_decay are for classifiers")
        if isinstance(self.model.image_size, tuple):
            raise ValueError(f"model.image_size {self.model.image_size} vs one side: a CLIP's images are square")
        if self.model.head != ModelConfig.model_fields["head"].default:
            raise ValueError(f"model.head {self.model.head!r} vs 'linear': the image tower ends in a projection")
        if self.class_weights != "none":
            raise ValueError("class_weights balanced is for a classifier's loss: take sampling balanced")
        return self
