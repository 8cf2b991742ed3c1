"""Rotary positions against complex numbers one by one, and by the property they exist for."""

from __future__ import annotations

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffvit.models.pos_embed import Rope2d
from diffvit.models.vit import VisionTransformer

GRID = (3, 5)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotated(rope: torch.nn.Module, x: torch.Tensor, heads: int = 1) -> torch.Tensor:
    """Queries or keys with their heads side by side, (batch, tokens, dim)."""
    return rope(x.unflatten(2, (heads, -1))).flatten(2)


def by_complex_numbers(x: torch.Tensor, grid: tuple[int, int], heads: int, prefix: int) -> torch.Tensor:
    """One number at a time, as arXiv 2403.13298 writes it; x is (tokens, dim)."""
    turned, width = x.clone(), x.shape[1] // heads
    for token in range(prefix, len(x)):
        row, column = divmod(token - prefix, grid[1])
        for head in range(heads):
            for plane in range(width // 2):
                place, step = (row, plane) if plane < width // 4 else (column, plane - width // 4)
                angle, at = place * 100.0 ** (-step / (width / 4)), head * width + 2 * plane
                number = complex(x[token, at], x[token, at + 1]) * cmath.exp(1j * angle)
                turned[token, at], turned[token, at + 1] = number.real, number.imag
    return turned


@pytest.mark.parametrize("prefix", [0, 1])
def test_each_plane_is_a_complex_number_rotated(prefix: int) -> None:
    x = drawn(1, prefix + 15, 16)
    expected = by_complex_numbers(x[0], GRID, 2, prefix)
    torch.testing.assert_close(rotated(Rope2d(GRID, 8, prefix), x, 2)[0], expected, atol=1e-12, rtol=0)


def test_the_gradient_is_the_rotation_back() -> None:
    rope, x = Rope2d((2, 2), 8, 1), drawn(2, 5, 1, 8).requires_grad_()
    assert torch.autograd.gradcheck(rope, x)
    upstream = drawn(2, 5, 1, 8, seed=1)
    (gradient,) = torch.autograd.grad(rope(x), x, upstream)
    torch.testing.assert_close(rope(gradient), upstream)  # turned back, then forth


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), quarter=st.integers(1, 4), prefix=st.integers(0, 1),
    data=st.data(),
)  # fmt: skip
def test_only_the_distance_counts(rows: int, columns: int, quarter: int, prefix: int, data: st.DataObject) -> None:
    rope = Rope2d((rows, columns), 4 * quarter, prefix)
    everywhere = prefix + rows * columns
    q, k = (drawn(4 * quarter, seed=seed).expand(1, everywhere, -1) for seed in (0, 1))
    products = (rotated(rope, q)[0] @ rotated(rope, k)[0].T)[prefix:, prefix:].reshape(rows, columns, rows, columns)
    down, across = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    moved = products[down:, across:, down:, across:]
    still = products[: rows - down, : columns - across, : rows - down, : columns - across]
    torch.testing.assert_close(moved, still, atol=1e-10, rtol=0)
    torch.testing.assert_close(rotated(rope, q).norm(dim=2), q.norm(dim=2))


def test_tokens_before_the_patches_stay_and_fewer_tokens_are_the_first() -> None:
    rope, x = Rope2d(GRID, 8, 1), drawn(1, 16, 1, 8)
    assert torch.equal(rope(x)[:, :1], x[:, :1])
    assert torch.equal(rope(x[:, :1]), x[:, :1])
    assert torch.equal(rope(x[:, :4]), rope(x)[:, :4])


@pytest.mark.parametrize("added", ["learned-1d", "learned-2d", "sincos-1d", "sincos-2d"])
def test_it_goes_with_what_is_added(added: str) -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "image_size": 16}
    torch.manual_seed(0)
    both = VisionTransformer(**sizes, pos_embed=f"{added}+rope-2d").eval()
    alone = VisionTransformer(**sizes, pos_embed=added).eval()
    alone.load_state_dict(both.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(both.tokens(images), alone.tokens(images))
    assert (both(images) - alone(images)).abs().max() > 1e-6


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_a_model_with_it(attention: str, pool: str) -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "image_size": 16, "attention": attention, "pool": pool}
    model = VisionTransformer(**sizes, pos_embed="rope-2d").double().eval()
    plain = VisionTransformer(**sizes, pos_embed="none").double().eval()
    plain.load_state_dict(model.state_dict())  # strict: it has no key of its own
    images = drawn(2, 3, 16, 16)
    assert (model(images) - plain(images)).abs().max() > 1e-6
    maps = model.attention_maps(images)
    torch.testing.assert_close(maps[0].positive.sum(-1), torch.ones_like(maps[0].positive[..., 0]))
    # Patches in another order are another image, though nothing was added to the tokens.
    mixed = images.unflatten(2, (4, 4)).flip(2).flatten(2, 3)
    assert (model(mixed) - model(images)).abs().max() > 1e-6
    torch.testing.assert_close(plain(mixed), plain(images))


def test_in_bfloat16_it_is_rounded_once() -> None:
    rope, x = Rope2d(GRID, 8, 0), drawn(1, 15, 2, 8).bfloat16()
    torch.testing.assert_close(rope(x), rope(x.double()).bfloat16(), atol=0, rtol=2**-7)
