"""Configuration sections of a run, typed, frozen and validated. Import them from ``config``.

The command line's flags, their meanings and their defaults are made from these fields too.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import ValidationError

from diffvit.errors import ConfigError, Size, checked_size, did_you_mean, sides
from diffvit.models.presets import PRESETS
from diffvit.registry import ATTENTION, AUGMENTATIONS, FROM_LAMBDA_INIT, MEMORY, SOURCES, position_names

Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Below1 = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _known(what: str, names: Callable[[], Iterable[str]], other: str = "") -> AfterValidator:
    """Check that a string is one of a registry's names at that time, or ``other``."""

    def check(found: str) -> str:
        allowed = list(names())
        if found not in (*allowed, other):
            hint = did_you_mean(found, allowed) or " is a --plugin missing?"
            raise ValueError(f"no such {what} ({found!r} vs {', '.join(allowed)});{hint}")
        return found

    return AfterValidator(check)


def _image_size(found: Any) -> Size:
    try:
        return checked_size("image_size", found)
    except ConfigError as error:
        raise ValueError(error.why) from None


ImageSize = Annotated[Size, BeforeValidator(_image_size)]
Attention = Annotated[str, _known("attention", lambda: ATTENTION)]
PosEmbed = Annotated[str, _known("position embedding", position_names)]
Source = Annotated[str, _known("data source", lambda: SOURCES, MEMORY)]
Augmentation = Annotated[str, _known("augmentation", lambda: AUGMENTATIONS)]


SettingPath = tuple[str, ...]  # ("model", "depth")


class Section(BaseModel):
    """Base class: frozen, unknown keys refused with a ConfigError; the string under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise fault_of(type(self), error, lambda path, _: ".".join((type(self).__name__, *path))) from None

    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]  (validating calls it not)


def fault_of(kind: type[BaseModel], error: ValidationError, name: Callable[[SettingPath, str], str]) -> ConfigError:
    """What to tell of the settings refused, unknown keys first; ``name`` is of a setting's path and the fault."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    path, found = tuple(str(part) for part in first["loc"]), first["input"]
    why, hint = first["msg"].removeprefix("Value error, "), f"{len(faults) - 1} more like it."
    if first["type"] == "extra_forbidden":
        section: type[BaseModel] = kind
        for key in path[:-1]:
            section = section_of(section, key) or section
        why = f"unknown key;{did_you_mean(path[-1], section.model_fields)}".rstrip(";")
    elif first["type"] == "model_type":
        why = f"must be a mapping of names to values (found {type(found).__name__})"
    elif isinstance(found, str | int | float | bool) and repr(found) not in why:
        why += f" (found {reprlib.repr(found)})"
    return ConfigError(name(path, why), why, hint if len(faults) > 1 else "")


