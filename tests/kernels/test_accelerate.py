"""Acceleration: the same numbers and weights, and nothing that somebody changed is passed by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import diffvit
from diffvit.models.attention import Attention, DifferentialAttention
from diffvit.models.vit import Block, VisionTransformer
from diffvit.registry import ATTENTION, AttentionKind

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
KINDS: list[dict[str, Any]] = [
    {"attention": attention, "pool": pool, **more}
    for attention in ("softmax", "differential")
    for pool in ("cls", "mean")
    for more in (
        {},
        {"pos_embed": "sincos-2d+rope-2d", "head": "mlp"},
        {"qk_norm": "rms", "layer_scale": 0.5, "registers": 2, "qkv_bias": False},
    )
]


def built(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SIZES, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(*, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("settings", KINDS)
def test_logits_gradients_and_one_step_are_those_of_the_plain_model(settings: dict[str, Any]) -> None:
    plain, fast = (built(**settings).double() for _ in range(2))
    assert len(diffvit.accelerate(fast)) > 3 * SIZES["depth"]
    results = []
    for model in (plain, fast):
        step = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = model(images(dtype=torch.float64)).square().sum()
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        step.step()
        results.append((loss.detach(), gradients, model.state_dict()))
    (loss, gradients, state), (fast_loss, fast_gradients, fast_state) = results
    assert fast_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert fast_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        found = fast_gradients[name]
        if gradient is None or found is None:
            assert gradient is found
            continue
        assert (found - gradient).abs().max() < 1e-10 * gradient.abs().max().clamp(min=1.0), name
    assert fast_state.keys() == state.keys()
    for name, tensor in state.items():
        assert (fast_state[name] - tensor).abs().max() < 1e-10, name


def test_weights_move_between_the_plain_and_the_accelerated_model_and_back() -> None:
    plain, fast = built(), built()
    diffvit.accelerate(fast)
    with torch.no_grad():
        fast.blocks[1].attn.qkv.weight.add_(1.0)
    plain.load_state_dict(fast.state_dict())
    assert torch.allclose(plain(images()), fast(images()), atol=1e-5)
    fast.load_state_dict(built().state_dict())
    assert torch.equal(fast.blocks[1].attn.qkv.weight, built().blocks[1].attn.qkv.weight)


@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_maps_of_an_accelerated_model_are_the_plain_ones(attention: str) -> None:
    plain, fast = (built(attention=attention) for _ in range(2))
    diffvit.accelerate(fast)
    for one, other in zip(plain.attention_maps(images()), fast.attention_maps(images()), strict=True):
        assert torch.allclose(one.effective, other.effective, atol=1e-6)


def places(attention: str) -> list[str]:
    inner = ["qkv", "proj"] + (["sub_norm"] if attention == "differential" else [])
    of_blocks = [f"blocks.{layer}.attn.{name}" for layer in range(3) for name in inner]
    return ["patch_embed.proj", *of_blocks, "blocks.1.norm1", "blocks.2.norm2", "blocks.2.mlp.fc1", "norm"]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_forward_hooks_are_called_in_every_block_and_may_change_the_output(
    attention: str, pool: str, accelerated: bool
) -> None:
    clean = built(attention=attention, pool=pool)(images())
    for name in places(attention):
        model, calls, tokens = built(attention=attention, pool=pool), [], 17 if pool == "cls" else 16

        def hook(
            module: nn.Module, given: object, out: Tensor, calls: list[bool] = calls, tokens: int = tokens
        ) -> Tensor:
            calls.append(tokens in out.shape)
            return 2.0 * out

        model.get_submodule(name).register_forward_hook(hook)
        if accelerated:
            diffvit.accelerate(model)
        changed = model(images())
        assert calls == [name != "patch_embed.proj"], name  # once, with all tokens
        assert (changed - clean).abs().max() > 1e-4, name


class Normed(Attention):
    """Query-key norm by overriding one method."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_norm_put_in_by_overriding_one_method_acts_in_every_block(
    pool: str, accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTENTION, "normed", AttentionKind(lambda dim, n, layer_index, **m: Normed(dim, n, **m), "N"))
    for layer in range(3):
        model, changed = built(pool=pool), built(pool=pool)
        other = built(pool=pool, attention="normed")
        changed.blocks[layer].attn = other.blocks[layer].attn
        if accelerated:
            diffvit.accelerate(changed)
        assert (model(images()) - changed(images())).abs().max() > 1e-5
        block: Any = changed.blocks[layer]
        assert type(block.attn) is Normed


