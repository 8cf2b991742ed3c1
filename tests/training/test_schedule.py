"""The learning rate's share of its peak."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.training.schedule import SHAPES, factor

names = st.sampled_from(sorted(SHAPES))
fractions = st.floats(0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(total=st.integers(1, 300), name=names, warmup=fractions, final=fractions)
def test_every_step_has_a_rate_between_nothing_and_the_peak(total, name, warmup, final):
    rates = [factor(step, total, name=name, warmup=warmup, final=final) for step in range(total)]
    assert all(0.0 < rate <= 1.0 for rate in rates)


@settings(deadline=None, max_examples=60)
@given(total=st.integers(1, 300), name=names, warmup=fractions, final=fractions)
def test_it_rises_then_never_rises_again_and_reaches_the_peak(total, name, warmup, final):
    rates = [factor(step, total, name=name, warmup=warmup, final=final) for step in range(total)]
    rising = round(warmup * total)
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert max(rates) == 1.0
    fall = rates[rising:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(fall))


def test_shapes_at_half_of_the_fall():
    half = {name: factor(60, 100, name=name, warmup=0.2, final=0.0) for name in SHAPES}
    assert half == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5})
    assert factor(40, 100, name="cosine", warmup=0.2, final=0.1) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    )


def test_final_is_where_the_fall_ends():
    assert factor(999, 1000, name="linear", warmup=0.0, final=0.25) == pytest.approx(0.25, abs=1e-3)
