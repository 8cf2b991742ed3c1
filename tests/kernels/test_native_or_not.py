"""When the layers take the compiled kernels, and when they leave the work to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fast import apart, fast, numbers
from torch import Tensor, nn

from diffvit.kernels import library, native
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.pos_embed import Rope2d

pytestmark = pytest.mark.native


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("rotary", [False, True])
def test_the_layers_take_the_kernels_and_give_what_plain_ones_give(
    rotary: bool, maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, run = [], library.Kernels.run
    monkeypatch.setattr(library.Kernels, "run", lambda self, name, job: calls.append(name) or run(self, name, job))
    torch.manual_seed(0)
    rope = Rope2d((8, 8), 32, 1) if rotary else None
    layer = Attention(128, 4, rope=rope) if maps == 1 else DifferentialAttention(128, 4, layer_index=1, rope=rope)
    x = torch.randn(3, 65, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        slow, out = layer(x), fast(layer)(x)
    (of_x,) = torch.autograd.grad(out.float().square().sum(), x)
    (of_x_slow,) = torch.autograd.grad(slow.float().square().sum(), x)
    assert calls == ["attention_forward", "attention_backward"]
    assert apart(out, slow) < 0.01
    assert apart(of_x, of_x_slow) < 0.02


def mapped(layer: nn.Module, x: Tensor) -> object:
    return torch.func.vmap(layer)(x[:, None])


def exported(layer: nn.Module, x: Tensor) -> object:
    return torch.export.export(layer, (x,)).module()(x)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("way", [mapped, exported])
def test_tracing_and_transforms_see_torchs_own_operators(
    way: Callable[[nn.Module, Tensor], object], maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = fast(Attention(32, 2) if maps == 1 else DifferentialAttention(32, 2, layer_index=0))
    layer.bfloat16().requires_grad_(False)
    x = numbers(2, 9, 32)
    layer(x)

    def refuse(*_: object) -> None:
        raise AssertionError("the kernels ran")

    monkeypatch.setattr(library.Kernels, "run", refuse)
    with pytest.raises(AssertionError, match="the kernels ran"):
        layer(x)
    way(layer, x)


@pytest.mark.parametrize(
    ("x", "head_dim"),
    [
        (torch.zeros(2, 9, 32), 16),
        (torch.zeros(2, 9, 32).double(), 16),
        (torch.zeros(2, 9, 48).bfloat16(), 24),
        (torch.zeros(0, 9, 32).bfloat16(), 16),
        (torch.zeros(2, 9, 32, device="meta").bfloat16(), 16),
    ],
)
def test_what_the_kernels_leave_to_torch(x: Tensor, head_dim: int) -> None:
    assert not native.works(x, head_dim)


def test_autocast_decides_and_a_trace_in_the_making_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 9, 32)
    assert native.works(x.bfloat16(), 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert native.works(x, 16)
        assert not native.works(x.double(), 16)
    with torch.autocast("cpu", torch.float16):
        assert not native.works(x, 16)
    monkeypatch.setattr(torch._C, "_is_tracing", lambda: True)
    assert not native.works(x.bfloat16(), 16)