class Lora(nn.Module):
    """A low-rank addition to a linear layer (arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(2, linear.in_features))
        self.up = nn.Parameter(torch.randn(linear.out_features, 2))

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["softmax", "differential"])
def test_lora_around_a_projection_has_its_effect_in_the_last_block_too(
    attention: str, pool: str, accelerated: bool
) -> None:
    for name in ("qkv", "proj"):
        model, plain = (built(attention=attention, pool=pool) for _ in range(2))
        attn: Any = model.blocks[-1].attn
        setattr(attn, name, Lora(getattr(attn, name)))
        if accelerated:
            diffvit.accelerate(model)
        assert (model(images()) - plain(images())).abs().max() > 1e-3
        model(images()).square().sum().backward()
        assert getattr(model.blocks[-1].attn, name).up.grad.abs().max() > 0


def _method(model: VisionTransformer) -> None:
    attn: Any = model.blocks[0].attn
    attn.forward = torch.zeros_like


def _parametrised(model: VisionTransformer) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(model.blocks[0].attn.qkv, "weight", Doubled())


def _pre_hook(model: VisionTransformer) -> None:
    model.blocks[0].attn.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def _another_norm(model: VisionTransformer) -> None:
    attn: Any = model.blocks[0].attn
    attn.sub_norm = nn.LayerNorm(16, eps=0.3)


def _overlapping(model: VisionTransformer) -> None:
    torch.manual_seed(2)
    model.patch_embed.proj = nn.Conv2d(3, 32, 6, stride=4, padding=1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        *((change, "blocks.0.attn") for change in (_method, _parametrised, _pre_hook, _another_norm)),
        (_overlapping, "patch_embed"),
    ],
)
def test_what_else_may_be_changed_acts_and_keeps_its_module_plain(change: Any, name: str) -> None:
    plain, fast = (built(attention="differential") for _ in range(2))
    change(plain)
    change(fast)
    swapped = diffvit.accelerate(fast)
    assert name not in swapped
    assert {"blocks.0", "blocks.1.attn", "blocks.2.attn"} <= set(swapped)
    assert torch.allclose(plain(images()), fast(images()), atol=1e-5)
    assert not torch.allclose(built(attention="differential")(images()), fast(images()), atol=1e-3)


def test_a_hook_on_all_blocks_sees_all_tokens() -> None:
    model, seen = built(), []
    model.blocks.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    assert "blocks.2" in diffvit.accelerate(model)
    model(images())
    assert seen == [17]


def test_a_subclass_is_left_as_it_is() -> None:
    class Own(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Ours(VisionTransformer):
        def forward_head(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x).mean(dim=1))  # reads more than [CLS]

    model = built()
    model.blocks[2] = Own(32, 4, 64, attention="softmax", layer_index=2)
    assert "blocks.2" not in diffvit.accelerate(model)
    torch.manual_seed(0)
    other = Ours(**SIZES)
    expected = other(images())
    diffvit.accelerate(other)
    assert torch.allclose(other(images()), expected, atol=1e-5)


def test_a_shared_rotation_stays_shared() -> None:
    model = built(pos_embed="rope-2d", attention="differential")
    names = diffvit.accelerate(model)
    assert len(set(names)) == len(names)
    assert diffvit.accelerate(model) == []  # once is enough
    assert model.double()(images(dtype=torch.float64)).dtype == torch.float64
    ropes = {id(block.attn.rope) for block in model.blocks}
    assert len(ropes) == 1
    assert isinstance(model.blocks[0].attn, DifferentialAttention)
    assert type(model.blocks[0].attn.rope).__name__ == "FastRope2d"
