"""The parts of the small CLIP: its vocabulary, its captions, its loss, its towers."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.small.model import KnownTokens, SmallClip
from diffvit.clip.small.task import Captions, Contrastive
from diffvit.data.augment import Batch
from diffvit.errors import ConfigError
from diffvit.models.vit import VisionTransformer

VISUAL: dict[str, Any] = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
TEXT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "context_length": 20}
NAMES = {"cat": ("cat", "house cat"), "car": ("car",)}
TEMPLATES = ("a {}", "a photo of the {}.", "look, a {} here")
TOKENIZER = open_clip.SimpleTokenizer(context_length=20)


def small(attention: str = "softmax") -> SmallClip:
    torch.manual_seed(0)
    words = captions().vocabulary
    model = SmallClip(visual={**VISUAL, "attention": attention}, text=TEXT, joint_dim=12, vocabulary=len(words))
    model.text.token_embedding.know(words)
    return model


def captions(classes: tuple[str, ...] = ("cat", "dog", "car")) -> Captions:
    words = Captions(classes, NAMES, TEMPLATES, TOKENIZER)
    assert len(words.vocabulary) >= 12
    return words


def test_known_tokens_are_rows_of_a_table_and_others_are_nothing() -> None:
    tokens = KnownTokens(3, 4)
    tokens.know(torch.tensor([5, 70, 900]))
    asked = torch.tensor([[5, 6, 900], [0, 70, 49407]])
    found = tokens(asked)
    rows = {5: 1, 70: 2, 900: 3}
    for place in [(i, j) for i in range(2) for j in range(3)]:
        row = rows.get(int(asked[place]))
        expected = torch.zeros(4) if row is None else tokens.vectors.weight[row]
        assert torch.equal(found[place], expected)
    found.sum().backward()
    gradient = tokens.vectors.weight.grad
    assert gradient is not None
    assert torch.equal(gradient[0], torch.zeros(4))
    assert torch.equal(gradient[1:], torch.ones(3, 4))


def test_a_caption_is_a_template_with_a_name_of_the_class() -> None:
    words = captions()
    allowed = {
        label: {
            tuple(TOKENIZER([template.replace("{}", name)])[0, : words.tokens.shape[1]].tolist())
            for template in TEMPLATES
            for name in own
        }
        for label, own in enumerate([NAMES["cat"], ("dog",), NAMES["car"]])
    }
    indices = torch.arange(600)
    drawn = words.draw(3, 1, indices, indices % 3)
    for label, texts in allowed.items():
        found = [tuple(row) for row in drawn[label::3].tolist()]
        assert set(found) == texts  # every one of them comes up, and no other
        assert max(map(found.count, texts)) < 3 * min(map(found.count, texts))
    assert int((words.tokens[:, -1] == 49407).sum()) >= 1  # cut after the longest, not later
    assert torch.equal(words.vocabulary, words.tokens.unique())
    with pytest.raises(ConfigError, match=r"'car' is no class of the data \(have cat, dog\)"):
        captions(("cat", "dog"))


def test_a_caption_depends_on_seed_epoch_sample_and_class_alone() -> None:
    words = captions()
    indices, labels = torch.arange(40), torch.arange(40) % 3
    whole = words.draw(0, 2, indices, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(words.draw(0, 2, indices[order], labels[order]), whole[order])
    assert torch.equal(words.draw(0, 2, indices[7:9], labels[7:9]), whole[7:9])
    assert not torch.equal(words.draw(1, 2, indices, labels), whole)
    assert not torch.equal(words.draw(0, 3, indices, labels), whole)


class Given(nn.Module):
    """A model that gives features as they are."""

    def __init__(self, images: Tensor, texts: Tensor, scale: float) -> None:
        super().__init__()
        self.found = F.normalize(images, dim=1), F.normalize(texts, dim=1), torch.tensor(scale)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.found


def naive_loss(images: Tensor, texts: Tensor, scale: float, targets: Tensor, labels: Tensor) -> float:
    """Sum over images and captions of half their cross-entropy, in float64, answer by answer."""
    count = len(labels)
    logits = [[scale * float(images[i].double() @ texts[j].double()) for j in range(count)] for i in range(count)]
    total = 0.0
    for i in range(count):
        # An image's share of a class is divided among the captions of that class.
        wanted = [
            float(targets[i, labels[j]]) / sum(int(labels[k] == labels[j]) for k in range(count)) for j in range(count)
        ]
        row = math.log(math.fsum(math.exp(value) for value in logits[i]))
        total -= math.fsum(w / math.fsum(wanted) * (logits[i][j] - row) for j, w in enumerate(wanted)) / 2
    for j in range(count):
        wanted = [float(targets[i, labels[j]]) for i in range(count)]
        column = math.log(math.fsum(math.exp(logits[i][j]) for i in range(count)))
        total -= math.fsum(w / math.fsum(wanted) * (logits[i][j] - column) for i, w in enumerate(wanted)) / 2
    return total


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_what_a_loop_computes(mixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    labels = torch.tensor([0, 2, 2, 1, 0, 2, 1])
    targets = F.one_hot(labels, 4).float()
    if mixed:
        targets = 0.7 * targets + 0.3 * targets.roll(1, 0)
        targets[0] = torch.tensor([0.3, 0.3, 0.0, 0.4])  # some of a class that no caption is of
    model = Given(images, texts, 9.0)
    batch = Batch(images, targets, labels, torch.arange(7), 0)
    loss, metrics = Contrastive(captions(), 0).loss(model, batch)
    expected = naive_loss(model.found[0], model.found[1], 9.0, targets, labels)
    assert abs(float(loss) - expected) < 1e-4
    nearest = [max(range(7), key=lambda j: float(model.found[0][i] @ model.found[1][j])) for i in range(7)]
    assert int(metrics["correct"]) == sum(int(labels[j] == labels[i]) for i, j in enumerate(nearest))


def test_with_a_class_per_image_it_is_clips_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    labels = torch.tensor([4, 1, 0, 5, 2, 3])
    model = Given(images, texts, 20.0)
    words = Captions([str(i) for i in range(6)], {}, TEMPLATES, TOKENIZER)
    batch = Batch(images, F.one_hot(labels, 6).float(), labels, torch.arange(6), 0)
    loss, _ = Contrastive(words, 0).loss(model, batch)
    torch.testing.assert_close(loss / 6, open_clip.ClipLoss()(*model.found), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_the_towers_are_a_vit_and_open_clips_transformer(attention: str) -> None:
    model = small(attention).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tower = VisionTransformer(**{**VISUAL, "attention": attention, "num_classes": 12}).eval()
    tower.load_state_dict(model.visual.state_dict())
    assert torch.equal(model.encode_image(images), tower(images))
    tokens = TOKENIZER(["a cat", "a photo of the house cat, and much, much more", "zebra"])
    whole = model.text(tokens)
    longest = int(tokens.argmax(1).max()) + 1
    torch.testing.assert_close(model.encode_text(tokens[:, :longest]), whole, atol=1e-6, rtol=1e-5)
    seen, read, scale = model(images, tokens)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(read, F.normalize(whole, dim=1), atol=1e-6, rtol=1e-5)
    assert float(scale.detach()) == pytest.approx(1 / 0.07, rel=1e-6)
    assert len(model.lambdas()) == (attention == "differential")
    model.logit_scale.data.fill_(9.0)
    *_, scale = model(images, tokens)
    assert float(scale.detach()) == pytest.approx(100.0, rel=1e-5) == float(model.logit_scale.detach().exp())
