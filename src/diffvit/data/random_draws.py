"""Counter-based random numbers: a hash of (seed, epoch, stream, sample index, position).

There is no generator state to save, to split between workers or to restore on a resume. A draw is two rounds of a
64-bit mixing function over a counter (the finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014; constants of Stafford's variant 13). Everything is integer arithmetic modulo 2**64,
which torch's int64 gives on every device, so a CPU and a GPU draw the same numbers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

Indices = Int64[Tensor, " n"]
_WORD = 1 << 64
# As int64, which has the same bits.
_GOLDEN = 0x9E3779B97F4A7C15 - _WORD  # 2**64 over the golden ratio, odd: steps of it visit every word
_FIRST = 0xBF58476D1CE4E5B9 - _WORD
_SECOND = 0x94D049BB133111EB - _WORD


class Stream(IntEnum):
    """Purpose of a draw. Each has its own stream: switching one off does not change the draws of the others."""

    ORDER = 0
    FLIP = 1
    CROP = 2
    POLICY = 3
    JITTER = 4
    ERASING = 5
    ERASED_PIXELS = 6
    MIX = 7
    CAPTION = 8


def _shift_right(words: Any, bits: int) -> Any:
    # int64 shifts arithmetically: the sign's copies have to be masked away.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Any) -> Any:
    """The mixing function, of int64 words or of a Python integer, of which the lowest 64 bits count."""
    words = (words ^ _shift_right(words, 30)) * _FIRST
    words = (words ^ _shift_right(words, 27)) * _SECOND
    return words ^ _shift_right(words, 31)


def hash_words(seed: int, epoch: int, indices: Indices, stream: int, count: int) -> Int64[Tensor, "n count"]:
    """64 random bits for each sample index and position, on the indices' device.

    Row i depends on ``indices[i]`` alone, so neither the batch split nor the order matters, and the first positions do
    not depend on ``count``. Seeds that differ by a multiple of 2**64 are one seed.
    """
    key = _mix(_mix(_mix(seed + _GOLDEN) + epoch * _GOLDEN) + stream * _GOLDEN)
    rows = _mix((indices + 1) * _GOLDEN + ((key + _WORD // 2) % _WORD - _WORD // 2))
    positions = torch.arange(1, count + 1, device=indices.device) * _GOLDEN
    return _mix(rows[:, None] + positions)


def uniform(words: Int64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Random words as uniform numbers in [0, 1), multiples of 2**-24."""
    return _shift_right(words, 40).to(torch.float32) * 2.0**-24


def below(words: Int64[Tensor, "*shape"], bound: int | Tensor) -> Int64[Tensor, "*shape"]:
    """Random words as uniform integers in ``0 .. bound - 1``; ``bound`` is below 2**31, one number or one per word."""
    return _shift_right(_shift_right(words, 32) * bound, 32)


def hash_uniform(seed: int, epoch: int, indices: Indices, stream: int, count: int) -> Float32[Tensor, "n count"]:
    """Uniform numbers in [0, 1) that depend on what :func:`hash_words` names."""
    return uniform(hash_words(seed, epoch, indices, stream, count))


_HALF = 4096  # a power of two, so that a uniform number times the intervals is exact


def beta_quantiles(concentration: float) -> Float32[Tensor, " nodes"]:
    """Quantiles of Beta(a, a) at equally spaced probabilities 0 .. 1, float32, symmetrical about one half.

    The lower half of the density is integrated numerically (trapezoids in float64). For a < 1 it runs over
    t = x**a, where the integrand x**(a-1) (1-x)**(a-1) dx = (1-t**(1/a))**(a-1) dt / a has no pole.
    """
    a = concentration
    if a < 1:
        grid = np.linspace(0.0, 0.5**a, 200_001)
        x = grid ** (1 / a)
        density = (1 - x) ** (a - 1)
    else:
        x = grid = np.linspace(0.0, 0.5, 200_001)
        density = (4 * x * (1 - x)) ** (a - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) * np.diff(grid))])
    mass /= mass[-1]
    lower = np.interp(np.linspace(0.0, 1.0, _HALF + 1), mass, x)
    # A concentrated distribution falls off steeply in the last interval: its line keeps that interval's mean.
    tail = np.interp(np.linspace(0.0, 1 / _HALF, 1025), mass, x).mean()
    lower[0] = max(2 * tail - lower[1], 0.0)
    both = np.concatenate([lower, 1 - lower[-2::-1]])
    return torch.from_numpy(both.astype(np.float32))


def from_quantiles(quantiles: Float32[Tensor, " nodes"], draws: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Turn uniform numbers in [0, 1) into draws of a tabulated distribution: no rejection, one uniform a draw.

    Between the nodes the quantile function is a straight line, so the distribution function is exact at every node.
    The number of intervals between nodes is a power of two.
    """
    place = draws * (len(quantiles) - 1)
    node = place.to(torch.int64)
    low, high = quantiles[node], quantiles[node + 1]
    return low + (high - low) * (place - node)
