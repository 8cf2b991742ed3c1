"""The faster layers against the plain ones, path by path."""

from __future__ import annotations

import pytest
import torch
from fast import fast
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffvit.kernels import modules as kernel
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d
from diffvit.models.vit import PatchEmbed


def gradients(module: nn.Module, out: Tensor, x: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), [x, *module.parameters()]))


@settings(deadline=None, max_examples=30)
@given(
    pairs=st.integers(1, 3),
    width=st.integers(1, 5),
    tokens=st.integers(1, 9),
    batch=st.integers(1, 3),
    differential=st.booleans(),
    bias=st.booleans(),
    data=st.data(),
)
def test_any_shape_for_all_tokens_and_for_the_first_alone(
    pairs: int, width: int, tokens: int, batch: int, differential: bool, bias: bool, data: st.DataObject
) -> None:
    dim = 2 * pairs * width
    torch.manual_seed(dim)
    kind = {"layer_index": data.draw(st.integers(0, 12))} if differential else {}
    layer = (DifferentialAttention if differential else Attention)(dim, 2 * pairs, qkv_bias=bias, **kind).double()
    x = torch.randn(batch, tokens, dim, dtype=torch.float64, requires_grad=True)
    expected, quick = layer(x), fast(layer)
    for only_cls, read in ((False, tokens), (True, 1)):
        found = quick(x, only_cls)
        torch.testing.assert_close(found, expected[:, :read], rtol=0, atol=1e-9)
        wanted = gradients(layer, layer(x)[:, :read], x)
        for mine, theirs in zip(gradients(layer, found, x), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


def test_the_explicit_path_is_for_half_precision_and_short_sequences_on_a_cpu() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert kernel.explicit_is_faster(cpu, torch.bfloat16, 257)
    assert kernel.explicit_is_faster(cpu, torch.float32, 65)
    assert not kernel.explicit_is_faster(cpu, torch.float32, 256)
    assert not kernel.explicit_is_faster(cuda, torch.bfloat16, 65)


@pytest.mark.parametrize("tokens", [20, 130])
def test_short_sequences_go_the_explicit_way_and_long_ones_the_fused(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = Attention(12, 3), torch.randn(2, tokens, 12)
    expected, quick = layer(x), fast(layer)
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or fused(*qkv)
    )
    torch.testing.assert_close(quick(x), expected, rtol=0, atol=1e-6)
    assert len(calls) == (tokens > 100)


@pytest.mark.parametrize(("rotary", "only_cls"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("differential", [False, True])
def test_in_bfloat16_it_strays_little_more_than_the_plain_layer(
    differential: bool, rotary: bool, only_cls: bool
) -> None:
    rope, read = Rope2d((8, 8), 16, 0) if rotary else None, 1 if only_cls else 64
    errors: dict[str, list[Tensor]] = {"plain": [], "fast": []}
    for seed in range(4):  # in a single draw the gradient of lambda, a sum of terms of either sign, may be near zero
        torch.manual_seed(seed)
        kind = {"layer_index": 2} if differential else {}
        layer: nn.Module = (DifferentialAttention if differential else Attention)(64, 4, rope=rope, **kind)
        x, of_out = torch.randn(8, 64, 64, requires_grad=True), torch.randn(8, read, 64)
        leaves = [x, *layer.parameters()]
        exact = [layer(x)[:, :read], *torch.autograd.grad(layer(x)[:, :read], leaves, of_out)]
        quick = fast(layer)
        for name in errors:
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)[:, :read] if name == "plain" else quick(x, only_cls)
            found = [out, *torch.autograd.grad(out, leaves, of_out.to(out.dtype))]
            squares = [
                [each.square().sum().item() for each in (one - other, other)]
                for one, other in zip(found, exact, strict=True)
            ]
            errors[name].append(torch.tensor(squares))
    plain, found = (torch.stack(each).sum(dim=0).sqrt() for each in errors.values())
    plain, found = plain[:, 0] / plain[:, 1], found[:, 0] / found[:, 1]
    assert (found > 0).all()
    assert (found < (1.5 * plain).clamp(min=0.02)).all(), (found, plain)


def test_rotation_as_one_complex_product() -> None:
    rope = Rope2d((3, 5), 8, 1)
    quick = fast(rope)
    for tokens in (16, 4):
        x = torch.randn(2, tokens, 3, 8, dtype=torch.float64)
        torch.testing.assert_close(quick(x), rope(x), rtol=0, atol=1e-12)
    assert quick(torch.randn(1, 16, 3, 8).bfloat16()).dtype == torch.bfloat16


@settings(deadline=None, max_examples=20)
@given(
    side=st.sampled_from([1, 2, 4, 8]),
    grid=st.integers(1, 4),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_patches_as_one_product_are_the_convolution(
    side: int, grid: int, channels: int, batch: int, channels_last: bool
) -> None:
    layer = PatchEmbed(side * grid, side, channels, 5).double()
    images = torch.randn(batch, channels, side * grid, side * grid, dtype=torch.float64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(layer)(images), layer(images), rtol=0, atol=1e-12)
