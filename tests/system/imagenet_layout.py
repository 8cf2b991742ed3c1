"""ImageNet's validation layout with random models, and what these models say in float64.

All 1,000 classes have a folder with one file. Some of them can be read; those of the other classes are cut short, so
that both models need not see 1,000 pictures while all names are in the classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import timm.data
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

DIFFERENT, FOLDERS = 10, 3  # pictures; of so many classes each
NEAR = 1e-4  # of the probabilities' logarithms: closer ones float32 may order either way


def picture(seed: int) -> Image.Image:
    """Blocks of colour under a gradient."""
    draw = np.random.default_rng(seed)
    sides = tuple(int(side) for side in draw.integers(2, 9, 2))
    blocks = Image.fromarray(draw.integers(0, 256, (*sides, 3), dtype=np.uint8))
    return blocks.resize((90, 70 + seed % 3 * 10), Image.Resampling.NEAREST if seed % 2 else Image.Resampling.BICUBIC)


@torch.no_grad()
def awake(model: nn.Module, images: Tensor) -> nn.Module:
    """Random weights with batch norms' statistics from images: what the model makes of pictures then differs."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and name.endswith("bn3"):
            norm.weight.fill_(0.5)
    model.train()(images)
    return model.eval()


@torch.no_grad()
def random_clip(images: Tensor) -> Any:
    torch.manual_seed(0)
    model: Any = open_clip.create_model("RN50-quickgelu", pretrained=None)
    awake(model.visual, images)
    # Centred: else every picture would point the same way, and name the same class.
    model.visual.attnpool.c_proj.bias.sub_(model.visual(images).mean(0))
    model.logit_scale.fill_(3.0)
    return model.eval()


@torch.no_grad()
def random_resnet(images: Tensor) -> Any:
    torch.manual_seed(1)
    model: Any = awake(timm.create_model("resnet50.tv2_in1k", pretrained=False), images)
    model.fc.weight.mul_(3)
    model.fc.bias.sub_(model(images).mean(0))
    return model


def rounded_as_published(model: Any) -> dict[str, Tensor]:
    """OpenAI's layout: half precision but for norms, and three whole numbers."""
    open_clip.convert_weights_to_fp16(model)
    notes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.float()  # what is compared below has the rounded values
    return {**state, **{name: torch.tensor(value) for name, value in notes.items()}}


def logarithms(model: Any, images: Tensor) -> Tensor:
    """Of the probabilities, picture by picture, in float64."""
    model = model.double()
    with torch.no_grad():
        return torch.cat([model(image[None].double()) for image in images]).log_softmax(1)


@torch.no_grad()
def text_rows(model: Any) -> Tensor:
    """By open_clip's model in float32, a sample of them checked in float64.

    Texts of one length are together: the tower is causal, so padding is left out.
    """
    tokens = open_clip.tokenize([f"a photo of a {name}." for name in open_clip.IMAGENET_CLASSNAMES])
    lengths = tokens.argmax(dim=1) + 1  # a text's end is its largest token
    positions, mask = model.positional_embedding, model.attn_mask
    rows = torch.empty(len(tokens), model.text_projection.shape[1])
    for length in lengths.unique().tolist():
        model.context_length = length
        model.positional_embedding = nn.Parameter(positions[:length])
        model.attn_mask = mask[:length, :length]
        rows[lengths == length] = model.encode_text(tokens[lengths == length, :length], normalize=True)
    model.positional_embedding, model.attn_mask = positions, mask
    model = model.double()
    model.attn_mask = mask.double()
    exact = model.encode_text(tokens[::100], normalize=True)
    assert (rows[::100] - exact).abs().max() < 1e-6
    return rows.double()


def imagenet_layout(folder: Path) -> tuple[list[Tensor], list[int]]:
    """The weights and the folder on the disk.

    Returns:
        Of both models the logarithms of the probabilities of all classes for the pictures that can be read, by their
        libraries alone; and these pictures' classes.
    """
    files = [folder / f"{seed}.jpg" for seed in range(DIFFERENT)]
    for seed, file in enumerate(files):
        picture(seed).save(file, quality=80)
    opened = [Image.open(file).convert("RGB") for file in files]
    clip_transform: Any = open_clip.image_transform(224, is_train=False)
    images = torch.stack([clip_transform(image) for image in opened])
    clip = random_clip(images[:8])
    torch.save(rounded_as_published(clip), folder / "clip.pt")

    def scores(image: Tensor) -> Tensor:
        return clip.logit_scale.exp() * clip.encode_image(image, normalize=True) @ rows.T

    rows = text_rows(clip)
    with torch.no_grad():
        zero_shot = torch.cat([scores(image[None].double()) for image in images]).log_softmax(1)
    given: Any = timm.get_pretrained_cfg("resnet50.tv2_in1k")
    config = timm.data.resolve_data_config({}, pretrained_cfg=given.to_dict(), use_test_size=True)
    transform: Any = timm.data.create_transform(**config, is_training=False)
    images = torch.stack([transform(image) for image in opened])
    resnet = random_resnet(images[:8])
    torch.save(resnet.state_dict(), folder / "resnet.pth")
    models = [zero_shot, logarithms(resnet, images)]
    where = placed(models)
    for label, wordnet_id in enumerate(ImageNetInfo().label_names()):
        content = files[where.get(label, 0)].read_bytes()
        file = folder / "val" / wordnet_id / f"ILSVRC2012_val_{label:08}.JPEG"
        file.parent.mkdir(parents=True)
        file.write_bytes(content if label in where else content[:200])
    labels = sorted(where)
    return [model[[where[label] for label in labels]] for model in models], labels


def placed(models: list[Tensor]) -> dict[int, int]:
    """Of some classes the picture that lies in their folder: one that some model takes for it, or nearly."""
    where: dict[int, int] = {}
    for place in (0, 3, 5):
        for model in models:
            for number, label in enumerate(model.argsort(1, descending=True)[:, place].tolist()):
                if label not in where and list(where.values()).count(number) < FOLDERS:
                    where[label] = number
    return where


def bounds(logs: Tensor, labels: list[int], places: int) -> tuple[int, int]:
    """How many true classes are surely among the first, and how many may be."""
    surely = maybe = 0
    for label, row in zip(labels, logs.tolist(), strict=True):
        above = [other - row[label] for place, other in enumerate(row) if place != label]
        twin = [place < label and abs(row[place] - row[label]) < 1e-12 for place in range(len(row))]
        ahead = sum(twin)  # of exactly equal ones the first is named
        near = sum(abs(gap) < NEAR for gap in above) - sum(abs(gap) < 1e-12 for gap in above)
        higher = sum(gap >= NEAR for gap in above) + ahead
        surely += higher + near < places
        maybe += higher < places
    return surely, maybe


def counted(found: Any, models: list[Tensor], labels: list[int]) -> None:
    """Both models' figures are those of float64."""
    for model, logs in zip(found["models"], models, strict=True):
        for figure, places in (("accuracy", 1), ("top5", 5)):
            surely, maybe = bounds(logs, labels, places)
            count = round(model[figure] * len(logs))
            assert surely <= count <= maybe, (model["model"], figure, surely, count, maybe)
            assert maybe - surely <= 2
            assert surely >= len(logs) / 10  # the counts say something