def section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section that a field holds; None for a plain setting or an unknown name."""
    kind: Any = section.model_fields[key].annotation if key in section.model_fields else None
    return next(
        (each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, BaseModel)), None
    )


class ModelConfig(Section):
    """The Vision Transformer; the fields are :class:`diffvit.VisionTransformer`'s arguments."""

    preset: str | None = None
    """Preset that supplies every model setting not given explicitly."""
    image_size: ImageSize = 32
    """Side of a square input, or its height and width (32,64), pixels."""
    patch_size: Positive = 4
    """Side of a square patch, pixels; divides image_size."""
    in_chans: Positive = 3
    """Input channels; by default the data's."""
    num_classes: Positive = 10
    """Number of classes; by default the data's."""
    embed_dim: Positive = 192
    """Width of a token."""
    depth: Positive = 9
    """Number of encoder blocks."""
    num_heads: Positive = 6
    """Heads of the softmax baseline; differential attention has half as many, twice as wide."""
    mlp_ratio: AboveZero = 2.0
    """Hidden width of the MLP, as a multiple of embed_dim."""
    attention: Attention = "softmax"
    """softmax (arXiv 2010.11929), differential (arXiv 2410.05258), a variant of it, or one of a --plugin."""
    pos_embed: PosEmbed = "learned-1d"
    """Position embedding: added to the tokens, rotating queries and keys (rope-2d, arXiv 2403.13298), or both."""
    pool: Literal["cls", "mean"] = "cls"
    """What the head reads: the [CLS] token, or the mean over the patch tokens (then there is no [CLS])."""
    head: Literal["linear", "mlp"] = "linear"
    """Classification head."""
    qkv_bias: bool = True
    """Bias on the query, key and value projection."""
    norm_eps: AboveZero = 1e-6
    """Epsilon of the layer norms."""
    drop_path: Below1 = 0.0
    """Stochastic depth: drop probability in the last block; rises linearly from 0 in the first."""
    init: Literal["trunc-normal", "mimetic"] = "trunc-normal"
    """Weight initialisation (mimetic: arXiv 2305.09828)."""
    init_std: AboveZero = 0.02
    """Standard deviation of the weights that start from a normal distribution."""
    qk_norm: Literal["none", "layer", "rms"] = "none"
    """Norm on each head's queries and keys (arXiv 2302.05442)."""
    layer_scale: Rate = 0.0
    """Initial value of a learnt factor per channel on each residual branch (arXiv 2103.17239); 0 is off."""
    registers: Count = 0
    """Register tokens between [CLS] and the patches (arXiv 2309.16588)."""
    class_token: bool | None = None
    """Whether there is a [CLS] token; by default if pool is cls."""
    no_embed_class: bool = False
    """Add no position embedding to [CLS] and registers."""
    fc_norm: bool = False
    """Apply the final norm after pooling instead of before."""
    lambda_init: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Differential attention's constant of lambda, in every layer; by default the published one of each layer."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") is None:
            return values
        name = str(values["preset"])
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r} (have {', '.join(PRESETS)}).{did_you_mean(name, PRESETS)}")
        return {**PRESETS[name].settings, **values}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if any(side % self.patch_size for side in sides(self.image_size)):
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if self.pool == "cls" and self.class_token is False:
            raise ValueError("class_token is off, and pool cls reads it")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}")
        refuse = ATTENTION[self.attention].refuse
        if refuse and (why := refuse(self.num_heads)):
            raise ValueError(why)
        if self.lambda_init is not None and self.attention not in FROM_LAMBDA_INIT:
            raise ValueError(f"attention {self.attention} has no lambda_init (have {', '.join(FROM_LAMBDA_INIT)})")
        dim, width = f"embed_dim {self.embed_dim}", self.embed_dim // self.num_heads
        if self.pos_embed.startswith(("learned-2d", "sincos-1d")) and self.embed_dim % 2:
            raise ValueError(f"{dim} is odd: pos_embed {self.pos_embed} needs halves of equal width")
        if self.pos_embed.startswith("sincos-2d") and self.embed_dim % 4:
            raise ValueError(f"{dim} is not a multiple of 4: pos_embed sincos-2d needs quarters of equal width")
        if self.pos_embed.endswith("rope-2d") and width % 4:
            why = f"num_heads {self.num_heads} leaves heads {width} wide: pos_embed rope-2d needs a multiple of 4"
            raise ValueError(why)
        return self


class AugmentConfig(Section):
    """Augmentation of the training images; every draw is per sample; all off by default."""

    flip: bool = False
    """Horizontal flip with probability 0.5."""
    crop: Count = 0
    """Random crop after reflect-padding this many pixels on every side."""
    color_jitter: Fraction = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    policy: Augmentation = "none"
    """Automatic augmentation: RandAugment (arXiv 1909.13719) or TrivialAugment (arXiv 2103.10158)."""
    policy_ops: Positive = 2
    """Operations RandAugment applies to an image."""
    policy_magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 9.0
    """RandAugment's strength, 0 to 10."""
    erasing: Fraction = 0.0
    """Probability of erasing a random rectangle (arXiv 1708.04896)."""
    mixup: Rate = 0.0
    """Beta parameter of mixup (arXiv 1710.09412); 0 is off."""
    cutmix: Rate = 0.0
    """Beta parameter of CutMix (arXiv 1905.04899); 0 is off. With mixup on too, each sample draws one of the two."""
    mix_probability: Fraction = 1.0
    """Probability that a sample is mixed when mixup or cutmix is on."""


class OptimizerConfig(Section):
    """Optimiser settings."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon on the blocks' matrices with AdamW on the rest."""
    lr: Rate = 1e-3
    """AdamW's peak learning rate."""
    muon_lr: Rate = 5e-3
    """Muon's peak learning rate, scaled to match AdamW's update size."""
    weight_decay: Rate = 0.05
    """Decoupled weight decay of the matrices; none on norms, biases, positions, tokens and lambdas."""
    beta1: Below1 = 0.9
    """AdamW's first moment decay."""
    beta2: Below1 = 0.999
    """AdamW's second moment decay."""
    momentum: Below1 = 0.95
    """Muon's momentum."""
    split_qkv: bool = False
    """Muon orthogonalises each layer's query, key and value matrices separately."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate per layer below the head (arXiv 2106.08254, BEiT); 1 is the same rate for all."""
    grad_clip: Rate = 0.0
    """Clip the global gradient norm to this value; 0 is off."""


