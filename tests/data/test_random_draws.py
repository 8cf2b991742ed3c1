import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.data.random_draws import Stream, below, beta_quantiles, from_quantiles, hash_uniform, hash_words, uniform

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
N = 100_000


def splitmix(word):
    """The published finaliser on unbounded integers."""
    word %= WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 2**40),
    index=st.integers(0, 2**62),
    stream=st.integers(0, 20),
    count=st.integers(1, 5),
)
def test_words_equal_the_scheme_on_unbounded_integers(seed, epoch, index, stream, count):
    key = splitmix(splitmix(splitmix(seed + GOLDEN) + epoch * GOLDEN) + stream * GOLDEN)
    row = splitmix((index + 1) * GOLDEN + key)
    expected = [splitmix(row + position * GOLDEN) for position in range(1, count + 1)]
    words = hash_words(seed, epoch, torch.tensor([index]), stream, count)[0]
    assert [word % WORD for word in words.tolist()] == expected


def test_the_mixing_function_is_splitmix64_and_words_never_change_between_versions():
    assert splitmix(GOLDEN) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0
    words = hash_words(0, 0, torch.tensor([0, 49_999]), Stream.CROP, 2)
    assert words[0].tolist() == [-2546417195612462268, -7392344646219915411]
    assert words[1].tolist() == [-8257762194278569308, -7361819629643016486]


def test_a_row_depends_on_its_index_alone():
    indices = torch.randperm(1000)[:100]
    whole = hash_uniform(3, 5, indices, Stream.FLIP, 4)
    assert torch.equal(hash_uniform(3, 5, indices.flip(0), Stream.FLIP, 4), whole.flip(0))
    parts = [hash_uniform(3, 5, part, Stream.FLIP, 4) for part in indices.split(7)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(hash_uniform(3, 5, indices, Stream.FLIP, 2), whole[:, :2])
    assert hash_uniform(3, 5, indices[:0], Stream.FLIP, 2).shape == (0, 2)


def test_uniform_numbers_fill_the_unit_interval_evenly():
    draws = hash_uniform(0, 0, torch.arange(N), 1, 4)
    assert draws.dtype == torch.float32
    assert 0 <= float(draws.min()) < 1e-4
    assert 1 - 1e-4 < float(draws.max()) < 1
    for column in draws.unbind(1):
        counts = torch.bincount((column * 256).long(), minlength=256).double()
        chi2 = float(((counts - N / 256) ** 2 / (N / 256)).sum())
        assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    pairs = (draws[:, 0] * 16).long() * 16 + (draws[:, 1] * 16).long()
    counts = torch.bincount(pairs, minlength=256).double()
    assert abs(float(((counts - N / 256) ** 2 / (N / 256)).sum()) - 255) < 5 * math.sqrt(2 * 255)


def test_every_bit_is_fair_and_each_of_the_index_changes_half_of_them():
    here = hash_words(1, 2, torch.arange(N), 3, 1)
    for flipped in (None, *range(0, 40, 3)):
        words = here if flipped is None else here ^ hash_words(1, 2, torch.arange(N) ^ (1 << flipped), 3, 1)
        share = ((words >> torch.arange(64)) & 1).double().mean(0)
        # A flip of a low bit pairs the indices, so that each changed word counts twice.
        assert float((share - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(N / 2), flipped


def test_neighbours_in_every_coordinate_are_independent():
    indices = torch.arange(N)
    here = hash_uniform(7, 11, indices, 2, 2)
    others = {
        "seed": hash_uniform(8, 11, indices, 2, 2),
        "epoch": hash_uniform(7, 12, indices, 2, 2),
        "seed and epoch exchanged": hash_uniform(11, 7, indices, 2, 2),
        "stream": hash_uniform(7, 11, indices, 3, 2),
        "epoch and stream exchanged": hash_uniform(7, 2, indices, 11, 2),
        "index": hash_uniform(7, 11, indices + 1, 2, 2),
        "index and position": hash_uniform(7, 11, indices + 1, 2, 2).flip(1),
    }
    for name, other in others.items():
        assert abs(correlation(here, other)) < 5 / math.sqrt(2 * N), name
    assert abs(correlation(here[:, 0], here[:, 1])) < 5 / math.sqrt(N)
    for lag in (1, 2, 3, 32, 256):
        assert abs(correlation(here[lag:, 0], here[:-lag, 0])) < 5 / math.sqrt(N - lag), lag


@pytest.mark.parametrize("bound", [1, 2, 9, 14, 50_000])
def test_below_reaches_every_integer_alike(bound):
    draws = below(hash_words(0, 0, torch.arange(4 * N), 1, 1)[:, 0], bound)
    counts = torch.bincount(draws, minlength=bound).double()
    assert len(counts) == bound
    expected = 4 * N / bound
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - (bound - 1)) <= 5 * math.sqrt(2 * (bound - 1))


def test_the_ends_stay_in_range_and_a_bound_may_be_given_per_word():
    ends = uniform(torch.tensor([-1, 0, -(2**63), 2**63 - 1]))
    assert ends.tolist() == [1 - 2**-24, 0.0, 0.5, 0.5 - 2**-24]
    assert below(torch.tensor([-1, 0]), 2**31 - 1).tolist() == [2**31 - 2, 0]
    assert below(torch.tensor([-1, -1, 0]), torch.tensor([5, 7, 9])).tolist() == [4, 6, 0]


BETA_CDF = {
    0.5: lambda x: 2 / math.pi * torch.asin(x.sqrt()),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
    3.0: lambda x: x**3 * (10 - 15 * x + 6 * x**2),
}


@pytest.mark.parametrize("a", list(BETA_CDF))
def test_beta_draws_follow_the_closed_form(a):
    table = beta_quantiles(a)
    chances = torch.linspace(0, 1, 10_001)[:-1]
    draws = from_quantiles(table, chances)
    assert float((BETA_CDF[a](draws.double()) - chances).abs().max()) < 3e-4


@pytest.mark.parametrize("a", [0.01, 0.1, 0.2, 0.8, 1.0, 4.0, 100.0, 1e6])
def test_beta_draws_have_the_right_moments(a):
    draws = from_quantiles(beta_quantiles(a), hash_uniform(0, 0, torch.arange(2 * N), 1, 1)[:, 0]).double()
    variance = 1 / (4 * (2 * a + 1))
    assert 0 <= float(draws.min()) <= float(draws.max()) <= 1
    assert abs(float(draws.mean()) - 0.5) < 5 * math.sqrt(variance / (2 * N))
    assert float(draws.var()) == pytest.approx(variance, rel=0.02)
