"""What a run learns: the model as it starts, and the loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffvit.config import parse, to_dict
from diffvit.data import shapes
from diffvit.data.augment import Batch
from diffvit.data.batches import channel_statistics, normalise
from diffvit.errors import InputError
from diffvit.training.task import (
    Classification,
    TrainingData,
    balanced_weights,
    build_model,
    fitted,
    fresh_model,
    load_data,
)


def test_a_whitened_model_is_the_seeds_own_but_for_its_patches():
    images = shapes.generate("train", 300, size=16)
    mean, std = (values.tolist() for values in channel_statistics(images.pixels))
    data = TrainingData("shapes", images, None, mean, std, "", parse({}))
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2}
    plain, whitened = (
        fresh_model(parse({"data": "shapes", "model": sizes, "whiten": on, "seed": 3}), data) for on in (False, True)
    )
    built = build_model(parse({"model": sizes}).model, 3)
    for name, value in built.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value)
        assert torch.equal(whitened.state_dict()[name], value) == (not name.startswith("patch_embed.proj"))
    pictures = normalise(images.pixels, mean, std)
    spreads = []
    for model in (plain, whitened):
        found = model.patch_embed(pictures).flatten(0, 1).double()
        values = torch.linalg.eigvalsh(found.T @ found / len(found))[-48:]
        spreads.append((values[-1] / values[24]).item())
    assert spreads[1] < 2 < spreads[0]


def test_classification_is_the_summed_soft_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 2, 2, generator=generator)
    targets = torch.rand(7, 5, generator=generator).softmax(1)
    labels = torch.randint(0, 5, (7,), generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).bfloat16()
    model.forward = lambda x: nn.Sequential.forward(model, x.bfloat16())
    loss, metrics = Classification().loss(model, Batch(images, targets, labels, torch.arange(7), 0))
    logits = model(images).double()
    expected = -(targets.double() * (logits - logits.logsumexp(1, keepdim=True))).sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert int(metrics["correct"]) == int((logits.argmax(1) == labels).sum())
    assert loss.requires_grad
    assert not metrics["correct"].requires_grad


def test_class_weights_are_scikit_learns_and_weigh_the_soft_cross_entropy():
    from sklearn.utils.class_weight import compute_class_weight

    draw = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.0, 0.1]), 200, replacement=True, generator=draw)
    weights = balanced_weights(labels, 4)
    theirs = compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    assert weights[[0, 1, 3]].tolist() == pytest.approx(theirs.tolist())
    assert weights[2] == 0
    assert float(weights[labels].mean()) == pytest.approx(1)
    logits, soft = torch.randn(200, 4, generator=draw), torch.rand(200, 4, generator=draw).softmax(1)
    for targets in (F.one_hot(labels, 4).float(), soft):
        loss, _ = Classification(weights).loss(lambda _: logits, Batch(logits, targets, labels, labels, 0))
        expected = 0.0
        for row, target in zip(logits.double().log_softmax(1).tolist(), targets.tolist(), strict=True):
            expected -= sum(t * float(w) * p for t, w, p in zip(target, weights, row, strict=True))
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        if targets is not soft:
            torch.testing.assert_close(loss, F.cross_entropy(logits, labels, weights, reduction="sum"))


def test_images_of_one_class_are_not_trained_on(monkeypatch):
    one = shapes.generate("train", 20, size=32)
    one.labels.zero_()
    monkeypatch.setattr("diffvit.data.sources.load", lambda *_, **__: one)
    with pytest.raises(InputError, match=f"one class alone .{one.classes[0]} vs at least two classes"):
        load_data(parse({"data": "shapes"}), lambda _: None)


def test_what_a_run_took_from_its_data_is_taken_again_from_its_config():
    """Also where a class has too few images to give its part: config.yaml repeats and resumes such a run."""
    images = shapes.generate("train", 61, size=16)
    images = images.select([place for place, label in enumerate(images.labels.tolist()) if label < 2 or place == 2])
    assert images.labels.bincount().tolist()[:3] == [7, 6, 1]
    config = fitted(parse({"data": "folder"}), "folder", images)
    assert config.validation_size == 3
    assert fitted(parse(to_dict(config)), "folder", images) == config
    with pytest.raises(InputError, match="leaves nothing to train on"):
        fitted(parse({"data": "folder", "validation_size": 30}), "folder", images)
