"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from diffvit.training.ema import WeightAverage


def test_it_follows_the_recurrence():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.6)
    expected = model.weight.detach().double()
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(average.model.weight.double(), expected, atol=1e-5, rtol=1e-5)


def test_it_is_a_model_of_its_own_that_no_gradient_reaches():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    average = WeightAverage(model, 0.9)
    before = average.model[0].weight.clone()
    nn.init.zeros_(model[0].weight)
    assert torch.equal(average.model[0].weight, before)
    assert not average.model.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_constant_stays_bit_for_bit():
    model = nn.BatchNorm1d(4)
    average = WeightAverage(model, 0.999)
    for step in range(50):
        average.update(step)
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_follows_weights_loaded_later():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    model.load_state_dict(other.state_dict())
    for step in range(200):
        average.update(step)
    assert average.model.weight.detach().numpy() == pytest.approx(other.weight.detach().numpy(), abs=1e-6)