class ScheduleConfig(Section):
    """Learning rate over the run."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning-rate decay after the warm-up."""
    warmup: Fraction = 0.05
    """Share of the steps used for linear warm-up."""
    final: Fraction = 0.0
    """Final learning rate as a share of the peak."""


class ShapesConfig(Section):
    """Settings of the built-in shapes data set."""

    size: Annotated[int, Field(ge=16, le=256)] = 32
    """Side of an image, pixels."""
    train: Positive = 10_000
    """Training images."""
    test: Positive = 2_000
    """Test images."""
    clutter: Fraction = 0.3
    """Share of the background covered by distractors, 0 to 1."""
    noise: Fraction = 0.1
    """Standard deviation of the pixel noise, as a share of the pixel range (0 to 1)."""
    seed: Seed = 0
    """Seed of the images."""
    diameter: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Diameter of the largest shape, as a share of the side; the smallest has 0.71 of it."""
    beyond: Fraction = 0.0
    """Share of a shape's radius that may lie outside of the image."""
    contrast: Fraction = 0.0
    """Largest difference from the background, lighter or darker at random; 0: every shape is lighter than all else."""
    decoys: Count = 0
    """Pieces of clutter as large as the shape."""
    distractors: Count = 0
    """Outlines of other classes, as large as the shape, with 0.3 of its contrast."""
    occluders: Count = 0
    """Pieces of clutter in front of the shape."""


class Config(Section):
    """Configuration of a training run."""

    data: Source = "cifar10"
    """Data source; auto uses cifar10 if it is found, else shapes."""
    data_dir: Path | None = None
    """Folder of the data (for folder: split folders, class folders, or a CSV or JSON Lines file)."""
    validation_size: Count = 5_000
    """Training images held out for validation, the same number per class; 0 trains on all. folder: a tenth."""
    test_size: Below1 = 0.2
    """For a folder without test images: share of each class that is set apart for testing."""
    bad_files: Literal["refuse", "skip"] = "refuse"
    """For a folder: refuse files that cannot be read, or skip them."""
    train_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training images of each class that is trained on, chosen by the seed."""
    label_noise: Below1 = 0.0
    """Share of the training images whose label is replaced by another class, chosen by the seed."""
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """Trained weights to start from: a run, a weights file, a packaged name, timm:NAME or a DINO name."""
    init_state: bool = False
    """With init_from a run: go on from its last checkpoint, the optimiser's state too (diffvit train --continue)."""
    freeze: Literal["none", "backbone"] = "none"
    """backbone trains the head alone (a linear probe)."""
    epochs: Positive = 50
    """Passes over the training set."""
    batch_size: Positive = 256
    """Images in one optimiser step, over all processes."""
    accumulate: Positive = 1
    """Gradient accumulation: micro-batches per optimiser step."""
    label_smoothing: Below1 = 0.0
    """Share of the target spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class in the loss by images / (classes * images of the class)."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """uniform shows every training image once an epoch; balanced draws every class equally often."""
    whiten: bool = False
    """Initialise the patch projection to whiten the training images' patches."""
    ema: Below1 = 0.0
    """Decay of the weights' exponential moving average, which is then evaluated; 0 is off."""
    seed: Seed = 0
    """Seed of the initial weights, the data order and the augmentation."""
    device: Device = "auto"
    """Where to run."""
    precision: Precision = "auto"
    """auto is bf16 autocast where the hardware has bf16 arithmetic, else fp32."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 is all cores this process may use. The count changes the last bits of a result."""
    compile: bool = False
    """Compile the training step with torch.compile."""
    accelerate: Literal["auto", "off"] = "auto"
    """auto swaps the model's modules for faster ones over the same parameters; off trains the plain model."""
    checkpoint_every: Positive = 1
    """Epochs between checkpoints."""
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    shapes: ShapesConfig = ShapesConfig()

    @field_validator("accelerate", mode="before")
    @classmethod
    def _not_a_boolean(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off so

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.init_from and self.whiten:
            raise ValueError("whiten starts a patch projection that init_from replaces: turn one of them off")
        if self.init_state and (not self.init_from or self.freeze != "none"):
            raise ValueError("init_state takes the whole state of init_from: it needs one, and nothing frozen")
        if self.freeze == "backbone" and self.model.drop_path:
            raise ValueError("freeze backbone keeps every block as it is: drop_path has to be 0")
        return self
