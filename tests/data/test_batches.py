from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.data.batches import channel_statistics, epoch_order, evaluation_batches, normalise


def noise(n, size=(4, 6)):
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), n=st.integers(0, 500))
def test_epoch_order_is_a_permutation_and_stateless(seed, epoch, n):
    order = epoch_order(seed, epoch, n)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))
    torch.rand(3)
    assert torch.equal(order, epoch_order(seed, epoch, n))


def test_epoch_order_mixes_well():
    n = 20_000
    orders = [epoch_order(seed, epoch, n).double() for seed in (0, 1) for epoch in (0, 1, 2)]
    places = torch.arange(n).double()
    table = torch.corrcoef(torch.stack([places, *orders]))
    assert float((table - torch.eye(len(table))).abs().max()) < 5 / n**0.5
    for order in orders:
        steps = order.diff()
        assert int((steps == 1).sum()) < 10  # 1 expected
        assert float(steps.abs().mean()) == pytest.approx(n / 3, rel=0.03)
        # Every tenth of the epoch shows samples from every tenth of the set.
        counts = torch.bincount((places // 2000 * 10 + order // 2000).long(), minlength=100).double()
        assert float(((counts - 200) ** 2 / 200).sum()) < 81 + 5 * (2 * 81) ** 0.5


def test_every_order_has_the_same_chance():
    seen = Counter(tuple(epoch_order(0, epoch, 3).tolist()) for epoch in range(1200))
    assert len(seen) == 6
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 5 + 5 * 10**0.5


def test_channel_statistics_are_the_moments():
    pixels = noise(2500, (50, 50))  # more than is looked at in one go
    values = pixels.double() / 255
    mean, std = channel_statistics(pixels)
    torch.testing.assert_close(mean, values.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(std, values.std((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0)
    assert mean.dtype == std.dtype == torch.float32
    pixels[:, 1] = 51
    mean, std = channel_statistics(pixels)  # a channel without variation can still be divided by
    assert (float(mean[1]), float(std[1])) == (pytest.approx(0.2), 1.0)


def test_normalise_is_the_formula():
    pixels = noise(20)
    before = pixels.clone()
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    images = normalise(pixels, mean, std)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(pixels, before)
    assert torch.equal(normalise(pixels, torch.tensor(mean), torch.tensor(std)), images)


def test_evaluation_batches_show_everything_once_in_order():
    pixels = noise(23)
    mean, std = channel_statistics(pixels)
    batches = list(evaluation_batches(pixels, 10, mean, std))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert torch.equal(torch.cat(batches), normalise(pixels, mean, std))


@given(st.integers(0, 2**31), st.integers(0, 9), st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_a_balanced_order_draws_every_class_and_every_sample_of_it_equally_often(seed, epoch, labels):
    labels = torch.tensor(labels)
    order = epoch_order(seed, epoch, len(labels), labels)
    assert len(order) == len(labels)
    assert torch.equal(order, epoch_order(seed, epoch, len(labels), labels))
    times = torch.bincount(order, minlength=len(labels))
    by_class = [times[labels == label] for label in labels.unique()]
    for counts in ([int(each.sum()) for each in by_class], *(each.tolist() for each in by_class)):
        assert max(counts) - min(counts) <= 1


def test_balanced_orders_differ_and_mix_the_classes():
    labels = (torch.arange(1000) >= 900).long()
    one, two = (labels[epoch_order(0, epoch, 1000, labels)] for epoch in (0, 1))
    assert not torch.equal(one, two)
    assert all(30 < int(part.sum()) < 70 for part in one.split(100))
