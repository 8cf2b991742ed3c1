"""What a run learns: the model as it starts, and the loss."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import diffvit
from diffvit.config import parse, to_dict
from diffvit.data import shapes
from diffvit.data.augment import Batch
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.sources import noisy_labels
from diffvit.errors import InputError
from diffvit.training.loop import train
from diffvit.training.task import (
    Classification,
    TrainingData,
    balanced_weights,
    build_model,
    fitted,
    fresh_model,
    load_data,
)
from tests.training.small import small


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


def test_patches_are_whitened_for_images_of_every_class():
    """Where images may be ordered by class, the last ones count too; those of a built-in source are as they were."""
    images = shapes.generate("train", 5000, size=16)
    late = images.pixels.clone()
    late[4096:] = 0
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2}
    config = parse({"model": sizes, "whiten": True})
    for source in ("shapes", "folder"):
        data = TrainingData(source, images, None, [0.5] * 3, [0.3] * 3, "", config)
        one, two = (fresh_model(config, each) for each in (data, replace(data, train=replace(images, pixels=late))))
        assert torch.equal(one.patch_embed.proj.weight, two.patch_embed.proj.weight) == (source == "shapes")


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


def test_a_share_of_the_training_images_is_balanced_and_of_the_seed():
    base = {"data": "shapes", "shapes": {"train": 400, "test": 40, "size": 16}, "validation_size": 80}
    base["model"] = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    whole = load_data(parse(base), lambda _: None)
    part, again, other = (
        load_data(parse({**base, "train_share": 0.25, "seed": seed}), lambda _: None) for seed in (0, 0, 1)
    )
    counts, mine = (each.train.labels.bincount() for each in (whole, part))
    assert [round(0.25 * count) for count in counts.tolist()] == mine.tolist()
    assert torch.equal(part.validation.pixels, whole.validation.pixels)
    assert torch.equal(part.train.pixels, again.train.pixels)
    assert not torch.equal(part.train.labels, other.train.labels)
    known, kept = (
        {image.numpy().tobytes(): int(label) for image, label in zip(of.pixels, of.labels, strict=True)}
        for of in (whole.train, part.train)
    )
    assert len(kept) == len(part.train)
    assert kept.items() <= known.items()


def test_noisy_labels_are_others_and_all_others_alike():
    labels = torch.arange(10).repeat(3000)
    noisy = noisy_labels(labels, 10, 0.4, seed=2)
    changed = noisy != labels
    assert int(changed.sum()) == 12_000
    away = (noisy - labels)[changed] % 10
    expected = 12_000 / 9
    assert ((away.bincount(minlength=10)[1:] - expected).abs() < 5 * expected**0.5).all()
    assert (changed.view(-1, 10).float().mean(0) - 0.4).abs().max() < 0.05  # of each class as many
    assert torch.equal(noisy, noisy_labels(labels, 10, 0.4, seed=2))
    assert not torch.equal(noisy, noisy_labels(labels, 10, 0.4, seed=3))


def test_a_run_learns_from_the_noisy_part_and_is_scored_on_its_true_labels(tmp_path):
    lines = []
    config = small(train_share=0.5, label_noise=0.5, shapes={"train": 200})
    data = load_data(config, lines.append)
    assert "images: 100 to train, 50% of their labels wrong" in lines[-1]
    train(config, out=tmp_path)
    found = diffvit.evaluate(tmp_path, split="train")
    assert found["images"] == 100
    assert sum(a != b for a, b in zip(found["labels"], data.train.labels.tolist(), strict=True)) == 50
