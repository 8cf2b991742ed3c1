import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from diffvit import VisionTransformer
from diffvit.data.batches import channel_statistics, normalise
from diffvit.data.images import Images
from diffvit.training.score import flops_per_image, logits_of, metrics_of, score

SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}


def _images(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=draw)
    return Images(pixels, labels, [f"class {index}" for index in range(10)], "noise", "00")


def _model(**options):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **options})


def test_every_figure_against_plain_loops():
    images, model = _images(70), _model(attention="differential", drop_path=0.5)
    mean, std = channel_statistics(images.pixels)
    found = score(model, images, mean=mean.tolist(), std=std.tolist(), batch_size=32)
    with torch.inference_mode():
        logits = model.eval()(normalise(images.pixels, mean, std))
    right = [int(row.argmax()) == int(label) for row, label in zip(logits, images.labels, strict=True)]
    assert found["accuracy"] == sum(right) / 70
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-5)
    in_top = [int(label) in row.topk(5).indices.tolist() for row, label in zip(logits, images.labels, strict=True)]
    assert found["top5"] == sum(in_top) / 70
    for index in range(10):
        of_class = [hit for hit, label in zip(right, images.labels.tolist(), strict=True) if label == index]
        assert found["per_class_accuracy"][index] == sum(of_class) / len(of_class)
        assert sum(found["confusion"][index]) == len(of_class)
    assert found["confusion"][int(images.labels[0])][found["predictions"][0]] >= 1
    assert found["labels"] == images.labels.tolist()
    assert found["images"] == 70
    assert found["images_per_second"] > 0


def test_the_model_is_left_in_the_mode_it_was_in():
    model = _model(drop_path=0.5)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    score(model, _images(4), mean=[0.5] * 3, std=[0.2] * 3)
    flops_per_image(model)
    assert [module.training for module in model.modules()] == modes
    assert any(modes)
    assert not all(modes)


def test_precision_is_obeyed_and_logits_come_back_as_float32():
    images, model = _images(8), _model()
    given = {"mean": [0.5] * 3, "std": [0.2] * 3}
    full, half = (logits_of(model, images.pixels, precision=kind, **given) for kind in ("fp32", "bf16"))
    assert full.dtype == half.dtype == torch.float32
    assert 0 < float((full - half).abs().max()) < 0.05
    assert torch.equal(half, half.bfloat16().float())


def test_few_classes_and_a_class_without_images():
    found = metrics_of(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    assert found["per_class_accuracy"] == [0.5, 1.0, None]
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    for classes, top5 in ((2, None), (5, None), (6, 5 / 6)):  # of five classes top-5 says nothing
        logits = torch.arange(float(classes)).expand(classes, classes)  # the last class first, whatever the image
        assert metrics_of(logits, torch.arange(classes))["top5"] == top5


def calibration_error(logits, labels):
    return metrics_of(logits, labels)["calibration_error"]


def test_calibration_error_by_hand():
    # Confidence 0.8 in all four, three right: one bin, |0.75 - 0.8|. Then a sure and right one: 0 in its own bin.
    sure = math.log(0.8 / 0.2)
    logits = torch.tensor([[sure, 0.0]] * 4 + [[50.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 0])
    assert calibration_error(logits, labels) == pytest.approx(4 / 5 * 0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(2, 12), st.floats(0.0, 30.0), st.integers(0, 2**31))
def test_calibration_error_is_a_fraction_that_knows_certainty(n, classes, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=draw)
    labels = torch.randint(0, classes, (n,), generator=draw)
    assert 0.0 <= calibration_error(logits, labels) <= 1.0
    sure = 100.0 * F.one_hot(labels, classes).float()
    assert calibration_error(sure, labels) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(sure.roll(1, dims=1), labels) == pytest.approx(1.0, abs=1e-9)


def _by_hand(tokens, dim, hidden, queries):
    """A block's matrix products, a multiply-add as two, where ``queries`` of the tokens ask."""
    return 2 * (tokens * dim * 2 * dim + queries * (dim * 2 * dim + 2 * tokens * dim + 2 * dim * hidden))


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_flops_are_those_counted_by_hand(attention):
    model = _model(attention=attention, pool="mean")
    patches = 2 * 16 * (3 * 16) * 32
    assert flops_per_image(model) == patches + 2 * _by_hand(16, 32, 64, 16) + 2 * 32 * 10


def test_flops_do_not_depend_on_the_kernel():
    class Fused(nn.Module):
        settings = {"in_chans": 1, "image_size": 8}  # noqa: RUF012

        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    assert flops_per_image(Fused()) == 2 * (2 * 8 * 8 * 8)
